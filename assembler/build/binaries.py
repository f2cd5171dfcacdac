"""What was built, seen by the loader: a program or library must not look for its libraries where none will be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.build.elf import Elf, read_elf
from assembler.build.harvest import Harvest
from assembler.errors import StepError

_ORIGINS: Final = ("$ORIGIN", "${ORIGIN}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """A program or shared library of a harvest: `label` is artifact and path for people, `path` is on the host."""

    label: str
    path: Path
    elf: Elf


def binaries(harvest: Harvest) -> tuple[Binary, ...]:
    """The programs and shared libraries of a harvest, each file once."""
    found: dict[Path, Binary] = {}
    for name, items in harvest.items():
        for item in items:
            if item.is_file and item.source not in found:
                elf = read_elf(item.source)
                if elf and elf.kind != "relocatable":
                    found[item.source] = Binary(label=f"{name}: {item.path}", path=item.source, elf=elf)
    return tuple(found.values())


def check_search_paths(built: Sequence[Binary], step: str, forbidden: Sequence[str]) -> None:
    """StepError when a file would look for libraries in a `forbidden` directory, or in the current one."""
    problems = [f"{one.label}: {problem}" for one in built for problem in _problems(one.elf, forbidden)]
    if problems:
        raise StepError(
            "built files would look for their libraries where the image has none",
            place=step,
            detail=sorted(problems),
            hint="link with `-Wl,-rpath,$ORIGIN` and by `-l`; with cmake, leave CMAKE_INSTALL_RPATH and"
            " CMAKE_BUILD_WITH_INSTALL_RPATH as they are",
        )


def _problems(elf: Elf, forbidden: Sequence[str]) -> Iterator[str]:
    for name, directories in (("RPATH", elf.rpath), ("RUNPATH", elf.runpath)):
        for directory in directories:
            if what := _fault(directory, forbidden):
                yield f"{name} `{':'.join(directories)}` {what}"
                break
    for library in elf.needed:
        # A library without SONAME that was linked by its path is needed by that path.
        if "/" in library and (what := _fault(library, forbidden)):
            yield f"the needed library `{library}` {what}"


def _fault(path: str, forbidden: Sequence[str]) -> str | None:
    """What is wrong with a place to look for libraries, or None."""
    if not path:
        return "has an empty entry: the current directory"
    if path.startswith("/"):
        inside = any(path == place or path.startswith(f"{place}/") for place in forbidden)
        return f"names `{path}`, which is only there while it is built" if inside else None
    if path.partition("/")[0] in _ORIGINS:
        return None
    return f"names `{path}`, which depends on the current directory"
