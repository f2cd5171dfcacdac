"""Builds a tree out of entries from many origins, and refuses what a layer must not say.

Wheels, archives, artifacts and inline files all end here, so the rules that hold for every layer are held here:
no path escapes, nothing lands below a link of the same tree, no two origins disagree about a path, and no
directory entry replaces a symlink of a base that we do not read.

A base with a merged /usr has `/lib -> usr/lib`. A layer with a directory entry `lib/` would replace that link by
an empty directory and leave an image in which nothing starts, so such paths are rewritten to where they lead
anyway, and directories that every base has are not written at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from assembler.errors import UntrustedInputError
from assembler.tree.entry import Content, Entry, Slice, ZipMember

MERGED: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")

_PREFIX: Final = (
    "bin",
    "etc",
    "games",
    "include",
    "lib",
    "lib32",
    "lib64",
    "libexec",
    "libx32",
    "man",
    "sbin",
    "src",
)
_ROOTS: Final = ("boot", "dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp")
BASE_DIRECTORIES: Final = frozenset(
    (
        *_ROOTS,
        *("usr", "usr/local", "usr/share", "usr/local/share", "run/lock"),
        *(f"usr/{name}" for name in _PREFIX),
        *(f"usr/local/{name}" for name in _PREFIX),
        *("var", *(f"var/{name}" for name in ("cache", "lib", "local", "log", "mail", "opt", "spool", "tmp"))),
    )
)
"""Directories that a base has, or whose absence every unpacker makes good. Modes and links are the base's."""

_REWRITES: Final = {
    **{name: f"usr/{name}" for name in MERGED},
    "var/run": "run",
    "var/lock": "run/lock",
}
_REWRITTEN: Final = re.compile(rf"({'|'.join(map(re.escape, _REWRITES))})(?=/|\Z)")
_BAD_PATH: Final = re.compile(r"(?:^|/)(?:\.{0,2}(?:/|\Z)|\.wh\.)|\0")
_KINDS: Final = frozenset(("file", "directory", "symlink", "hardlink", "whiteout", "opaque"))
_COMPARE: Final = 1 << 20


class _Added(NamedTuple):
    entry: Entry
    origin: str


class TreeBuilder:
    """Collects the entries of one tree. `name` names it in errors.

    `usr_merge` rewrites and drops as told above; a whole root file system is built without it. `parents` writes
    parent directories (0755, 0:0) that nobody added and no base surely has; a difference that lies over a known
    base is built without them, since its parents exist and keep their modes.
    """

    def __init__(self, name: str, *, usr_merge: bool = True, parents: bool = True) -> None:
        self.name = name
        self._usr_merge = usr_merge
        self._parents = parents
        self._added: dict[str, _Added] = {}

    def add(self, entry: Entry, origin: str) -> None:
        """Add an entry that came from `origin`.

        UntrustedInputError when the entry is not one that a layer may hold, or when another origin put something
        else at its path. The same thing twice is fine.
        """
        fault = fault_of(entry)
        if fault:
            raise UntrustedInputError(fault, place=origin)
        if self._usr_merge:
            entry = _merged(entry)
            if entry.path in BASE_DIRECTORIES and entry.kind not in {"whiteout", "opaque"}:
                if entry.kind == "directory":
                    return
                raise UntrustedInputError(
                    f"`{entry.path}` is a directory of every base, got a {entry.kind}", place=origin
                )
        name = tar_name(entry)
        known = self._added.setdefault(name, _Added(entry, origin))
        if known.entry is not entry and not _same(known.entry, entry):
            raise UntrustedInputError(
                f"`{entry.path}` is there twice and differs: from {known.origin} and from {origin}",
                place=self.name,
                hint="leave one of them out, or put them into layers of their own; the upper layer wins",
            )

    def entries(self) -> tuple[Entry, ...]:
        """The tree: sorted by path, parents first, each hard link after its target.

        UntrustedInputError when a path lies below something that is no directory, or a hard link leads nowhere.
        """
        directories: set[str] = {""}
        implied: list[Entry] = []
        for entry, origin in self._added.values():
            parent = entry.path.rpartition("/")[0]
            writes = self._parents and entry.kind not in {"whiteout", "opaque"}
            while parent not in directories:
                above = self._added.get(parent)
                if above is not None and above.entry.kind != "directory":
                    raise UntrustedInputError(
                        f"`{entry.path}` (from {origin}) lies below `{parent}`, "
                        f"which is a {above.entry.kind} (from {above.origin})",
                        place=self.name,
                    )
                if above is None and not writes:
                    parent = parent.rpartition("/")[0]
                    continue
                directories.add(parent)
                if above is None and not (self._usr_merge and parent in BASE_DIRECTORIES):
                    implied.append(Entry(path=parent, kind="directory", mode=0o755))
                parent = parent.rpartition("/")[0]
        return arrange([*(added.entry for added in self._added.values()), *implied], self.name)


def fault_of(entry: Entry) -> str | None:
    """What is wrong with this entry by itself, as a fact that names it, or None."""
    path = entry.path
    if entry.kind not in _KINDS:
        return f"`{path}` is a {entry.kind}; expected one of {', '.join(sorted(_KINDS))}"
    if _BAD_PATH.search(path):
        return f"`{path}`: expected a relative path without empty, `.`, `..` and `.wh.` parts"
    if not 0 <= entry.mode <= 0o7777:
        return f"`{path}`: expected a mode of permission bits only, got {entry.mode:o}"
    if entry.size < 0 or entry.uid < 0 or entry.gid < 0:
        return f"`{path}` has a negative size or owner"
    if entry.kind == "file":
        if entry.content is None:
            return f"`{path}` is a file without content"
    elif entry.size:
        return f"`{path}` is a {entry.kind}, yet has a size of {entry.size}"
    if entry.kind == "symlink" and (not entry.link or "\0" in entry.link):
        return f"`{path}` is a symlink with a target that cannot be"
    if entry.kind == "hardlink" and _BAD_PATH.search(entry.link):
        return f"`{path}` is a hard link to `{entry.link}`: expected a path of the same tree"
    if not (path.isascii() and entry.link.isascii()) and not (_is_text(path) and _is_text(entry.link)):
        return f"`{path!a}` has a name or a link that is not UTF-8"
    return None


def tar_name(entry: Entry) -> str:
    """The name under which a layer holds the entry: whiteouts as the image specification's layer.md says."""
    if entry.kind == "whiteout":
        parent, slash, name = entry.path.rpartition("/")
        return f"{parent}{slash}.wh.{name}"
    if entry.kind == "opaque":
        return f"{entry.path}/.wh..wh..opq"
    return entry.path


def arrange(entries: Iterable[Entry], name: str = "tree") -> tuple[Entry, ...]:
    """The one order and form of a set of entries, whatever order they came in.

    Sorted by the bytes of the path, so that parents come first; whiteouts before their siblings, as layer.md
    asks. Of the names of one file the first in order carries the content and the others are hard links to it.
    UntrustedInputError for a path that is there twice, and for a hard link whose target is not in `entries`.
    """
    ordered = sorted(entries, key=_sort_key)
    by_path: dict[str, Entry] = {}
    linked = False
    for entry in ordered:
        path = tar_name(entry)
        if path in by_path:
            raise UntrustedInputError(f"`{path}` is there twice", place=name)
        by_path[path] = entry
        linked = linked or entry.kind == "hardlink"
    if not linked:
        return tuple(ordered)
    first: dict[str, str] = {}
    arranged = []
    for entry in ordered:
        target = _target(entry, by_path, name) if entry.kind == "hardlink" else entry
        if target.kind != "file":
            # A second name of a symlink cannot be told from a second symlink.
            arranged.append(target if target is entry else replace(target, path=entry.path))
            continue
        leader = first.setdefault(target.path, entry.path)
        if leader == entry.path:
            arranged.append(target if target is entry else replace(target, path=entry.path))
        else:
            arranged.append(replace(target, path=entry.path, kind="hardlink", size=0, content=None, link=leader))
    return tuple(arranged)


def _target(link: Entry, by_path: dict[str, Entry], name: str) -> Entry:
    """What a hard link is another name of."""
    seen = {link.path}
    found = link
    while found.kind == "hardlink":
        following = by_path.get(found.link)
        if following is None or following.path in seen or following.kind not in {"file", "symlink", "hardlink"}:
            raise UntrustedInputError(
                f"`{link.path}` is a hard link to `{found.link}`, which is no file of this tree", place=name
            )
        seen.add(following.path)
        found = following
    return found


def _sort_key(entry: Entry) -> bytes:
    path = entry.path.encode("utf-8", "surrogateescape")
    if entry.kind == "whiteout":
        parent, slash, name = path.rpartition(b"/")
        return parent + slash + b"\0" + name
    if entry.kind == "opaque":
        return path + b"/\0"
    return path


def _merged(entry: Entry) -> Entry:
    """The entry where it lies in a base with a merged /usr."""
    path = _rewritten(entry.path)
    link = _rewritten(entry.link) if entry.kind == "hardlink" else entry.link
    return entry if path == entry.path and link == entry.link else replace(entry, path=path, link=link)


def _rewritten(path: str) -> str:
    match = _REWRITTEN.match(path)
    return _REWRITES[match[1]] + path[match.end() :] if match else path


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _same(one: Entry, other: Entry) -> bool:
    """Do both say the same, contents compared byte by byte?"""
    if one == other:
        return True
    if replace(one, content=other.content) != other or one.content is None or other.content is None:
        return False
    if isinstance(one.content, ZipMember) or isinstance(other.content, ZipMember):
        return False  # whoever adds members compares them first: by hash, without reading them
    offset = 0
    while offset < one.size:
        amount = min(_COMPARE, one.size - offset)
        if _read(one.content, offset, amount) != _read(other.content, offset, amount):
            return False
        offset += amount
    return True


def _read(content: Content, offset: int, amount: int) -> bytes:
    if isinstance(content, bytes):
        return content[offset : offset + amount]
    if isinstance(content, ZipMember):
        raise TypeError("a zip member is read by the packer alone")
    path, start = (content.path, content.offset) if isinstance(content, Slice) else (content, 0)
    with Path(path).open("rb") as file:
        return os.pread(file.fileno(), amount, start + offset)
