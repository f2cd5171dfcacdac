"""`compression: both`: an index whose gzip image comes first, and its zstd twin with the same content."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.cli import Program
from support.containers import busybox, empty_storage_at_the_end, shared_directory, tiny_tar
from support.images import image_of, layer_of, saved
from support.needs import need
from support.registry import RunningRegistry, output_of

from assembler.oci.digest import Digest
from assembler.oci.image import append
from assembler.oci.layout import Store
from assembler.oci.outputs import write_layout

ZSTD = "io.github.containers.compression.zstd"
MANIFEST = """\
manifest: 1
name: small
runtime: scratch
sources: {tree: {path: ./tree}}
layers:
  - copy: {source: tree, to: /opt/}
  - files: [{path: /etc/motd, content: "hello\\n"}]
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "cache")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    (directory / "tree").mkdir(parents=True)
    for number in range(30):
        (directory / "tree" / f"f{number}").write_text(f"{number}\n" * 1000 * number)
    path = directory / "small.yaml"
    path.write_text(MANIFEST + "compression: both\n")
    return path


def raw(reference: str, *options: str) -> Any:
    return json.loads(output_of(["skopeo", "inspect", "--raw", *options, reference]))


def digest_of(text: str) -> str:
    return text.rpartition("@")[2]


def packed(stderr: str) -> list[tuple[str, str]]:
    """(name, outcome) of every layer that a run with JSON progress tells of."""
    lines = [json.loads(line) for line in stderr.splitlines()]
    return [
        (line["name"], line["outcome"])
        for line in lines
        if line["event"] == "step_finished" and line["verb"] in ("pack", "run", "packages")
    ]


def test_the_index_has_gzip_first_and_its_twin_marked(
    program: Program, project: Path, registry: RunningRegistry
) -> None:
    target = f"{registry.host}/both/small:1"
    pushed = program.ok(project, "--push", target)
    index = raw(f"docker://{target}", "--tls-verify=false")
    assert Digest.of(json.dumps(index, sort_keys=True, separators=(",", ":")).encode()) == digest_of(pushed)
    gzip, zstd = index["manifests"]
    assert "annotations" not in gzip
    assert zstd["annotations"] == {ZSTD: "true"}
    assert gzip["platform"] == zstd["platform"] == {"architecture": "amd64", "os": "linux"}
    images = [
        raw(f"docker://{registry.host}/both/small@{e['digest']}", "--tls-verify=false") for e in (gzip, zstd)
    ]
    assert images[0]["config"] == images[1]["config"], "the same settings, history and diff IDs"
    assert {layer["mediaType"].rpartition("+")[2] for layer in images[0]["layers"]} == {"gzip"}
    assert {layer["mediaType"].rpartition("+")[2] for layer in images[1]["layers"]} == {"zstd"}


def test_each_image_is_what_it_would_be_alone(program: Program, project: Path, tmp_path: Path) -> None:
    program.ok(project, "--output", f"oci:{tmp_path / 'both'}")
    entries = raw(f"oci:{tmp_path / 'both'}:small")["manifests"]
    for compression, entry in zip(("gzip", "zstd"), entries, strict=True):
        alone = Program(tmp_path / compression).ok(project, "--compression", compression)
        assert digest_of(alone) == entry["digest"]


def test_readers_of_gzip_take_the_first(
    program: Program, project: Path, registry: RunningRegistry, tmp_path: Path
) -> None:
    target = f"{registry.host}/both/read:1"
    program.ok(project, "--push", target)
    first = f"docker://{registry.host}/both/read@{reader_of_gzip(f'docker://{target}', '--tls-verify=false')}"
    output_of(["skopeo", "copy", "--src-tls-verify=false", first, f"oci:{tmp_path / 'copy'}:1"])
    unpack(tmp_path / "copy", tmp_path / "root")
    assert (tmp_path / "root/opt/f7").read_bytes() == (project.parent / "tree/f7").read_bytes()


def reader_of_gzip(image: str, *options: str) -> str:
    """The digest of the image that a reader takes who knows nothing of zstd: the first one of its platform.

    Of skopeo's versions some are such a reader, and newer ones prefer the twin in zstd.
    """
    entries = raw(image, *options)["manifests"]
    platform = {"architecture": "amd64", "os": "linux"}
    return str(next(entry["digest"] for entry in entries if entry["platform"] == platform))


def unpack(layout: Path, root: Path) -> None:
    """Have umoci unpack the image `1` of a layout; it reads gzip only."""
    output_of(["umoci", "raw", "unpack", "--rootless", "--image", f"{layout}:1", str(root)])


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_outputs_hold_both(program: Program, project: Path, tmp_path: Path, kind: str) -> None:
    output = f"{kind}:{tmp_path / 'out'}"
    program.ok(project, "--output", output)
    assert len(raw(f"{output}:small")["manifests"]) == 2
    output_of(["skopeo", "copy", "--all", f"{output}:small", f"dir:{tmp_path / 'all'}"])
    # Of skopeo's versions newer ones take the image in zstd, which umoci does not read.
    gzip = ("--dest-compress", "--dest-compress-format", "gzip")
    output_of(["skopeo", "copy", *gzip, f"{output}:small", f"oci:{tmp_path / 'one'}:1"])
    unpack(tmp_path / "one", tmp_path / "root")
    assert (tmp_path / "root/etc/motd").read_text() == "hello\n"


def test_nothing_to_do_is_one_question(program: Program, project: Path, registry: RunningRegistry) -> None:
    target = f"{registry.host}/both/again:1"
    time.sleep(2.1)  # files younger than two seconds are not trusted
    pushed = program.ok(project, "--push", target)
    mark = registry.mark()
    again = program(project, "--push", target)
    assert (again.code, again.stdout.strip()) == (0, pushed)
    assert [asked.method for asked in registry.asked(mark)] == ["HEAD"]
    assert program("plan", project).code == 0


def test_content_is_read_once(program: Program, project: Path) -> None:
    """The first image packs for both, and what is there in one compression is not made from its content again."""
    both = program(project, "--progress", "json")
    names = ["copy tree to /opt/", "files /etc/motd"]
    assert packed(both.stderr) == [(name, "built") for name in names] + [(name, "cached") for name in names]
    (project.parent / "tree/f3").write_text("changed\n")
    program.ok(project, "--compression", "zstd")
    again = program(project, "--progress", "json")
    assert packed(again.stderr)[-2:] == [(names[0], "built"), (names[1], "cached")]


def test_plan_and_inspect_tell_of_both(program: Program, project: Path) -> None:
    before = program("plan", project, "--json")
    assert before.code == 10
    (plan,) = before.json()
    assert plan["work"] == [
        "layer:0", "layer:1", "image", "layer:0:gzip", "layer:1:gzip", "image:gzip", "index"
    ]  # fmt: skip
    built = program.ok(project)
    assert program("plan", project).code == 0
    shown = program("inspect", "small", "--json").json()
    assert [image["compression"] for image in shown["images"]] == ["gzip", "zstd"]
    assert shown["digest"] == shown["images"][0]["digest"]
    assert program("inspect", built, "--json").json()["digest"] == shown["digest"]
    twin = program("inspect", f"small@{shown['images'][1]['digest']}").stdout
    assert "zstd" in twin
    assert "gzip" not in twin
    assert "small@" in built


def test_without_layers_there_is_one_image(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("manifest: 1\nname: empty\nruntime: scratch\ncompression: both\n")
    program.ok(path, "--output", f"oci:{tmp_path / 'out'}")
    assert "layers" in raw(f"oci:{tmp_path / 'out'}:empty")


@pytest.mark.tools
def test_a_command_runs_once_for_both(
    program: Program, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What it makes differs from run to run; the twins must not."""
    need("buildah")
    store = Store(tmp_path / "store").create()
    tar = tiny_tar(busybox(shared_directory(tmp_path_factory.getbasetemp(), "busybox")))
    base = append(image_of(store), [layer_of(store, tar, compression="gzip")])
    write_layout(store, saved(store, base).digest, tmp_path / "base", name="tiny")
    path = tmp_path / "run.yaml"
    path.write_text(
        "manifest: 1\nname: run\nruntime: oci:base\n"
        # Processes may end while they are listed.
        "layers:\n"
        "  - run: {command: [sh, -c, 'ps > /etc/random; id >> /etc/random; ls -l /proc >> /etc/random || :']}\n"
    )
    with empty_storage_at_the_end(program.cache):
        alone = program.ok(path, "--compression", "gzip")
        ended = program(path, "--compression", "both", "--progress", "json")
    assert ended.code == 0, ended.stderr
    shown = program("inspect", "run", "--json").json()
    assert shown["images"][0]["digest"] == digest_of(alone)
    twin = program("inspect", f"run@{shown['images'][1]['digest']}", "--json").json()
    assert [layer["diff_id"] for layer in twin["layers"]] == [layer["diff_id"] for layer in shown["layers"]]


def test_zstd_in_a_base_is_said(program: Program, tmp_path: Path) -> None:
    store = Store(tmp_path / "store").create()
    base = image_of(store, {"usr/share/x": b"x"}, compression="zstd")
    write_layout(store, saved(store, base).digest, tmp_path / "base", name="tiny")
    path = tmp_path / "on.yaml"
    path.write_text("manifest: 1\nname: on\nruntime: oci:base\nlayers: [{files: [{path: /a, content: x}]}]\n")
    assert "the base has zstd layers (1)" in program(path, "--compression", "gzip").stderr
    assert "zstd layers" not in program(path).stderr


def test_unknown_compression_is_refused(program: Program, project: Path) -> None:
    ended = program(project, "--compression", "lzma")
    assert ended.code == 2
    assert "zstd" in ended.stderr


def test_twins_lie_in_the_index_not_beside_it(program: Program, project: Path, tmp_path: Path) -> None:
    program.ok(project, "--output", f"oci:{tmp_path / 'out'}")
    twin = raw(f"oci:{tmp_path / 'out'}:small")["manifests"][1]["digest"]
    index = json.loads((tmp_path / "out/index.json").read_bytes())
    assert len(index["manifests"]) == 1
    manifest = json.loads((tmp_path / "out/blobs/sha256" / twin.removeprefix("sha256:")).read_bytes())
    for layer in manifest["layers"]:
        blob = tmp_path / "out/blobs/sha256" / layer["digest"].removeprefix("sha256:")
        with blob.open("rb") as file:
            subprocess.run([need("zstd"), "--test", "--quiet"], check=True, stdin=file)
