"""cargo, nvcc, hipcc, autotools, meson, wheel: options become argument lists and environment, without a shell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from assembler.build.budget import JobNeeds
from assembler.build.toolchain_choice import needs_of, toolchain_of
from assembler.build.toolchain_kernels import gencode
from assembler.build.toolchains import Toolchain, missing_program
from assembler.errors import ManifestError, StepError
from assembler.manifest.models import Accelerator, CompileStep

CUDA = Accelerator(cuda=("sm_80", "sm_90a+ptx"))
ROCM = Accelerator(rocm=("gfx90a", "gfx942"))
HOSTILE = '"; rm -rf / #`id`$(id)\nx'
RUST = {"Cargo.toml": "[package]\n", "Cargo.lock": "version = 4\n"}
KERNELS = {"a.cu": "", "sub/b.cu": "", "c.hip": "", "include/a.h": ""}


def source(directory: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def step(toolchain: str, options: Mapping[str, Any] | None = None, **fields: Any) -> CompileStep:
    wish = {"toolchain": toolchain, "source": "s", "artifacts": {"a": "b"}, **fields}
    return CompileStep.model_validate({**wish, toolchain: dict(options or {})})


def made(
    toolchain: str,
    options: Mapping[str, Any] | None = None,
    *,
    place: Path = Path("/nothing"),
    accelerator: Accelerator | None = None,
    jobs: int = 3,
) -> Toolchain:
    return toolchain_of(step(toolchain, options), accelerator, jobs, place)


def lines(toolchain: Toolchain) -> list[str]:
    return [" ".join(command.argv) for command in toolchain.commands]


# cargo


def test_cargo_fetches_then_dependencies_then_the_packages(tmp_path: Path) -> None:
    options = {"package": "launcher", "bins": ["one", "two"], "features": ["a", "b"], "default-features": False}
    toolchain = made("cargo", {**options, "profile": "release-opt"}, place=source(tmp_path, RUST))
    copy, fetch, dependencies, build = toolchain.commands
    chosen = "--profile release-opt --package=launcher --bin=one --bin=two --features=a,b --no-default-features"
    assert copy.argv == ("cp", "-R", "--preserve=mode,links", "/src/.", "/build/source")
    assert fetch.fetches and fetch.argv[-1] == "--locked"
    assert [command.fetches for command in (copy, dependencies, build)] == [False] * 3
    assert " ".join(dependencies.argv) == f"cargo build --keep-going --locked --offline {chosen} -j 3"
    assert " ".join(build.argv) == f"cargo build --locked --offline {chosen} -j 3"
    assert dependencies.prepares
    assert (dependencies.workdir, build.workdir) == ("/src", "/build/source")
    assert dependencies.environment["RUSTC_WORKSPACE_WRAPPER"] in toolchain.tools
    assert toolchain.environment["CARGO_TARGET_DIR"] == "/build/target"
    assert toolchain.caches == {"cargo": "/cache/cargo"}


def test_cargo_for_a_named_target(tmp_path: Path) -> None:
    toolchain = made("cargo", {"target": "x86_64-unknown-linux-musl"}, place=source(tmp_path, RUST))
    fetch, build = toolchain.commands[1], toolchain.commands[-1]
    assert fetch.argv == ("cargo", "fetch", "--locked", "--target=x86_64-unknown-linux-musl")
    assert "--target=x86_64-unknown-linux-musl" in build.argv


def test_what_is_kept_depends_on_lock_settings_and_options(tmp_path: Path) -> None:
    first = made("cargo", place=source(tmp_path / "a", {**RUST, "src/main.rs": "1"})).prepared
    code = made("cargo", place=source(tmp_path / "b", {**RUST, "src/main.rs": "2"})).prepared
    lock = made("cargo", place=source(tmp_path / "c", {**RUST, "Cargo.lock": "version = 3\n"})).prepared
    member = made("cargo", place=source(tmp_path / "d", {**RUST, "member/Cargo.toml": "[package]\n"})).prepared
    profile = made("cargo", {"profile": "dev"}, place=tmp_path / "a").prepared
    assert first is not None and lock is not None and member is not None and profile is not None
    assert first == code, "the packages' own files make no difference"
    assert lock.group == first.group and lock.key != first.key
    assert member.key != first.key
    assert profile.group != first.group


def test_the_lock_of_a_workspace_is_found_above(tmp_path: Path) -> None:
    place = source(tmp_path, {**RUST, "crates/one/Cargo.toml": "[package]\n"})
    toolchain = made("cargo", {"source-directory": "crates/one"}, place=place)
    assert toolchain.prepared is not None
    assert toolchain.commands[-1].workdir == "/build/source/crates/one"
    assert toolchain.commands[-2].workdir == "/src/crates/one"


def test_cargo_without_a_lock(tmp_path: Path) -> None:
    place = source(tmp_path, {"Cargo.toml": "[package]\n"})
    with pytest.raises(ManifestError, match=r"no `Cargo\.lock`"):
        made("cargo", place=place)
    toolchain = made("cargo", {"locked": False}, place=place)
    assert toolchain.prepared is None
    assert not any("--locked" in line for line in lines(toolchain))
    with pytest.raises(ManifestError, match=r"no `Cargo\.toml` in `sub`"):
        made("cargo", {"source-directory": "sub"}, place=place)


# nvcc and hipcc


def test_architectures_of_nvcc() -> None:
    assert gencode(["sm_80", "sm_90", "sm_90+ptx", "sm_120f"]) == (
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_120f,code=sm_120f",
    )


def test_nvcc_compiles_each_source_and_links_all(tmp_path: Path) -> None:
    options = {
        "sources": ["*.cu", "**/*.cu"],
        "output": "lib/libkernels.so",
        "include": ["include", "/opt/include"],
        "library-directories": ["/opt/lib"],
        "libraries": "cublas",
        "definitions": {"FAST": "", "WIDTH": "4"},
        "options": ["--use_fast_math"],
        "link-options": ["-Xlinker=-z,now"],
        "runtime": "shared",
    }
    toolchain = made("nvcc", options, place=source(tmp_path, KERNELS), accelerator=CUDA, jobs=5)
    folders, compiled, linked = toolchain.commands
    assert folders.argv == ("mkdir", "-p", "/build/objects", "/build/lib")
    jobs, count, behind, *words = compiled.argv[4:]
    assert (jobs, behind) == ("2", "ccache")
    groups = [words[start : start + int(count)] for start in range(0, len(words), int(count))]
    assert [(group[0], group[-3], group[-1]) for group in groups] == [
        ("nvcc", "/src/a.cu", "/build/objects/0-a.cu.o"),
        ("nvcc", "/src/sub/b.cu", "/build/objects/1-b.cu.o"),
    ]
    common = {*gencode(CUDA.cuda), "-Xcompiler=-fPIC"}
    chosen = {"-O3", "-std=c++17", "-DFAST", "-DWIDTH=4", "-I/src/include", "-I/opt/include", "--use_fast_math"}
    assert all(common | chosen <= set(group) for group in groups)
    assert "--threads=2" in groups[0], "jobs that no source needs are threads"
    assert common <= set(linked.argv)
    assert linked.argv[-7:] == (
        "/build/objects/0-a.cu.o",
        "/build/objects/1-b.cu.o",
        "-o",
        "/build/lib/libkernels.so",
        "-L/opt/lib",
        "-lcublas",
        "-Xlinker=-z,now",
    )
    assert {"-shared", "-cudart=shared"} <= set(linked.argv)


def test_a_program_is_no_library(tmp_path: Path) -> None:
    place = source(tmp_path, KERNELS)
    wish = {"sources": "a.cu", "output": "tool", "kind": "program", "relocatable": True}
    compiled, linked = (command.argv for command in made("nvcc", wish, place=place, accelerator=CUDA).commands[1:])
    assert not {"-shared", "-Xcompiler=-fPIC"} & {*compiled, *linked}
    assert "-rdc=true" in compiled and "-rdc=true" in linked
    wish = {"sources": "c.hip", "output": "tool", "kind": "program", "relocatable": True}
    linked = made("hipcc", wish, place=place, accelerator=ROCM).commands[-1].argv
    assert {"-fgpu-rdc", "--hip-link"} <= set(linked) and "-shared" not in linked


def test_hipcc_names_every_architecture(tmp_path: Path) -> None:
    wish = {"sources": "*.hip", "output": "libkernels.so"}
    toolchain = made("hipcc", wish, place=source(tmp_path, KERNELS), accelerator=ROCM)
    for command in toolchain.commands[1:]:
        assert {"--offload-arch=gfx90a", "--offload-arch=gfx942", "-fPIC"} <= set(command.argv)
    assert "ccache" not in toolchain.commands[1].argv
    assert toolchain.environment["PYTORCH_ROCM_ARCH"] == "gfx90a;gfx942"


@pytest.mark.parametrize(("toolchain", "other"), [("nvcc", ROCM), ("hipcc", CUDA), ("nvcc", None)])
def test_no_architecture_to_compile_for(tmp_path: Path, toolchain: str, other: Accelerator | None) -> None:
    wish = {"sources": "*.*", "output": "x"}
    with pytest.raises(ManifestError, match="needs architectures") as caught:
        made(toolchain, wish, place=source(tmp_path, KERNELS), accelerator=other)
    assert "accelerator:" in str(caught.value.hint)


def test_a_pattern_of_sources_that_matches_nothing(tmp_path: Path) -> None:
    wish = {"sources": ["*.cu", "*.cuh"], "output": "x"}
    with pytest.raises(StepError, match=r"`\*\.cuh` matches nothing in the source"):
        made("nvcc", wish, place=source(tmp_path, KERNELS), accelerator=CUDA)


# autotools, meson


def test_autotools_configures_a_copy() -> None:
    wish = {
        "source-directory": "ucx",
        "prepare": [["./autogen.sh"]],
        "configure": ["--enable-mt"],
        "prefix": "/opt/ucx",
    }
    toolchain = made("autotools", wish)
    assert lines(toolchain)[1:] == [
        "./autogen.sh",
        "./configure --prefix=/opt/ucx --enable-mt",
        "make -j3",
        "make install DESTDIR=/build/assemble-installed",
    ]
    assert {command.workdir for command in toolchain.commands[1:]} == {"/build/source/ucx"}
    assert toolchain.harvest_from == "assemble-installed/opt/ucx"
    assert "timestamps" in toolchain.commands[0].argv[2], "make must not take what is generated for old"
    bare = made("autotools", {"autoreconf": True, "install": False, "targets": ["all"]})
    assert lines(bare)[1:] == ["autoreconf --force --install", "./configure --prefix=/usr/local", "make -j3 all"]
    assert bare.harvest_from == "source"


def test_meson_sets_up_compiles_installs() -> None:
    wish = {
        "options": {"tests": "false", "libdir": "lib64"},
        "targets": ["nixl"],
        "tags": ["runtime"],
        "prefix": "/o",
    }
    assert lines(made("meson", wish)) == [
        "meson setup --wrap-mode=nodownload -Dprefix=/o -Dlibdir=lib64 -Dbuildtype=release -Dtests=false"
        " /build/work /src",
        "meson compile -C /build/work -j 3 nixl",
        "meson install -C /build/work --no-rebuild --destdir=/build/assemble-installed --tags=runtime",
    ]
    assert made("meson", {"install": False}).harvest_from == "work"


# wheel


def test_a_wheel_without_isolation() -> None:
    toolchain = made("wheel", {"source-directory": "python", "config-settings": {"--build-option": "x"}})
    assert lines(toolchain)[1:] == [
        "python3 -m pip wheel --verbose --no-deps --no-build-isolation --config-settings=--build-option=x"
        " --wheel-dir=/build/wheelhouse /build/source/python"
    ]
    assert not any(command.fetches for command in toolchain.commands)
    assert toolchain.environment["LDFLAGS"] == "-Wl,--strip-debug"
    assert toolchain.environment["MAX_JOBS"] == "3"


def test_what_a_wheel_requires_is_fetched_and_the_build_is_not() -> None:
    toolchain = made("wheel", {"requires": ["setuptools==80.9.0", "ninja==1.13.0"]}, accelerator=CUDA)
    _, environment, fetch, build = toolchain.commands
    assert environment.argv[:3] == ("python3", "-m", "venv")
    assert fetch.fetches and fetch.argv[-2:] == ("setuptools==80.9.0", "ninja==1.13.0")
    assert not build.fetches and build.argv[0] == fetch.argv[0] == "/build/environment/bin/python"
    assert toolchain.environment["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0a+PTX"


def test_modules_that_must_import() -> None:
    *_, install, tried = made(
        "wheel", {"imports": ["deepspeed", "deepspeed.ops"], "python": "python3.11"}
    ).commands
    assert "--no-index" in install.argv[2]
    assert tried.argv[0] == "python3.11" and tried.argv[-2:] == ("deepspeed", "deepspeed.ops")
    assert tried.workdir == "/", "not where the source would be found instead"


# all


@pytest.mark.parametrize(
    ("toolchain", "options"),
    [
        ("nvcc", {"sources": "a.cu", "output": "x", "definitions": {"NAME": HOSTILE}, "options": [HOSTILE]}),
        ("hipcc", {"sources": "c.hip", "output": "x", "link-options": [HOSTILE]}),
        ("autotools", {"configure": [HOSTILE]}),
        ("meson", {"options": {"name": HOSTILE}}),
        ("wheel", {"config-settings": {"name": HOSTILE}}),
    ],
)
def test_a_hostile_value_stays_one_word(tmp_path: Path, toolchain: str, options: dict[str, Any]) -> None:
    place = source(tmp_path, {**KERNELS, **RUST})
    accelerator = Accelerator(cuda=("sm_80",), rocm=("gfx90a",))
    words = [word for command in made(toolchain, options, place=place, accelerator=accelerator).commands
             for word in command.argv]  # fmt: skip
    assert any(word.endswith(HOSTILE) for word in words)
    for command in made(toolchain, options, place=place, accelerator=accelerator).commands:
        if "-c" in command.argv[:2]:
            assert HOSTILE not in command.argv[2], "no script has a value in it"


def test_what_a_job_needs() -> None:
    gib = 1 << 30
    assert needs_of(step("cargo", jobs_memory="7g"), None) == JobNeeds(processors=1, memory=7 * gib)
    assert needs_of(step("cmake"), None).memory < needs_of(step("cmake"), CUDA).memory, "kernels need more"
    assert needs_of(step("wheel", env={"NVCC_THREADS": "2"}), CUDA).processors == 2
    assert needs_of(step("wheel", env={"NVCC_THREADS": "many"}), CUDA).processors == 1


@pytest.mark.parametrize(
    ("program", "base"), [("nvcc", "cuda-devel"), ("hipcc", "rocm-devel"), ("cargo", "rust-devel")]
)
def test_a_missing_compiler_names_a_base(program: str, base: str) -> None:
    assert f"bases/{base}.yaml" in missing_program(program, "step").render()
