"""What was built has code for the GPUs that the manifest asks for, and for no others.

Files without GPU code are not asked. In a file with it, every architecture that was asked of its kind (CUDA or
ROCm) must be there; what is there and was not asked for costs its users disk and load time, or says that a flag
did not get through, so that the code is for whatever the compiler thought of.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from assembler.build.gpu_code import architectures_in, gpu_architectures
from assembler.build.harvest import Harvest
from assembler.build.toolchains import split_architecture
from assembler.errors import StepError

Strictness = Literal["exact", "at-least", "any"]

_MOST_BYTES: Final = 4 << 30
_MOST_FILES: Final = 50_000


class Wish(Protocol):
    """GPU architectures as the manifest names them."""

    @property
    def cuda(self) -> tuple[str, ...]: ...
    @property
    def rocm(self) -> tuple[str, ...]: ...


def check_architectures(
    harvest: Harvest, wish: Wish | None, step: str, *, strictness: Strictness = "exact", required: bool = False
) -> tuple[str, ...]:
    """StepError when a file has not the GPU code that was asked for; the architectures found, sorted.

    With `required`, at least one file has to have some. Wheels are looked into.
    """
    if strictness == "any" or wish is None:
        return ()
    asked = frozenset((*_cuda_names(wish.cuda), *wish.rocm))
    found: set[str] = set()
    problems: list[str] = []
    for label, there in _files(harvest):
        if there is None:
            problems.append(f"{label}: its GPU code cannot be read")
        elif there:
            found |= there
            problems += [f"{label}: {problem}" for problem in _differences(there, asked, strictness)]
    if problems:
        raise StepError(
            "what was built has not the GPU code that was asked for",
            place=step,
            detail=sorted(problems),
            hint="does the build read the variables and definitions that `accelerator` gives it? `architectures:"
            " at-least` allows more, such as that of libraries linked in, `any` checks nothing",
        )
    if required and not found:
        raise StepError("what was built has no GPU code", place=step)
    return tuple(sorted(found))


def _cuda_names(wish: Sequence[str]) -> Iterator[str]:
    for number, portable in map(split_architecture, wish):
        yield f"sm_{number}"
        if portable:
            yield f"compute_{number}"


def _differences(there: frozenset[str], asked: frozenset[str], strictness: Strictness) -> Iterator[str]:
    has_rocm = any(name.startswith("gfx") for name in there)
    has_cuda = any(not name.startswith("gfx") for name in there)
    wanted = {name for name in asked if (has_rocm if name.startswith("gfx") else has_cuda)}
    if missing := sorted(wanted - there):
        yield f"has no code for {_listed(missing)}, only for {_listed(sorted(there))}"
    if strictness == "exact" and (more := sorted(there - asked)):
        yield f"has code for {_listed(more)}, which nobody asked for"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _files(harvest: Harvest) -> Iterator[tuple[str, frozenset[str] | None]]:
    seen: set[Path] = set()
    for name, items in harvest.items():
        for item in items:
            if not item.is_file or item.source in seen:
                continue
            seen.add(item.source)
            label = f"{name}: {item.path}"
            if item.path.endswith(".whl"):
                yield from _in_wheel(item.source, label)
            else:
                yield label, gpu_architectures(item.source)


def _in_wheel(path: Path, label: str) -> Iterator[tuple[str, frozenset[str] | None]]:
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as wheel:
        infos = wheel.infolist()
        if len(infos) > _MOST_FILES or sum(info.file_size for info in infos) > _MOST_BYTES:
            yield label, None
            return
        for info in infos:
            if ".so" in info.filename.rpartition("/")[2]:
                yield f"{label}: {info.filename}", architectures_in(wheel.read(info))
