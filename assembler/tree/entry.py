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


Content: TypeAlias = Path | Slice | bytes
"""Where the bytes of a file are: a host file, a part of one, or in memory."""


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
