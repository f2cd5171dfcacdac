"""Images of files and copies, end to end, against a real registry: they need no container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import Program
from support.needs import need
from support.registry import RunningRegistry

MANIFEST = """\
manifest: 1
name: small
runtime: scratch
sources: {tree: {path: ./tree, ignore: ["*.tmp"]}}
layers:
  - copy: {source: tree, path: a, to: /opt/a/}
  - copy: {source: tree, path: b, to: /opt/b/}
  - files:
      - {path: /etc/motd, content: "hello\\n"}
      - {path: /usr/bin/tool, link: ../../opt/a/run}
image:
  env: {PATH: "/opt/a:${PATH}"}
  entrypoint: [/opt/a/run]
compression: COMPRESSION
"""


def write_project(directory: Path, compression: str = "zstd") -> Path:
    """A manifest and a tree of two directories with links, an executable and an ignored file."""
    directory.mkdir(parents=True, exist_ok=True)
    for part in ("a", "b"):
        (directory / "tree" / part / "deep").mkdir(parents=True)
        for number in range(20):
            (directory / "tree" / part / "deep" / f"f{number}").write_text(f"{part}{number}\n" * number)
    (directory / "tree/a/run").write_text("#!/bin/sh\n")
    (directory / "tree/a/run").chmod(0o755)
    (directory / "tree/b/link").symlink_to("deep/f1")
    os.link(directory / "tree/b/deep/f2", directory / "tree/b/hard")
    (directory / "tree/a/ignored.tmp").write_text("x")
    path = directory / "small.yaml"
    path.write_text(MANIFEST.replace("COMPRESSION", compression))
    return path


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "cache")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project")


def settle(root: Path) -> None:
    """Make files look as if they had been written a while ago: what is younger than two seconds is not trusted."""
    time.sleep(2.1)
    assert root.exists()


def digest_of(text: str) -> str:
    return text.rpartition("@")[2]


def test_circumstances_do_not_show(tmp_path: Path) -> None:
    """Directory, umask, locale, time zone, times, and the number of processors: none is in the digest."""
    one = write_project(tmp_path / "one")
    other = write_project(tmp_path / "somewhere" / "else")
    os.utime(other.parent / "tree/a/run", (1, 1))
    (other.parent / "tree/a/deep/f3").chmod(0o600)
    first = Program(tmp_path / "cache-1").ok(one)
    second = Program(tmp_path / "cache-2").ok(
        "small.yaml",
        cwd=other.parent,
        umask=0o077,
        env={"TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": str(tmp_path)},
        prefix=[need("taskset"), "1"],
    )
    assert digest_of(first) == digest_of(second)


def test_a_layer_without_its_changes_is_not_made_again(program: Program, project: Path) -> None:
    program.ok(project)
    (project.parent / "tree/b/deep/f5").write_text("changed\n")
    ended = program(project, "--progress", "json")
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    outcomes = {
        line["name"]: line["outcome"]
        for line in lines
        if line["event"] == "step_finished" and line["verb"] == "pack"
    }
    assert outcomes["copy tree/b to /opt/b/"] == "built"
    assert outcomes.get("files /etc/motd /usr/bin/tool", "cached") == "cached"


def test_push_then_nothing_to_do(program: Program, project: Path, registry: RunningRegistry) -> None:
    target = f"{registry.host}/e2e/small:1"
    settle(project.parent)
    pushed = program.ok(project, "--push", target)
    assert pushed.startswith(f"{registry.host}/e2e/small@sha256:")
    mark = registry.mark()
    again = program(project, "--push", target)
    assert (again.code, again.stdout.strip()) == (0, pushed)
    assert "nothing to do" in again.stderr
    assert [(asked.method, asked.path) for asked in registry.asked(mark)] == [
        ("HEAD", "/v2/e2e/small/manifests/1")
    ]


def test_a_tag_that_somebody_moved_is_set_again(
    program: Program, project: Path, registry: RunningRegistry
) -> None:
    target = f"{registry.host}/e2e/moved:1"
    settle(project.parent)
    pushed = program.ok(project, "--push", target)
    other = write_project(project.parent / "other")
    (other.parent / "tree/a/run").write_text("another\n")
    assert program.ok(other, "--push", target) != pushed
    assert program.ok(project, "--push", target) == pushed
    assert digest_of(pushed) == skopeo_digest(target)


def skopeo_digest(target: str) -> str:
    done = subprocess.run(
        [need("skopeo"), "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{target}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_one_changed_file_pushes_one_layer(program: Program, project: Path, registry: RunningRegistry) -> None:
    target = f"{registry.host}/e2e/onefile:1"
    program.ok(project, "--push", target)
    (project.parent / "tree/b/deep/f1").write_text("changed\n")
    mark = registry.mark()
    program.ok(project, "--push", target)
    uploads = [asked for asked in registry.asked(mark) if asked.method == "PUT" and "/blobs/" in asked.path]
    assert len(uploads) == 2, "the changed layer and the config"


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_outputs_are_read_by_others(program: Program, project: Path, tmp_path: Path, kind: str) -> None:
    output = f"{kind}:{tmp_path / 'out'}"
    digest = program.ok(project, "--output", output)
    assert digest == output
    done = subprocess.run(
        [need("skopeo"), "inspect", "--raw", f"{output}:small"], capture_output=True, text=True, check=True
    )
    assert len(json.loads(done.stdout)["layers"]) == 3


def test_umoci_unpacks_what_the_tree_was(tmp_path: Path, program: Program) -> None:
    """A gzip image, unpacked by another implementation, holds exactly the files of the tree."""
    project = write_project(tmp_path / "gzip", "gzip")
    program.ok(project, "--output", f"oci:{tmp_path / 'layout'}")
    bundle = tmp_path / "bundle"
    subprocess.run(
        [need("umoci"), "unpack", *([] if os.geteuid() == 0 else ["--rootless"]), "--image",
         f"{tmp_path / 'layout'}:small", str(bundle)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    root = bundle / "rootfs"
    assert sorted(names(root / "opt/a")) == sorted(set(names(project.parent / "tree/a")) - {"ignored.tmp"})
    assert (root / "opt/b/link").readlink() == Path("deep/f1")
    assert (root / "opt/b/hard").stat().st_ino == (root / "opt/b/deep/f2").stat().st_ino
    assert (root / "opt/a/run").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/motd").read_text() == "hello\n"
    assert (root / "etc/motd").stat().st_mtime == 0


def names(root: Path) -> Iterator[str]:
    return (path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_plan_says_what_there_is_to_do(program: Program, project: Path) -> None:
    before = program("plan", project, "--json")
    assert before.code == 10
    steps = before.json()[0]["steps"]
    assert [step["kind"] for step in steps] == ["base", "pack", "pack", "pack", "image"]
    assert all(step["key"] for step in steps)
    assert (
        not (program.cache / "store/index.json").exists()
        or "small" not in (program.cache / "store/index.json").read_text()
    )
    program.ok(project)
    after = program("plan", project)
    assert after.code == 0
    assert "nothing to do" in after.stdout


def test_a_lost_blob_is_made_again(program: Program, project: Path) -> None:
    settle(project.parent)
    digest = program.ok(project)
    shutil.rmtree(program.cache / "store/blobs")
    assert program.ok(project) == digest


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing.yaml"], "error: nothing.yaml: no such file"),
        (["--push", "UPPER/case:1"], "is no repository name"),
        (["--push", "localhost:1/x:1"], "localhost:1"),
        (["--output", "zip:x"], "expected `oci:PATH`, `oci-archive:PATH`"),
        (["--output", "oci:/no/such/dir/x"], "does not exist"),
        (["--set", "x"], "expected NAME=VALUE"),
        (["--set", "x=1"], "`x`"),
        (["--source", "nope=/tmp"], "nope"),
    ],
)
def test_wrong_requests_say_so(program: Program, project: Path, arguments: list[str], expected: str) -> None:
    manifest = [] if arguments[0].endswith(".yaml") else ["small.yaml"]
    ended = program(*manifest, *arguments, cwd=project.parent)
    assert ended.code in (1, 2)
    assert expected in ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
