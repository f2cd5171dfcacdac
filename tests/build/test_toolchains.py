"""Toolchains: options become argument lists and environment, portable unless told otherwise, without a shell."""

from __future__ import annotations

from typing import Any

import pytest

from assembler.build import toolchains
from assembler.build.toolchains import Toolchain, cmake_cuda_list, missing_program, torch_cuda_list
from assembler.manifest.models import Accelerator, CMakeOptions, ScriptOptions


def cmake(
    options: dict[str, Any] | None = None, accelerator: Accelerator | None = None, jobs: int = 3
) -> Toolchain:
    return toolchains.cmake(CMakeOptions.model_validate(options or {}), accelerator, jobs)


def definitions(toolchain: Toolchain) -> dict[str, str]:
    """-D options of the configure command; the last one of a name wins, as with CMake."""
    words = [word for word in toolchain.commands[0].argv if word.startswith("-D")]
    return dict(word.removeprefix("-D").split("=", 1) for word in words)


def test_cmake_without_a_wish() -> None:
    toolchain = cmake()
    configure, build = (command.argv for command in toolchain.commands)
    assert configure[:7] == ("cmake", "-S", "/src", "-B", "/build", "-G", "Ninja")
    assert build == ("cmake", "--build", "/build", "-j", "3")
    assert definitions(toolchain) == {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_INSTALL_PREFIX": "/usr/local",
        "CMAKE_INSTALL_RPATH": "$ORIGIN",
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    }
    assert toolchain.programs == ("cmake", "ninja")
    assert toolchain.harvest_from == ""
    assert all(command.workdir == "/build" for command in toolchain.commands)


def test_every_option_of_cmake_has_its_word() -> None:
    toolchain = cmake(
        {
            "source-directory": "vendor/llama.cpp",
            "generator": "Unix Makefiles",
            "build-type": "RelWithDebInfo",
            "definitions": {"GGML_NATIVE": "OFF", "CMAKE_BUILD_TYPE": "Debug"},
            "targets": ["llama-server", "llama-cli"],
        }
    )
    configure, build = (command.argv for command in toolchain.commands)
    assert configure[:7] == ("cmake", "-S", "/src/vendor/llama.cpp", "-B", "/build", "-G", "Unix Makefiles")
    assert definitions(toolchain)["GGML_NATIVE"] == "OFF"
    assert definitions(toolchain)["CMAKE_BUILD_TYPE"] == "Debug", "what the manifest defines wins"
    assert build == ("cmake", "--build", "/build", "--target", "llama-server", "llama-cli", "-j", "3")
    assert "make" in toolchain.programs


def test_cmake_installs_components_below_a_prefix_of_its_own() -> None:
    toolchain = cmake({"install": True, "prefix": "/opt/ucx", "components": ["runtime", "tools"]})
    assert [command.argv for command in toolchain.commands[2:]] == [
        ("cmake", "--install", "/build", "--component", "runtime"),
        ("cmake", "--install", "/build", "--component", "tools"),
    ]
    assert toolchain.environment["DESTDIR"] == f"/build/{toolchain.harvest_from.partition('/')[0]}"
    assert toolchain.harvest_from.endswith("/opt/ucx")
    assert definitions(toolchain)["CMAKE_INSTALL_PREFIX"] == "/opt/ucx"
    assert [command.argv for command in cmake({"install": True}).commands[2:]] == [
        ("cmake", "--install", "/build")
    ]
    assert "DESTDIR" not in cmake().environment


@pytest.mark.parametrize("install", [True, False])
def test_search_paths_are_relative(install: bool) -> None:
    found = definitions(cmake({"install": install}))
    assert all(path.startswith("$ORIGIN") for path in found["CMAKE_INSTALL_RPATH"].split(";"))
    assert {"CMAKE_BUILD_WITH_INSTALL_RPATH", "CMAKE_BUILD_RPATH_USE_ORIGIN"} & found.keys()


def test_a_hostile_value_stays_one_word() -> None:
    value = '"; rm -rf / #`id`$(id)\nx'
    toolchain = cmake({"definitions": {"NAME": value}})
    assert f"-DNAME={value}" in toolchain.commands[0].argv
    script = toolchains.script(ScriptOptions.model_validate({"commands": [["make", value]]}), None, 1)
    assert [command.argv for command in script.commands] == [("make", value)]
    for command in (*toolchain.commands, *script.commands):
        assert not {"sh", "bash", "-c"} & set(command.argv)


def test_a_script_runs_in_the_source() -> None:
    options = ScriptOptions.model_validate({"commands": [["make", "-C", "lib"], ["./install.sh", "/build"]]})
    toolchain = toolchains.script(options, None, 5)
    assert [(command.argv, command.workdir) for command in toolchain.commands] == [
        (("make", "-C", "lib"), "/src"),
        (("./install.sh", "/build"), "/src"),
    ]
    assert toolchain.environment["MAX_JOBS"] == "5"


def test_jobs_are_in_the_command_and_in_the_environment_and_nowhere_else() -> None:
    one, other = cmake(jobs=1), cmake(jobs=7)
    assert one.environment["CMAKE_BUILD_PARALLEL_LEVEL"] == "1"
    assert other.environment["MAX_JOBS"] == "7"
    assert one.commands[0] == other.commands[0]
    assert other.commands[1].argv[-2:] == ("-j", "7")


def test_architectures_reach_every_tool_in_its_own_words() -> None:
    cuda = Accelerator(cuda=("sm_80", "sm_90a", "sm_120+ptx"))
    toolchain = cmake(accelerator=cuda)
    assert definitions(toolchain)["CMAKE_CUDA_ARCHITECTURES"] == "80-real;90a-real;120"
    assert toolchain.environment["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0a;12.0+PTX"
    assert toolchain.environment["NVCC_APPEND_FLAGS"] == "--objdir-as-tempdir"
    rocm = cmake(accelerator=Accelerator(rocm=("gfx90a", "gfx942")))
    assert definitions(rocm)["CMAKE_HIP_ARCHITECTURES"] == "gfx90a;gfx942"
    assert rocm.environment["PYTORCH_ROCM_ARCH"] == "gfx90a;gfx942"
    assert not any(name in cmake().environment for name in ("TORCH_CUDA_ARCH_LIST", "NVCC_APPEND_FLAGS"))
    wish = {"definitions": {"CMAKE_CUDA_ARCHITECTURES": "75"}}
    assert definitions(cmake(wish, cuda))["CMAKE_CUDA_ARCHITECTURES"] == "75"


@pytest.mark.parametrize(
    ("architecture", "for_cmake", "for_torch"),
    [("sm_75", "75-real", "7.5"), ("sm_100f", "100f-real", "10.0f"), ("sm_90+ptx", "90", "9.0+PTX")],
)
def test_names_of_architectures(architecture: str, for_cmake: str, for_torch: str) -> None:
    assert cmake_cuda_list([architecture]) == for_cmake
    assert torch_cuda_list([architecture]) == for_torch


@pytest.mark.parametrize(
    ("program", "package"), [("ninja", "ninja-build"), ("cmake", "cmake"), ("strip", "binutils")]
)
def test_a_missing_program_names_its_package(program: str, package: str) -> None:
    text = missing_program(program, "llama.server").render()
    assert f"llama.server: the devel base has no `{program}`" in text
    assert f"apt: [{package}]" in text
