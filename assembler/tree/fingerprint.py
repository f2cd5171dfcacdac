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
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from assembler.errors import RequestError, refused
from assembler.oci.digest import Digest
from assembler.tree.ignore import Ignore

_LAYERS: Final = 256
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
        raise RequestError(f"cannot read `{shown(path)}`: {refused(error)}", place=base) from error
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


def changed_row(root: Path, rows: Sequence[Row]) -> str | None:
    """The first file of these rows that is not what `walk` saw, or None. Looks at no other file of the tree."""
    base = os.fspath(root)
    for path, info in rows:
        if info is None:
            continue
        try:
            now = os.lstat(f"{base}/{path}")
        except OSError:
            return path
        # Not `identity`: this runs once a file, while everybody waits.
        if (
            now.st_ctime_ns != info.st_ctime_ns
            or now.st_mtime_ns != info.st_mtime_ns
            or now.st_ino != info.st_ino
            or now.st_size != info.st_size
            or now.st_mode != info.st_mode
        ):
            return path
    return None


def identity(info: os.stat_result) -> tuple[int, int, int, int]:
    """What a file cannot keep when it is changed."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


class StatCache:
    """Remembers what trees and files hashed to, by what `stat` said of them. Lives in one directory.

    Three files a tree: NAME.tree says what the whole tree gave, NAME.files what each file gave, NAME.layers which
    layers were made of it. They are replaced whole, so that several processes may use them; a damaged one counts
    as empty. Nothing in here is needed: it only saves the reading of files.
    """

    __slots__ = ("directory",)

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, root: Path, ignore: Sequence[str], suffix: str) -> Path:
        """Where the record of a tree is or would be."""
        name = "\0".join([_FORMAT, os.path.realpath(root), *ignore])
        return self.directory / (hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32] + suffix)

    def known_digest(self, root: Path, ignore: Sequence[str], fingerprint: str) -> Digest | None:
        """The content digest of a tree with this fingerprint, when it is known."""
        record = _read_json(self.path(root, ignore, ".tree"))
        return _digest_in(record.get("digest")) if record.get("fingerprint") == fingerprint else None

    def known_layer(self, root: Path, ignore: Sequence[str], layer: str, fingerprint: str) -> Digest | None:
        """The diff ID of the layer that is called `layer`, when the files in it had this fingerprint."""
        record = self._layers(root, ignore).get(layer)
        if not isinstance(record, dict) or record.get("fingerprint") != fingerprint:
            return None
        return _digest_in(record.get("diff_id"))

    def remember_layer(
        self, root: Path, ignore: Sequence[str], layer: str, fingerprint: str, diff_id: Digest
    ) -> None:
        """Keep the diff ID of a layer that is made of files of this tree. The latest `_LAYERS` are kept."""
        layers = self._layers(root, ignore)
        layers.pop(layer, None)
        layers[layer] = {"fingerprint": fingerprint, "diff_id": diff_id}
        kept = dict(list(layers.items())[-_LAYERS:])
        self.remember(root, ignore, ".layers", {"layers": kept})

    def _layers(self, root: Path, ignore: Sequence[str]) -> dict[str, Any]:
        layers = _read_json(self.path(root, ignore, ".layers")).get("layers")
        return layers if isinstance(layers, dict) else {}

    def file_hashes(self, root: Path, ignore: Sequence[str]) -> dict[str, list[Any]]:
        """Path → [size, mtime_ns, ctime_ns, inode, hexadecimal sha256] of the files seen last time."""
        files = _read_json(self.path(root, ignore, ".files")).get("files")
        if not isinstance(files, dict):
            return {}
        return {path: row for path, row in files.items() if isinstance(row, list) and len(row) == 5}

    def remember(self, root: Path, ignore: Sequence[str], name: str, record: Mapping[str, Any]) -> None:
        """Replace a record of a tree. A cache that cannot be written is no error."""
        from assembler.oci.layout import write_atomically

        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(root, ignore, name), json.dumps(record).encode(), durable=False)
        except OSError:
            return


def _digest_in(text: object) -> Digest | None:
    try:
        return Digest.parse(text)
    except ValueError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
