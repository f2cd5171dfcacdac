"""An entry: one path of a tree, with everything that a layer says about it and nothing that it does not.

There is no time in it (the packer stamps one for all) and no owner name. Paths are relative POSIX paths without
`.` and `..`; `Entry` does not check them, `assembler.tree.builder` does, because it knows whom to blame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

Kind = Literal["file", "directory", "symlink", "hardlink", "whiteout", "opaque"]


@dataclass(frozen=True, slots=True)
class Slice:
    """`size` bytes of a host file from `offset`: a member of an uncompressed tar, read without unpacking."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file of `size` bytes inside the zip archive `path`, read and proved without unpacking.

    Its local header is at `start`, its bytes end before `end`, where the next member begins. `packed` is the
    number of its stored or `deflated` bytes, `crc` their CRC-32 when plain, `name` its name in the archive.
    `expected` is `ALGORITHM=DIGEST` as a wheel's RECORD has it, or empty when nothing but the checksum is known.
    `described` says that sizes and checksum may come after the bytes (a data descriptor). `archive` names the file
    for people.
    """

    path: Path
    archive: str
    name: str
    start: int
    end: int
    packed: int
    size: int
    crc: int
    deflated: bool
    described: bool
    expected: str = ""


Content: TypeAlias = Path | Slice | bytes | ZipMember
"""Where the bytes of a file are: a host file, a part of one, in memory, or in a zip archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One path of a tree.

    `link` is the target of a symlink as it is stored, or the path (in this tree) of a hard link's first name.
    A whiteout deletes `path` of the layers below; an opaque entry hides everything below the directory `path`.
    """

    path: str
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    link: str = ""
    content: Content | None = None
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
