"""Pushed to registries of several makers, and read back by tools of others: skopeo, podman, crane, docker."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from support.cli import Program
from support.containers import busybox, shared_directory, tiny_tar
from support.go_programs import go_program
from support.images import digests, image_of, layer_of
from support.podman import output_of_image
from support.registry import output_of
from support.registry_makers import MAKERS, Maker

from assembler.oci import media_types
from assembler.oci.descriptor import BASE_DIGEST, BASE_NAME
from assembler.oci.digest import Digest
from assembler.oci.image import append
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.process import which
from assembler.registry.client import Client
from assembler.registry.push import push
from assembler.registry.referrers import fallback_tag, list_referrers

pytestmark = [pytest.mark.registry, pytest.mark.tools]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.name)
def maker(request: pytest.FixtureRequest) -> Maker:
    found: Maker = request.param
    return found


@pytest.fixture(scope="module")
def host(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with maker.start(tmp_path_factory.mktemp(maker.name)) as host:
        yield host


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "cache")


def crane(*arguments: str) -> str:
    """What crane prints."""
    done = subprocess.run([go_program("crane"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifest_of(reference: str) -> Any:
    """The document as crane and skopeo both see it."""
    text = crane("manifest", reference)
    raw = output_of(["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"])
    assert json.loads(raw) == json.loads(text)
    return json.loads(text)


def validated(reference: str, *options: str) -> None:
    """Have crane check all that an image claims; of layers in zstd, which it cannot read, all but the tars."""
    layers = json.loads(crane("manifest", reference, *options))["layers"]
    is_gzip = all(layer["mediaType"] == media_types.LAYER_GZIP for layer in layers)
    crane("validate", "--remote", reference, *options, *([] if is_gzip else ["--fast"]))


def write(directory: Path, name: str, runtime: str, more: str = "") -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(
        f"manifest: 1\nname: {name}\nruntime: {runtime}\n{more}"
        f'layers:\n  - files: [{{path: /opt/{name}, content: "{name}\\n"}}]\n'
        "image: {entrypoint: [/bin/cat, /opt/" + name + "]}\n"
    )
    return path


def base_in(host: str, repository: str, store: Store, client: Client, factory: pytest.TempPathFactory) -> Digest:
    """A base with busybox, pushed as `repository:1`."""
    tar = tiny_tar(busybox(shared_directory(factory.getbasetemp(), "busybox")))
    image = append(image_of(store), [layer_of(store, tar)])
    return push(client, image, store, [Reference.parse(f"{host}/{repository}:1")]).digest


def test_an_image_on_a_base_of_a_sibling_repository(
    host: str,
    program: Program,
    tmp_path: Path,
    store: Store,
    client: Client,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    base = base_in(host, "team/base", store, client, tmp_path_factory)
    target = f"{host}/team/app"
    ended = program(write(tmp_path, "app", f"{host}/team/base:1"), "--push", f"{target}:1", "--json")
    assert ended.code == 0, ended.stderr
    (result,) = ended.json()
    manifest = manifest_of(f"{target}:1")
    assert result["bytes_pulled"] == 0
    assert result["bytes_pushed"] == manifest["config"]["size"] + manifest["layers"][1]["size"], (
        "the base is mounted"
    )
    assert manifest["annotations"] == {BASE_NAME: f"{host}/team/base:1", BASE_DIGEST: base}
    validated(f"{target}:1")
    program.ok(tmp_path / "app.yaml", "--push", f"{target}-gzip:1", "--compression", "gzip")
    validated(f"{target}-gzip:1")
    assert crane("digest", f"{target}:1").strip() == result["digest"]
    assert crane("ls", target).split() == ["1"]
    assert output_of_image(f"{target}:1") == "app\n"
    output_of(["skopeo", "copy", "--src-tls-verify=false", f"docker://{target}:1", f"oci:{tmp_path / 'copy'}:1"])
    again = program(tmp_path / "app.yaml", "--push", f"{target}:1", "--json")
    assert again.json()[0]["digest"] == result["digest"]
    assert again.json()[0]["bytes_pushed"] == 0


def test_an_index_of_two_platforms(host: str, program: Program, tmp_path: Path) -> None:
    target = f"{host}/team/both"
    path = write(tmp_path, "both", "scratch", "platforms: [linux/amd64, linux/arm64]\n")
    pushed = program.ok(path, "--push", f"{target}:1", "--push", f"{host}/other/both:2")
    assert pushed.splitlines()[0] == f"{target}@{crane('digest', f'{target}:1').strip()}"
    index = manifest_of(f"{target}:1")
    assert index["mediaType"] == media_types.INDEX
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]
    for name in (f"{target}:1", f"{host}/other/both:2"):
        for platform in ("linux/amd64", "linux/arm64"):
            validated(name, "--platform", platform)
            assert json.loads(crane("config", name, "--platform", platform))["architecture"] in platform
    output_of(
        ["skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{target}:1", f"dir:{tmp_path / 'all'}"]
    )
    crane("pull", "--format=oci", f"{target}:1", str(tmp_path / "crane"))


def test_files_are_attached(maker: Maker, host: str, program: Program, tmp_path: Path, client: Client) -> None:
    target = f"{host}/team/attached"
    (tmp_path / "sbom.spdx.json").write_text('{"spdxVersion": "SPDX-2.3"}')
    (tmp_path / "tests.xml").write_text("<testsuites/>")
    path = write(tmp_path, "attached", "scratch")
    words = ["--attach", "application/vnd.junit+xml=tests.xml", "--attach", "sbom.spdx.json", "--json"]
    first = program(path, "--push", f"{target}:1", *words, cwd=tmp_path)
    assert first.code == 0, first.stderr
    (result,) = first.json()
    image = Reference.parse(f"{target}@{result['digest']}")
    listed = list_referrers(client, image)
    assert sorted(f"{target}@{entry.digest}" for entry in listed) == sorted(result["referrers"])
    spdx = list_referrers(client, image, "application/spdx+json")
    assert len(spdx) == (1 if maker.tells_types else 0)
    for reference in result["referrers"]:
        manifest = manifest_of(reference)
        assert manifest["subject"]["digest"] == result["digest"]
        (layer,) = manifest["layers"]
        name = layer["annotations"]["org.opencontainers.image.title"]
        assert crane("blob", f"{target}@{layer['digest']}") == (tmp_path / name).read_text()
    tags = set(crane("ls", target).split())
    assert tags == ({"1"} if maker.says_so else {"1", fallback_tag(Digest(result["digest"]))})
    if maker.has_list:
        with urlopen(f"http://{host}/v2/team/attached/referrers/{result['digest']}") as answer:
            assert len(json.load(answer)["manifests"]) == 2
    again = program(path, "--push", f"{target}:1", *words, cwd=tmp_path)
    assert again.json()[0]["referrers"] == result["referrers"]
    assert again.json()[0]["bytes_pushed"] == 0
    again_listed = list_referrers(client, image)  # in which order is the registry's own affair
    assert sorted(again_listed, key=lambda one: one.digest) == sorted(listed, key=lambda one: one.digest)
    shown = program("inspect", f"{target}:1").stdout
    assert [result["referrers"][0].rpartition("@")[2] in line for line in shown.splitlines()].count(True) == 1


def test_docker_runs_what_was_pushed(
    host: str,
    program: Program,
    tmp_path: Path,
    store: Store,
    client: Client,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if which("docker") is None or not _daemon():
        pytest.skip("no docker daemon runs here")
    base_in(host, "docker/base", store, client, tmp_path_factory)
    target = f"{host}/docker/app:1"
    program.ok(write(tmp_path, "app", f"{host}/docker/base:1"), "--push", target)
    try:
        assert output_of(["docker", "run", "--rm", target]) == "app\n"
    finally:
        subprocess.run(["docker", "rmi", "--force", target], capture_output=True, check=False)


def _daemon() -> str:
    """The version of the docker daemon that answers; podman's stand-in for the command has none."""
    asked = ["docker", "info", "--format", "{{.ServerVersion}}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def test_layers_of_docker_types_become_oci(
    host: str, program: Program, tmp_path: Path, store: Store, client: Client
) -> None:
    """A base as docker pushes it: its words are translated, its bytes stay."""
    base = image_of(store, {"usr/share/x": b"x"})
    tag = Reference.parse(f"{host}/docker/types:1")
    push(client, base, store, [tag])
    value = json.loads(base.manifest()[0].to_bytes())
    value["mediaType"] = media_types.DOCKER_MANIFEST
    value["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    value["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    docker = client.put_manifest(tag.tagged("docker"), media_types.DOCKER_MANIFEST, json.dumps(value).encode())
    target = f"{host}/docker/retyped:1"
    program.ok(write(tmp_path, "retyped", f"{host}/docker/types:docker"), "--push", target)
    manifest = manifest_of(target)
    assert manifest["mediaType"] == media_types.MANIFEST
    assert manifest["config"]["mediaType"] == media_types.CONFIG
    assert manifest["layers"][0]["mediaType"] == media_types.LAYER_GZIP
    assert manifest["layers"][0]["digest"] == digests(base)[0]
    assert manifest["annotations"][BASE_DIGEST] == docker
    validated(target)
