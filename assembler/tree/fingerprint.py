"""Has this directory tree changed? Answered from names and stat results alone, without reading a file.

This is on the path of a rebuild that has nothing to do, so it imports only the standard library and modules
that do the same, and walks a tree once: one `scandir` a directory, one `lstat` a file, one hash over it all.

A file that is written twice within the clock tick of its file system can look the same both times. Therefore a
survey says whether it is `settled`: nothing in it was changed in the two seconds before. A fingerprint that is
not settled is good for noticing a change (`changed_since`), but not for promising later that there was none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from assembler.errors import RequestError
from assembler.tree.ignore import Ignore

RACY_NANOSECONDS: Final = 2_000_000_000
_FORMAT: Final = "tree-1"
_SPECIAL: Final = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_REGULAR: Final = frozenset({stat.S_IFREG, stat.S_IFLNK})

Row = tuple[str, os.stat_result | None]
"""A relative path and its `lstat`; None for a directory, whose times change with what is ignored in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """One look at a tree: its fingerprint, and whether no file changed in the two seconds before the look."""

    fingerprint: str
    settled: bool
    files: int


def walk(root: Path, ignore: Sequence[str] = ()) -> list[Row]:
    """Every path below `root` that is not ignored, sorted, so that parents come first.

    Symbolic links are not followed. Raises RequestError when something cannot be read, is neither a file, a
    directory nor a symbolic link, or has a name that is not UTF-8.
    """
    rules = Ignore(ignore)
    literals = rules.literals
    rows: list[Row] = []
    add = rows.append
    base = os.fspath(root)
    pending = [("", base)]
    path = "."
    try:
        while pending:
            prefix, directory = pending.pop()
            path = prefix or "."
            with os.scandir(directory) as entries:
                for entry in entries:
                    name = entry.name
                    path = prefix + name
                    is_directory = entry.is_dir(follow_symlinks=False)
                    if (
                        name in literals if literals is not None else rules.candidate(path, name)
                    ) and rules.ignored(path, name, is_directory):
                        continue
                    if is_directory:
                        add((path, None))
                        pending.append((path + "/", entry.path))
                    else:
                        add((path, entry.stat(follow_symlinks=False)))
    except OSError as error:
        raise RequestError(f"cannot read `{shown(path)}`: {error.strerror}", place=base) from error
    rows.sort(key=_path_of)
    return rows


def _path_of(row: Row) -> str:
    return row[0]


def shown(name: str) -> str:
    """A file name for a message: bytes that are not UTF-8, and control characters, are escaped."""
    raw = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in raw)


def digest_rows(root: Path, rows: Sequence[Row], now: int) -> Survey:
    """The survey of rows that `walk` gave at the time `now` (nanoseconds since 1970)."""
    lines = []
    files = 0
    newest = 0
    horizon = now - RACY_NANOSECONDS
    for path, info in rows:
        if info is None:
            lines.append(path)
            continue
        mode = info.st_mode
        if stat.S_IFMT(mode) not in _REGULAR:
            what = _SPECIAL.get(stat.S_IFMT(mode), "a special file")
            raise RequestError(
                f"`{shown(path)}` is {what}; expected files, directories and symbolic links",
                place=str(root),
                hint="remove it, or name it under `ignore`",
            )
        changed, modified = info.st_ctime_ns, info.st_mtime_ns
        if changed > newest:  # noqa: PLR1730  (max() is a call; this runs once a file)
            newest = changed
        if horizon <= modified <= now and modified > newest:
            newest = modified
        files += 1
        lines.append(f"{path}\0{mode}\0{info.st_size}\0{modified}\0{changed}\0{info.st_ino}")
    try:
        data = "\0\n".join(lines).encode()
    except UnicodeEncodeError:
        bad = next(path for path, _ in rows if not _is_utf8(path))
        raise RequestError(
            f"expected file names in UTF-8, found `{shown(bad)}`",
            place=str(root),
            hint="rename it, or name it under `ignore`",
        ) from None
    fingerprint = hashlib.sha256(data).hexdigest()
    return Survey(fingerprint=fingerprint, settled=newest < horizon, files=files)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def survey(root: Path, *, ignore: Sequence[str] = ()) -> Survey:
    """Look at a tree. RequestError as for `walk`."""
    now = time.time_ns()
    return digest_rows(root, walk(root, ignore), now)


def fingerprint(root: Path, *, ignore: Sequence[str] = ()) -> str:
    """Paths, modes, sizes, mtimes, ctimes and inodes of a tree, hashed: equal means that nothing changed."""
    return survey(root, ignore=ignore).fingerprint


def changed_since(root: Path, before: str, *, ignore: Sequence[str] = ()) -> bool:
    """Is the tree another one than when `fingerprint` gave `before`? A tree that is gone has changed."""
    try:
        return fingerprint(root, ignore=ignore) != before
    except RequestError:
        return True


class StatCache:
    """Remembers what trees and files hashed to, by what `stat` said of them. Lives in one directory.

    Two files a tree: NAME.tree says what the whole tree gave, NAME.files what each file gave. They are replaced
    whole, so that several processes may use them; a damaged one counts as empty. Nothing in here is needed: it
    only saves the reading of files.
    """

    __slots__ = ("directory",)

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, root: Path, ignore: Sequence[str], suffix: str) -> Path:
        """Where the record of a tree is or would be."""
        name = "\0".join([_FORMAT, os.path.realpath(root), *ignore])
        return self.directory / (hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32] + suffix)

    def known_digests(self, root: Path, ignore: Sequence[str], fingerprint: str) -> dict[str, str]:
        """Part → content digest of a tree with this fingerprint, as far as known; the part "" is the whole."""
        record = _read_json(self.path(root, ignore, ".tree"))
        digests = record.get("digests")
        if record.get("fingerprint") != fingerprint or not isinstance(digests, dict):
            return {}
        return {part: digest for part, digest in digests.items() if _is_digest(digest)}

    def file_hashes(self, root: Path, ignore: Sequence[str]) -> dict[str, list[Any]]:
        """Path → [size, mtime_ns, ctime_ns, inode, hexadecimal sha256] of the files seen last time."""
        files = _read_json(self.path(root, ignore, ".files")).get("files")
        if not isinstance(files, dict):
            return {}
        return {path: row for path, row in files.items() if isinstance(row, list) and len(row) == 5}

    def remember(self, root: Path, ignore: Sequence[str], name: str, record: Mapping[str, Any]) -> None:
        """Replace the record `.tree` or `.files` of a tree. A cache that cannot be written is no error."""
        from assembler.oci.layout import write_atomically

        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(root, ignore, name), json.dumps(record).encode())
        except OSError:
            return


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("sha256:[0-9a-f]{64}", text) is not None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
