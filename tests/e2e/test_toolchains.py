"""Real compilers in bases of ours: what nvcc, hipcc, cargo, pip, meson and autotools make, in images that run."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard
from support.cli import ROOT, Program
from support.needs import need, need_root
from support.podman import output_of_image
from support.registry import RunningRegistry
from support.toolchain_projects import CARGO, CUDA, FILES, RUST

from assembler.build.gpu_code import architectures_in

pytestmark = [pytest.mark.tools, pytest.mark.slow]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources and manifests; the bases are those of the library."""
    need_root()
    need("buildah", "mmdebstrap")
    directory = tmp_path_factory.mktemp("toolchains") / "project"
    ignored = shutil.ignore_patterns("*.lock.yaml")  # mirrors drop versions
    shutil.copytree(ROOT / "manifests/bases", directory / "bases", ignore=ignored)
    for name, text in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.fixture(scope="module")
def program(project: Path) -> Program:
    """One cache for all, so that the base that all bases stand on is made once."""
    return Program(project.parent / "cache")


def layer_files(layout: Path) -> dict[str, bytes]:
    """The files of the layers of an OCI layout that are ours, by path."""
    found: dict[str, bytes] = {}
    for blob in (layout / "blobs/sha256").iterdir():
        data = blob.read_bytes()
        if data[:4] == b"\x28\xb5\x2f\xfd" and len(data) < 20 << 20:
            stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data))
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    if file := tar.extractfile(member) if member.isfile() else None:
                        found[member.name] = file.read()
    return found


def test_cuda_for_two_architectures(project: Path, program: Program, registry: RunningRegistry) -> None:
    layout = project.parent / "cuda"
    pushed = program.ok(
        project / "cuda.yaml", "--output", f"oci:{layout}", "--push", f"{registry.host}/e2e/cuda:1"
    )
    files = layer_files(layout)
    for name in ("usr/local/lib/libkernels.so", "usr/local/bin/count"):
        assert architectures_in(files[name]) == frozenset({"sm_80", "sm_90a", "compute_90a"}), name
    image = next(line for line in pushed.splitlines() if "@sha256:" in line)
    assert output_of_image(image).startswith("error "), "it runs as far as a machine without a GPU lets it"


def test_hip_for_gfx90a(project: Path, program: Program) -> None:
    layout = project.parent / "hip"
    program.ok(project / "hip.yaml", "--output", f"oci:{layout}")
    assert architectures_in(layer_files(layout)["usr/local/lib/libkernels.so"]) == frozenset({"gfx90a"})


def test_gpu_code_that_nobody_asked_for(project: Path, program: Program) -> None:
    text = CUDA.replace("[add.cu, count.cu]", "add.cu").replace(
        'FACTOR: "3"}}', 'FACTOR: "3"}, options: ["-gencode=arch=compute_75,code=sm_75"]}'
    )
    (project / "wrong.yaml").write_text(text)
    ended = program(project / "wrong.yaml")
    assert ended.code == 1
    assert "`sm_75`, which nobody asked for" in ended.stderr


@pytest.mark.parametrize(
    ("manifest", "old", "new"), [("cuda.yaml", "sm_80", "sm_70"), ("hip.yaml", "gfx90a", "gfx942")]
)
def test_an_architecture_that_the_compiler_does_not_know(
    project: Path, program: Program, manifest: str, old: str, new: str
) -> None:
    (project / "wrong.yaml").write_text((project / manifest).read_text().replace(old, new))
    ended = program(project / "wrong.yaml")
    assert ended.code == 1
    assert new.removeprefix("sm_") in ended.stderr.partition("hint:")[2]


def outcomes(stderr: str) -> dict[str, str]:
    """Step → how it ended, from JSON events."""
    events = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    return {event["step"]: event["outcome"] for event in events if event["event"] == "step_finished"}


def test_rust_with_crates(project: Path, program: Program, registry: RunningRegistry) -> None:
    """Crates from the registry; then another text in the workspace, with which no dependency is compiled again."""
    target = f"{registry.host}/e2e/greet:1"
    image = program.ok(project / "rust.yaml", "--push", target)
    assert output_of_image(image) == "hello 42 unix\n"
    (project / "greet/words/src/lib.rs").write_text('pub const GREETING: &str = "again";\n')
    ended = program(project / "rust.yaml", "--push", target, "--offline", "--progress", "json")
    assert ended.code == 0, ended.stderr
    assert outcomes(ended.stderr)["compile:greet:dependencies"] == "cached"
    assert output_of_image(ended.stdout.strip()) == "again 42 unix\n"
    log = max((program.cache / "logs").glob("greet-*.txt"), key=lambda path: path.stat().st_mtime).read_text()
    compiled = [line.split()[1] for line in log.splitlines() if line.strip().startswith("Compiling")]
    assert sorted(compiled) == ["greet", "words"]


def test_a_lock_file_that_does_not_fit(project: Path, program: Program) -> None:
    wrong = project / "wrong"
    shutil.copytree(project / "greet", wrong)
    (wrong / "Cargo.toml").write_text(CARGO["Cargo.toml"] + 'ryu = "=1.0.5"\n')
    (project / "wrong.yaml").write_text(RUST.replace("./greet", "./wrong"))
    ended = program(project / "wrong.yaml")
    assert ended.code == 1
    assert "Cargo.lock does not fit Cargo.toml" in ended.stderr
    for words in ("`cargo fetch`", "log:", "run it again:"):
        assert words in ended.stderr


def test_wheel_meson_and_autotools(project: Path, program: Program, registry: RunningRegistry) -> None:
    layout = project.parent / "others"
    target = f"{registry.host}/e2e/others:1"
    ended = program(project / "others.yaml", "--output", f"oci:{layout}", "--push", target, "--progress", "json")
    assert ended.code == 0, ended.stderr
    (wheel,) = (data for name, data in layer_files(layout).items() if name.startswith("wheels/fastsum-1.0-cp3"))
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        (extension,) = (name for name in archive.namelist() if name.endswith(".so"))
        assert b".debug_info" not in archive.read(extension)
    image = next(line for line in ended.stdout.splitlines() if "@sha256:" in line)
    assert output_of_image(image) == "hello\nhello\n"
    notes = [json.loads(line).get("facts") for line in ended.stderr.splitlines() if '"facts"' in line]
    assert {note["step"] for note in notes if note} >= {"compile:wheel", "compile:meson", "compile:autotools"}


def test_the_libraries_of_llama_cpp(project: Path, program: Program, registry: RunningRegistry) -> None:
    """From their published source; the loader binds every symbol of theirs."""
    image = program.ok(project / "ggml.yaml", "--push", f"{registry.host}/e2e/ggml:1")
    assert output_of_image(image).split() == ["libggml-base.so", "libggml-cpu.so", "libggml.so"]


def test_a_published_extension_in_an_environment(
    project: Path, program: Program, registry: RunningRegistry
) -> None:
    """C++ from the index, compiled to a wheel, and imported in the virtual environment that it is laid into."""
    image = program.ok(project / "greenlet.yaml", "--push", f"{registry.host}/e2e/greenlet:1")
    assert output_of_image(image) == "42\n"
