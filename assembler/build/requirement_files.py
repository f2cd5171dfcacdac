"""Requirements files: which files one consists of, and what they require.

uv reads them; here is only what must be known besides: every file whose change makes the lock stale, and the
projects that are named directly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.errors import ManifestError

_INCLUDE: Final = re.compile(r"(?:-r|--requirements?|-c|--constraints?)(?:\s+|\s*=\s*)(?P<path>\S+)")


def requirement_lines(path: Path) -> Iterator[str]:
    """The requirements of a requirements file and of those that it includes, without options and comments."""
    for file in requirement_files(path):
        if file.is_constraint:
            continue
        for line in _logical_lines(file.path):
            text = re.split(r"\s+--", line)[0].strip()
            if text and not text.startswith("-"):
                yield text


@dataclass(frozen=True, slots=True)
class RequirementFile:
    """A requirements file, or one that it includes as requirements or as constraints."""

    path: Path
    is_constraint: bool


def requirement_files(path: Path) -> tuple[RequirementFile, ...]:
    """A requirements file and what it includes, each once; ManifestError for one that is not there."""
    found: dict[Path, RequirementFile] = {}
    queue = [RequirementFile(path, is_constraint=False)]
    while queue:
        file = queue.pop(0)
        if file.path.resolve() in found:
            continue
        found[file.path.resolve()] = file
        for line in _logical_lines(file.path):
            match = _INCLUDE.fullmatch(line)
            if match and "://" not in match["path"]:
                constrains = file.is_constraint or line.startswith(("-c", "--c"))
                queue.append(RequirementFile(file.path.parent / match["path"], is_constraint=constrains))
    return tuple(found.values())


def _logical_lines(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"the requirements file cannot be read: {error}", place=str(path)) from error
    for line in re.sub(r"\\\r?\n", "", text).splitlines():
        if stripped := re.sub(r"(?:^|\s)#.*$", "", line).strip():
            yield stripped
