"""The nvcc and hipcc toolchains: each source to an object of its own, several at a time, and all to one file.

Objects are compiled by xargs, which starts argument lists and no shell. With a compiler cache in the container
nvcc runs behind it; hipcc does not, since ccache knows no HIP with several architectures.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from assembler.build.toolchains import (
    BUILD,
    SOURCE,
    AcceleratorWish,
    Command,
    Toolchain,
    common_environment,
    split_architecture,
)
from assembler.errors import ManifestError, StepError

_OBJECTS: Final = "objects"
# JOBS WORDS BEHIND ARGUMENT…: as many commands as there are groups of WORDS arguments.
_EACH: Final = """\
jobs=$1 words=$2 behind=$3; shift 3
command -v "$behind" >/dev/null || behind=env
printf '%s\\0' "$@" | exec xargs -0 -n "$words" -P "$jobs" "$behind"
"""


class KernelWish(Protocol):
    """What the options of nvcc and hipcc have in common."""

    @property
    def sources(self) -> tuple[str, ...]: ...
    @property
    def output(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def include(self) -> tuple[str, ...]: ...
    @property
    def library_directories(self) -> tuple[str, ...]: ...
    @property
    def libraries(self) -> tuple[str, ...]: ...
    @property
    def definitions(self) -> Mapping[str, str]: ...
    @property
    def standard(self) -> str: ...
    @property
    def optimize(self) -> str: ...
    @property
    def relocatable(self) -> bool: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def link_options(self) -> tuple[str, ...]: ...


class NvccWish(KernelWish, Protocol):
    """The options of the nvcc toolchain, as the manifest says them."""

    @property
    def runtime(self) -> str: ...


def nvcc(
    options: NvccWish, accelerator: AcceleratorWish | None, jobs: int, source: Path, *, behind: str = "ccache"
) -> Toolchain:
    """Compile CUDA. `source` is where the source is on this host, to find what the patterns match; `behind` is the
    compiler cache that it runs behind if that is on PATH.

    ManifestError without architectures to compile for, StepError when a pattern matches nothing.
    """
    if not (accelerator and accelerator.cuda):
        raise ManifestError(
            "nvcc needs architectures to compile for", hint="add `accelerator: {cuda: [sm_90]}` to the manifest"
        )
    files = _files(source, options.sources)
    at_once = max(1, min(jobs, len(files)))
    common = (
        *gencode(accelerator.cuda),
        *(("-rdc=true",) if options.relocatable else ()),
        *(("-Xcompiler=-fPIC",) if options.kind == "library" else ()),
    )
    threads = f"--threads={max(1, jobs // at_once)}"
    compile_words = ("nvcc", *common, threads, *_compile_options(options))
    link = (
        "nvcc",
        *common,
        *(("-shared",) if options.kind == "library" else ()),
        f"-cudart={options.runtime}",
    )
    return _toolchain(options, accelerator, jobs, files, at_once, compile_words, link, behind=behind)


def hipcc(options: KernelWish, accelerator: AcceleratorWish | None, jobs: int, source: Path) -> Toolchain:
    """Compile HIP; as `nvcc`."""
    if not (accelerator and accelerator.rocm):
        raise ManifestError(
            "hipcc needs architectures to compile for",
            hint="add `accelerator: {rocm: [gfx90a]}` to the manifest",
        )
    files = _files(source, options.sources)
    at_once = max(1, min(jobs, len(files)))
    common = (
        *(f"--offload-arch={architecture}" for architecture in dict.fromkeys(accelerator.rocm)),
        *(("-fgpu-rdc",) if options.relocatable else ()),
        *(("-fPIC",) if options.kind == "library" else ()),
    )
    link_only = ("--hip-link",) if options.relocatable else ()
    link = ("hipcc", *common, *link_only, *(("-shared",) if options.kind == "library" else ()))
    compile_words = ("hipcc", *common, *_compile_options(options))
    return _toolchain(options, accelerator, jobs, files, at_once, compile_words, link, behind="env")


def gencode(architectures: Sequence[str]) -> tuple[str, ...]:
    """nvcc's options for architectures: machine code of each, and portable code where that is asked for.

    >>> gencode(["sm_80", "sm_90a+ptx"])  # doctest: +NORMALIZE_WHITESPACE
    ('-gencode=arch=compute_80,code=sm_80', '-gencode=arch=compute_90a,code=sm_90a',
     '-gencode=arch=compute_90a,code=compute_90a')
    """
    portable: dict[str, bool] = {}
    for number, ptx in map(split_architecture, architectures):
        portable[number] = portable.get(number, False) or ptx
    # One option for each: in a list, nvcc's link step stumbles over the bracket behind `compute_…`.
    return tuple(
        f"-gencode=arch=compute_{number},code={kind}_{number}"
        for number, ptx in portable.items()
        for kind in (("sm", "compute") if ptx else ("sm",))
    )


def _files(source: Path, patterns: Sequence[str]) -> tuple[str, ...]:
    """The files that the patterns match, each once; the order is that of the patterns, then of the names."""
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = sorted(
            path.relative_to(source).as_posix()
            for path in source.glob(pattern.strip("/"))
            if path.is_file() and not path.is_symlink()
        )
        if not matched:
            raise StepError(f"`{pattern}` matches nothing in the source")
        found.update(dict.fromkeys(matched))
    return tuple(found)


def _compile_options(options: KernelWish) -> tuple[str, ...]:
    return (
        f"-O{options.optimize}",
        f"-std={options.standard}",
        *(f"-D{name}={value}" if value else f"-D{name}" for name, value in options.definitions.items()),
        *(f"-I{posixpath.normpath(posixpath.join(SOURCE, directory))}" for directory in options.include),
        *options.options,
    )


def _toolchain(
    options: KernelWish,
    accelerator: AcceleratorWish,
    jobs: int,
    files: Sequence[str],
    at_once: int,
    compile_words: Sequence[str],
    link: Sequence[str],
    *,
    behind: str,
) -> Toolchain:
    objects = [f"{BUILD}/{_OBJECTS}/{number}-{posixpath.basename(name)}.o" for number, name in enumerate(files)]
    words: list[str] = []
    for name, made in zip(files, objects, strict=True):
        words += [*compile_words, "-c", f"{SOURCE}/{name}", "-o", made]
    count = len(words) // len(files)
    output = posixpath.normpath(posixpath.join(BUILD, options.output))
    program = compile_words[0]
    libraries = (
        *(f"-L{directory}" for directory in options.library_directories),
        *(f"-l{name}" for name in options.libraries),
    )
    return Toolchain(
        commands=(
            Command(argv=("mkdir", "-p", f"{BUILD}/{_OBJECTS}", posixpath.dirname(output)), serial=True),
            Command(
                argv=("sh", "-c", _EACH, "sh", str(at_once), str(count), behind, *words),
                called=f"{program} -c {' '.join(files)}",
            ),
            Command(argv=(*link, *objects, "-o", output, *libraries, *options.link_options), serial=True),
        ),
        environment=common_environment(accelerator, jobs),
        programs=(program, "xargs"),
        cached="path",
    )
