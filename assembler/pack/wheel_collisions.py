"""Files that two wheels both bring, with different contents.

Installers let the last wheel have its way, silently, and in an order that nobody chose. Many wheels that people
use together do it (a `tests` package at the top, by mistake), so it is no error here either: layers have an order,
the upper one is seen, and whoever builds the image is told. Equal contents, such as empty `__init__.py` files of
namespaces, are no matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from assembler.pack.members import digest_text
from assembler.tree.entry import Entry, Slice, ZipMember


@dataclass(frozen=True, slots=True, kw_only=True)
class Collision:
    """A path of the image that two wheels have, by their labels; the one of `upper` is seen."""

    path: str
    lower: str
    upper: str

    def __str__(self) -> str:
        return (
            f"`/{self.path}` is in {self.lower} and in {self.upper} and differs; the one of {self.upper} is used"
        )


class Collisions:
    """Collects what wheels bring, lowest first."""

    def __init__(self) -> None:
        self.found: list[Collision] = []
        self._files: dict[str, tuple[str, str]] = {}
        self._directories: dict[str, str] = {}

    def add(self, label: str, entries: Iterable[Entry]) -> None:
        """The files of one wheel."""
        for entry in entries:
            path, digest = entry.path, _digest(entry)
            before = self._files.get(path)
            if before and before[1] != label and before[0] != digest:
                self.found.append(Collision(path=path, lower=before[1], upper=label))
            elif path in self._directories:
                self.found.append(Collision(path=path, lower=self._directories[path], upper=label))
            self._files[path] = digest, label
            self._add_directory(path.rpartition("/")[0], label)

    def _add_directory(self, path: str, label: str) -> None:
        while path and path not in self._directories:
            self._directories[path] = label
            file = self._files.get(path)
            if file:
                self.found.append(Collision(path=path, lower=file[1], upper=label))
            path = path.rpartition("/")[0]


def _digest(entry: Entry) -> str:
    """What tells contents apart: the hash of RECORD where there is one."""
    content = entry.content
    if isinstance(content, ZipMember):
        return content.expected or f"{content.size} {content.crc}"
    if isinstance(content, bytes):
        return f"sha256={digest_text(hashlib.sha256(content).digest())}"
    if isinstance(content, Slice | Path):
        return ""  # compiled files: their sources tell
    return entry.link
