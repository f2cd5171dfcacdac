"""Toolchains: what a compile step's options mean as commands, environment and programs that must be there.

Sources are at `/src` (read-only), the build directory at `/build`, caches below `/cache`: always the same places,
so that a warm compiler cache hits and equal inputs give equal bytes. No shell reads a value from a manifest.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from assembler.errors import StepError

SOURCE: Final = "/src"
BUILD: Final = "/build"

Way = Literal["launcher", "path"]
"""How a compiler cache gets before the compilers: asked for by CMake, or found first on PATH."""

_INSTALLED: Final = "assemble-installed"
_GENERATOR_PROGRAMS: Final = {"Ninja": "ninja", "Ninja Multi-Config": "ninja", "Unix Makefiles": "make"}
_PACKAGES: Final = {
    "ninja": "ninja-build",
    "c++": "g++",
    "cc": "gcc",
    "strip": "binutils",
    "xargs": "findutils",
    "autoreconf": "autoconf, automake, libtool",
}
"""Debian packages of programs, where the names differ."""

_BASES: Final = {"nvcc": "cuda-devel", "hipcc": "rocm-devel", "cargo": "rust-devel", "rustc": "rust-devel"}
"""Bases of ours that have a program which no package of Debian stable has, or only an old one."""


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
    """One command of a step and the directory of the container that it runs in.

    `environment` is what this command has beside the step's. One that `fetches` has the network whatever the step
    says: what it brings is pinned in the source. One that `prepares` compiles what the toolchain keeps; it may
    fail, since the commands after it do all that it left undone. One that is `serial` uses one processor, however
    many jobs there are. `called` stands for it in messages.
    """

    argv: tuple[str, ...]
    workdir: str = BUILD
    environment: Mapping[str, str] = field(default_factory=dict)
    fetches: bool = False
    prepares: bool = False
    serial: bool = False
    called: str = ""

    def behind(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Its argument list behind these words; what only fetches goes without them."""
        return self.argv if self.fetches else (*words, *self.argv)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A directory below `/build` that is kept between runs under a key; one of the same group is a beginning.

    Both are texts that everything has gone into on which the content depends, the container's image apart.
    """

    directory: str
    group: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """What a compile step does: commands in order, their environment, and where artifacts are, below `/build`.

    `cached` says how a compiler cache gets before the compilers.
    `caches` are directories of our cache by name, and where the container has them; they are shared by steps that
    run at the same time, so whoever uses one has to lock it. `tools` are files of ours by their place there.
    """

    commands: tuple[Command, ...]
    environment: Mapping[str, str]
    programs: tuple[str, ...] = ()
    harvest_from: str = ""
    caches: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, Path] = field(default_factory=dict)
    prepared: Prepared | None = None
    cached: Way = "launcher"


def cmake(options: CMakeWish, accelerator: AcceleratorWish | None, jobs: int) -> Toolchain:
    """Configure, build, and install where that is asked for."""
    source = posixpath.normpath(posixpath.join(SOURCE, options.source_directory))
    definitions = {
        "CMAKE_BUILD_TYPE": options.build_type,
        "CMAKE_INSTALL_PREFIX": options.prefix,
        **_search_paths(installs=options.install),
        **_cmake_architectures(accelerator),
        **options.definitions,
    }
    named = [f"-D{name}={value}" for name, value in definitions.items()]
    configure = Command(argv=("cmake", "-S", source, "-B", BUILD, "-G", options.generator, *named), serial=True)
    targets = ("--target", *options.targets) if options.targets else ()
    build = Command(argv=("cmake", "--build", BUILD, *targets, "-j", str(jobs)))
    installs: list[Command] = []
    if options.install:
        whole: tuple[str, ...] = ("cmake", "--install", BUILD)
        chosen = [(*whole, "--component", name) for name in options.components]
        installs = [Command(argv=argv, serial=True) for argv in chosen or [whole]]
    return Toolchain(
        commands=(configure, build, *installs),
        environment={
            **common_environment(accelerator, jobs),
            **({"DESTDIR": f"{BUILD}/{_INSTALLED}"} if options.install else {}),
        },
        programs=("cmake", _GENERATOR_PROGRAMS.get(options.generator, "")),
        harvest_from=posixpath.join(_INSTALLED, options.prefix.strip("/")) if options.install else "",
    )


def _search_paths(*, installs: bool) -> dict[str, str]:
    """Definitions by which programs find their libraries in whatever directory they are put together.

    Installed files get their own search path, beside them and in the `lib` beside their directory, when they are
    installed; until then theirs leads through the build directory, relatively, so that a program of the build can
    run. What is taken out of the build directory as it is has its final one from the start, and finds its
    libraries beside it.
    """
    if installs:
        return {"CMAKE_INSTALL_RPATH": "$ORIGIN;$ORIGIN/../lib", "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON"}
    return {"CMAKE_INSTALL_RPATH": "$ORIGIN", "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON"}


def script(options: ScriptWish, accelerator: AcceleratorWish | None, jobs: int) -> Toolchain:
    """The commands as they stand, in the source directory. What they make has to go to `/build`."""
    return Toolchain(
        commands=tuple(Command(argv=tuple(command), workdir=SOURCE) for command in options.commands),
        environment=common_environment(accelerator, jobs),
        cached="path",
    )


def missing_program(program: str, step: str) -> StepError:
    """The error for a program that the container does not have, with the line that adds it."""
    if program in _BASES:
        return StepError(
            f"the devel base has no `{program}`",
            place=step,
            hint=f"compile in a base that has it, such as `devel: bases/{_BASES[program]}.yaml`",
        )
    package = _PACKAGES.get(program, program)
    return StepError(
        f"the devel base has no `{program}`",
        place=step,
        hint=f"add it to the compile step: `packages: {{apt: [{package}]}}`",
    )


# accelerators


def common_environment(accelerator: AcceleratorWish | None, jobs: int) -> dict[str, str]:
    """What every toolchain has in its environment: jobs, and architectures."""
    environment = {
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
    split = [split_architecture(architecture) for architecture in architectures]
    return ";".join(number if portable else f"{number}-real" for number, portable in split)


def torch_cuda_list(architectures: Sequence[str]) -> str:
    """TORCH_CUDA_ARCH_LIST.

    >>> torch_cuda_list(["sm_80", "sm_90a", "sm_120+ptx"])
    '8.0;9.0a;12.0+PTX'
    """
    words = []
    for number, portable in map(split_architecture, architectures):
        digits = number.rstrip("af")
        words.append(f"{digits[:-1]}.{digits[-1]}{number[len(digits) :]}{'+PTX' if portable else ''}")
    return ";".join(words)


def split_architecture(architecture: str) -> tuple[str, bool]:
    """`sm_90a+ptx` → `90a` and whether portable code is wanted."""
    name, _, extra = architecture.partition("+")
    return name.removeprefix("sm_"), extra == "ptx"
