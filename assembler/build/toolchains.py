"""Toolchains: what a compile step's options mean as commands, environment and programs that must be there.

Sources are at `/src` (read-only), the build directory at `/build`, caches below `/cache`: always the same places,
so that a warm compiler cache hits and equal inputs give equal bytes. No shell reads a value from a manifest.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from assembler.errors import StepError

SOURCE: Final = "/src"
BUILD: Final = "/build"
CCACHE: Final = "/cache/ccache"
STATISTICS: Final = "/cache/statistics"
STATISTICS_FILE: Final = "ccache.txt"

_INSTALLED: Final = "assemble-installed"
_LANGUAGES: Final = ("C", "CXX", "CUDA", "HIP", "OBJC", "OBJCXX")
_GENERATOR_PROGRAMS: Final = {"Ninja": "ninja", "Ninja Multi-Config": "ninja", "Unix Makefiles": "make"}
_PACKAGES: Final = {"ninja": "ninja-build", "c++": "g++", "cc": "gcc", "strip": "binutils", "cargo": "cargo"}
"""Debian packages of programs, where the names differ."""


class CMakeWish(Protocol):
    """The options of the cmake toolchain, as the manifest says them."""

    @property
    def source_directory(self) -> str: ...
    @property
    def generator(self) -> str: ...
    @property
    def build_type(self) -> str: ...
    @property
    def definitions(self) -> Mapping[str, str]: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def install(self) -> bool: ...
    @property
    def prefix(self) -> str: ...
    @property
    def components(self) -> tuple[str, ...]: ...


class ScriptWish(Protocol):
    """The options of the script toolchain, as the manifest says them."""

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]: ...


class AcceleratorWish(Protocol):
    """GPU architectures: `sm_90`, `sm_90+ptx`; `gfx90a`."""

    @property
    def cuda(self) -> tuple[str, ...]: ...
    @property
    def rocm(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of a step and the directory of the container that it runs in."""

    argv: tuple[str, ...]
    workdir: str = BUILD


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """What a compile step does: commands in order, their environment, and where artifacts are, below `/build`."""

    commands: tuple[Command, ...]
    environment: Mapping[str, str]
    programs: tuple[str, ...] = ()
    harvest_from: str = ""
    writes_to: tuple[str, ...] = field(default=(BUILD,))


def cmake(options: CMakeWish, accelerator: AcceleratorWish | None, jobs: int) -> Toolchain:
    """Configure, build, and install where that is asked for."""
    source = posixpath.normpath(posixpath.join(SOURCE, options.source_directory))
    # A program finds its libraries beside it; an installed one also in the `lib` beside its own directory.
    origin = "$ORIGIN;$ORIGIN/../lib" if options.install else "$ORIGIN"
    definitions = {
        "CMAKE_BUILD_TYPE": options.build_type,
        "CMAKE_INSTALL_PREFIX": options.prefix,
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": origin,
        **_cmake_architectures(accelerator),
        **options.definitions,
    }
    named = [f"-D{name}={value}" for name, value in definitions.items()]
    configure = Command(argv=("cmake", "-S", source, "-B", BUILD, "-G", options.generator, *named))
    targets = ("--target", *options.targets) if options.targets else ()
    build = Command(argv=("cmake", "--build", BUILD, *targets, "-j", str(jobs)))
    installs: list[Command] = []
    if options.install:
        whole: tuple[str, ...] = ("cmake", "--install", BUILD)
        chosen = [(*whole, "--component", name) for name in options.components]
        installs = [Command(argv=argv) for argv in chosen or [whole]]
    return Toolchain(
        commands=(configure, build, *installs),
        environment={
            **_environment(accelerator, jobs),
            **({"DESTDIR": f"{BUILD}/{_INSTALLED}"} if options.install else {}),
        },
        programs=("cmake", _GENERATOR_PROGRAMS.get(options.generator, "")),
        harvest_from=posixpath.join(_INSTALLED, options.prefix.strip("/")) if options.install else "",
    )


def script(options: ScriptWish, accelerator: AcceleratorWish | None, jobs: int) -> Toolchain:
    """The commands as they stand, in the source directory. What they make has to go to `/build`."""
    return Toolchain(
        commands=tuple(Command(argv=tuple(command), workdir=SOURCE) for command in options.commands),
        environment=_environment(accelerator, jobs),
    )


def with_ccache(environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment that lets CMake (3.17 and newer) put ccache before every compiler.

    CMake reads these as defaults of its variables, so definitions of a manifest win, and a project without CUDA is
    not warned about a definition that it does not use.
    """
    launchers = {f"CMAKE_{language}_COMPILER_LAUNCHER": "ccache" for language in _LANGUAGES}
    return {**launchers, **environment}


def missing_program(program: str, step: str) -> StepError:
    """The error for a program that the container does not have, with the line that adds it."""
    package = _PACKAGES.get(program, program)
    return StepError(
        f"the devel base has no `{program}`",
        place=step,
        hint=f"add it to the compile step: `packages: {{apt: [{package}]}}`",
    )


# accelerators


def _environment(accelerator: AcceleratorWish | None, jobs: int) -> dict[str, str]:
    environment = {
        "CCACHE_DIR": CCACHE,
        "CCACHE_COMPILERCHECK": "content",  # an image that is made again has the same compiler with other times
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_MAXSIZE": "20G",
        "CCACHE_STATSLOG": f"{STATISTICS}/{STATISTICS_FILE}",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
        "MAX_JOBS": str(jobs),
    }
    if accelerator and accelerator.cuda:
        environment["TORCH_CUDA_ARCH_LIST"] = torch_cuda_list(accelerator.cuda)
        # Names of temporary files, with nvcc's process id in them, would get into the objects (nvcc's manual).
        environment["NVCC_APPEND_FLAGS"] = "--objdir-as-tempdir"
    if accelerator and accelerator.rocm:
        environment["PYTORCH_ROCM_ARCH"] = ";".join(accelerator.rocm)
    return environment


def _cmake_architectures(accelerator: AcceleratorWish | None) -> dict[str, str]:
    definitions = {}
    if accelerator and accelerator.cuda:
        definitions["CMAKE_CUDA_ARCHITECTURES"] = cmake_cuda_list(accelerator.cuda)
    if accelerator and accelerator.rocm:
        definitions["CMAKE_HIP_ARCHITECTURES"] = ";".join(accelerator.rocm)
    return definitions


def cmake_cuda_list(architectures: Sequence[str]) -> str:
    """CMAKE_CUDA_ARCHITECTURES: machine code only (`-real`), or with portable code too (the bare number).

    >>> cmake_cuda_list(["sm_80", "sm_90a", "sm_120+ptx"])
    '80-real;90a-real;120'
    """
    split = [_split(architecture) for architecture in architectures]
    return ";".join(number if portable else f"{number}-real" for number, portable in split)


def torch_cuda_list(architectures: Sequence[str]) -> str:
    """TORCH_CUDA_ARCH_LIST.

    >>> torch_cuda_list(["sm_80", "sm_90a", "sm_120+ptx"])
    '8.0;9.0a;12.0+PTX'
    """
    words = []
    for number, portable in map(_split, architectures):
        digits = number.rstrip("af")
        words.append(f"{digits[:-1]}.{digits[-1]}{number[len(digits) :]}{'+PTX' if portable else ''}")
    return ";".join(words)


def _split(architecture: str) -> tuple[str, bool]:
    """`sm_90a+ptx` → `90a` and whether portable code is wanted."""
    name, _, extra = architecture.partition("+")
    return name.removeprefix("sm_"), extra == "ptx"
