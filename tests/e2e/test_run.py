"""`assemble run`: what it prints, and what podman then does."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import Program
from support.needs import need, need_root
from support.registry import RunningRegistry

from assembler.oci import media_types
from assembler.oci.descriptor import RUN
from assembler.oci.digest import Digest
from assembler.oci.image import ImageManifest
from assembler.oci.reference import Reference
from assembler.registry.client import Client

pytestmark = pytest.mark.registry

MANIFEST = """\
manifest: 1
name: server
runtime: scratch
accelerator: {cuda: [sm_90]}
sources: {here: {path: .}}
layers: [{copy: {source: here, path: hello, to: /}}]
image: {entrypoint: [/hello], ports: [8080]}
run: {gpus: all, shm-size: 2g, network: host, cap-add: [SYS_PTRACE]}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text(MANIFEST)
    (tmp_path / "hello").write_text("not a program")
    return path


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "cache")


def test_a_manifest_says_how_its_image_is_run(program: Program, manifest: Path) -> None:
    printed = program.ok(
        "run", "--with", "docker", "--image", "r.example.com/s:1", "--print", manifest, "--", "-x"
    )
    assert printed == (
        "docker run --rm --interactive --gpus=all --shm-size=2g --cap-add=SYS_PTRACE --network=host"
        " r.example.com/s:1 -x"
    )
    ended = program("run", "--with", "docker", "--print", manifest)
    assert (ended.code, "--image REF" in ended.stderr) == (2, True)
    printed = program.ok("run", "--with", "apptainer", "--env", "TOKEN", "--print", manifest)
    sif = program.cache / "run/server.sif"
    assert printed == f'APPTAINERENV_TOKEN="$TOKEN" apptainer run --cleanenv --nv {sif}'
    assert not sif.exists(), "what is only printed is not assembled"


def test_an_image_says_it_too_and_gets_no_rights_by_it(
    program: Program, manifest: Path, registry: RunningRegistry
) -> None:
    target = f"{registry.host}/run/server:1"
    program.ok(manifest, "--push", target)
    ended = program("run", "--with", "podman", "--print", target)
    assert "--device=nvidia.com/gpu=all --shm-size=2g" in ended.stdout
    assert "SYS_PTRACE" not in ended.stdout
    assert "the image asks for cap-add, network as well" in ended.stderr
    reference = Reference.parse(target)
    document = ImageManifest.from_bytes(Client().get_manifest(reference).data)
    for text in ("[]", "{", json.dumps({"gpus": [1]}), json.dumps({"gpus": "all --privileged"})):
        data = json.loads(document.to_bytes())
        data["annotations"] = {RUN: text}
        bad = Client().put_manifest(reference.tagged("bad"), media_types.MANIFEST, json.dumps(data).encode())
        assert isinstance(bad, Digest)
        ended = program("run", "--with", "podman", "--print", f"{registry.host}/run/server:bad")
        assert "--privileged" not in ended.stdout.split(), ended.stdout
        assert ended.code in (0, 2)


def test_what_cannot_be_run_is_named(program: Program, tmp_path: Path) -> None:
    assert "no such file" in program("run", tmp_path / "a.sif").stderr
    (tmp_path / "a.sif").write_bytes(b"")
    assert "podman cannot run a SIF" in program("run", "--with", "podman", tmp_path / "a.sif").stderr
    none = program("run", "127.0.0.1:1/x:1", env={"PATH": str(tmp_path)})
    assert (none.code, "is installed, or on PATH" in none.stderr) == (1, True)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables for podman: storage of its own, and what works on hosts with mixed cgroups."""
    need("podman")
    need_root()
    with tempfile.TemporaryDirectory(prefix="pr-") as short:
        (tmp_path / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{short}/root"\nrunroot = "{short}/run"\n'
        )
        (tmp_path / "containers.conf").write_text(
            f'[engine]\ncgroup_manager = "cgroupfs"\nruntime = "{need("runc")}"\n'
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        )
        yield {
            "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"),
            "CONTAINERS_CONF": str(tmp_path / "containers.conf"),
        }


@pytest.mark.tools
def test_podman_runs_a_manifest(program: Program, tmp_path: Path, engine: dict[str, str]) -> None:
    need("gcc")
    source = tmp_path / "hello.c"
    source.write_text(
        '#include <stdio.h>\nint main(int n, char **a) { printf("hello %s\\n", n > 1 ? a[1] : ""); }\n'
    )

    subprocess.run([need("gcc"), "-static", "-o", tmp_path / "hello", source], check=True)
    manifest = tmp_path / "server.yaml"
    manifest.write_text(MANIFEST.replace("gpus: all, ", "").replace("accelerator: {cuda: [sm_90]}\n", ""))
    ended = program("run", "--with", "podman", manifest, "world", env=engine)
    assert ended.stdout == "hello world\n", ended.stderr
