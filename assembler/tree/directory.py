"""Directory trees of the host: their entries, and a digest of what they contain.

Times, owners, the umask, the place and the order of the directory do not show: files are 0644 or 0755 by their
owner's execute bit, directories 0755, everything belongs to 0:0. Extended attributes are not read. Names that
share an inode inside the tree are hard links of the first of them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.errors import RequestError, refused
from assembler.oci.digest import Digest
from assembler.tree.entry import Entry
from assembler.tree.fingerprint import RACY_NANOSECONDS, Row, StatCache, Survey, digest_rows, identity, shown, walk

__all__ = ["StatCache", "TreeState", "entries_of", "read_directory", "tree_digest", "tree_state"]

_BATCH_BYTES: Final = 8 << 20
_BATCH_FILES: Final = 256
_ATTEMPTS: Final = 3
_HEADER: Final = b"assemble tree 1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeState:
    """What a tree contained, and the fingerprint that it had before it was read.

    `settled` is False when something in the tree was changed in the two seconds before: then the fingerprint
    must not be kept to promise later that nothing changed.
    """

    digest: Digest
    fingerprint: str
    settled: bool


def read_directory(root: Path, *, ignore: Sequence[str] = ()) -> tuple[Entry, ...]:
    """The entries of a directory, sorted, without the root itself; contents are paths below `root`.

    `ignore` holds gitignore patterns; `.git` is left out unless `!.git` is among them. Raises RequestError for
    what `assembler.tree.fingerprint.walk` refuses, and for special files and names that are not UTF-8.
    """
    rows = walk(root, ignore)
    digest_rows(root, rows, 0)
    return entries_of(root, rows)


def entries_of(root: Path, rows: Sequence[Row]) -> tuple[Entry, ...]:
    """The entries of what `assembler.tree.fingerprint.walk` gave, and `digest_rows` found to be plain."""
    base = Path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow the last link of the path)
    entries = []
    first: dict[tuple[int, int], str] = {}
    for path, info in rows:
        if info is None:
            entries.append(Entry(path=path, kind="directory", mode=0o755))
        elif stat.S_ISLNK(info.st_mode):
            entries.append(Entry(path=path, kind="symlink", mode=0o777, link=_target(root, path)))
        elif target := _first_name(first, path, info):
            entries.append(Entry(path=path, kind="hardlink", mode=_mode(info), link=target))
        else:
            entries.append(Entry(path=path, kind="file", mode=_mode(info), size=info.st_size, content=base / path))
    return tuple(entries)


def tree_digest(
    root: Path, *, ignore: Sequence[str] = (), cache: StatCache | None = None, threads: int | None = None
) -> Digest:
    """The content digest of a tree: paths, kinds, modes, links and the bytes of files. See `tree_state`."""
    return tree_state(root, ignore=ignore, cache=cache, threads=threads).digest


def tree_state(
    root: Path,
    *,
    ignore: Sequence[str] = (),
    cache: StatCache | None = None,
    threads: int | None = None,
) -> TreeState:
    """Digest a tree. With a cache, an unchanged tree costs one walk, a changed one the reading of what changed.

    Raises RequestError as `read_directory` does, and when files keep changing while they are read.
    """
    for _ in range(_ATTEMPTS):
        now = time.time_ns()
        rows = walk(root, ignore)
        seen = digest_rows(root, rows, now)
        known = cache.known_digest(root, ignore, seen.fingerprint) if cache else None
        if known:
            return _state(seen, known)
        old = cache.file_hashes(root, ignore) if cache else {}
        try:
            hashes = _hash_files(root, rows, old, threads or min(8, os.cpu_count() or 1))
            digest = _digest(root, rows, hashes)
        except _ChangedError as error:
            changed = error.args[0]
            continue
        if cache:
            _remember(cache, root, ignore, [(row, hashes.get(row[0])) for row in rows], now)
            if seen.settled:
                cache.remember(root, ignore, ".tree", {"fingerprint": seen.fingerprint, "digest": digest})
        return _state(seen, digest)
    raise RequestError(
        f"`{shown(changed)}` changes while it is read",
        place=str(root),
        hint="wait until nothing writes into the directory, or name the file under `ignore`",
    )


def _state(seen: Survey, digest: Digest) -> TreeState:
    return TreeState(digest=digest, fingerprint=seen.fingerprint, settled=seen.settled)


class _ChangedError(Exception):
    """A file is not what the walk saw a moment ago; its path is the argument."""


def _mode(info: os.stat_result) -> int:
    return 0o755 if info.st_mode & stat.S_IXUSR else 0o644


def _first_name(first: dict[tuple[int, int], str], path: str, info: os.stat_result) -> str | None:
    """The earlier name of the same file in this tree, if there is one."""
    if info.st_nlink < 2:
        return None
    known = first.setdefault((info.st_dev, info.st_ino), path)
    return None if known == path else known


def _target(root: Path, path: str) -> str:
    try:
        target = os.readlink(root / path)  # noqa: PTH115  (Path would drop a trailing slash)
        target.encode()
    except OSError as error:
        raise RequestError(f"cannot read `{shown(path)}`: {refused(error)}", place=str(root)) from error
    except UnicodeEncodeError:
        raise RequestError(
            f"expected the target of `{shown(path)}` in UTF-8, found `{shown(target)}`", place=str(root)
        ) from None
    return target


def _hash_files(root: Path, rows: Sequence[Row], old: dict[str, list[object]], threads: int) -> dict[str, str]:
    """Path → hexadecimal sha256 of every regular file; read only where the cache does not know."""
    hashes: dict[str, str] = {}
    wanted: list[tuple[str, os.stat_result]] = []
    for path, info in rows:
        if info is None or not stat.S_ISREG(info.st_mode):
            continue
        known = old.get(path)
        if known and tuple(known[:4]) == identity(info) and _is_hash(known[4]):
            hashes[path] = str(known[4])
        else:
            wanted.append((path, info))
    batches = list(_batches(wanted))
    if len(batches) < 2 or threads < 2:
        for batch in batches:
            hashes.update(_hash_batch(root, batch))
        return hashes
    with ThreadPoolExecutor(threads, thread_name_prefix="hash") as pool:
        try:
            for result in pool.map(lambda batch: _hash_batch(root, batch), batches):
                hashes.update(result)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return hashes


def _is_hash(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and text.isascii() and text.isalnum()


def _batches(files: Sequence[tuple[str, os.stat_result]]) -> Iterator[list[tuple[str, os.stat_result]]]:
    """Groups of files that are worth a task each: handing over thousands of tiny ones costs more than they do."""
    batch: list[tuple[str, os.stat_result]] = []
    size = 0
    for item in files:
        batch.append(item)
        size += item[1].st_size
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash_batch(root: Path, batch: Sequence[tuple[str, os.stat_result]]) -> dict[str, str]:
    """Hash files, each checked before and after to be the one that the walk saw."""
    hashes = {}
    base = os.fspath(root)
    for path, info in batch:
        try:
            descriptor = os.open(f"{base}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise _ChangedError(path) from None
        except OSError as error:
            raise RequestError(f"cannot read `{shown(path)}`: {refused(error)}", place=base) from error
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if identity(os.fstat(descriptor)) != identity(info):
                raise _ChangedError(path)
            hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
            if identity(os.fstat(descriptor)) != identity(info):
                raise _ChangedError(path)
    return hashes


def _digest(root: Path, rows: Sequence[Row], hashes: dict[str, str]) -> Digest:
    """One hash over kind, path, mode and content of every entry, NUL between, since no path holds one."""
    parts: list[str] = []
    first: dict[tuple[int, int], str] = {}
    for path, info in rows:
        if info is None:
            parts.append(f"directory\0{path}\0")
        elif stat.S_ISLNK(info.st_mode):
            parts.append(f"symlink\0{path}\0{_target(root, path)}\0")
        elif target := _first_name(first, path, info):
            parts.append(f"hardlink\0{path}\0{target}\0")
        else:
            parts.append(f"file\0{path}\0{_mode(info):o}\0{hashes[path]}\0")
    return Digest.of(_HEADER + "".join(parts).encode())


def _remember(
    cache: StatCache, root: Path, ignore: Sequence[str], rows: Sequence[tuple[Row, str | None]], now: int
) -> None:
    """Keep the hashes of files that were not changed within two seconds of the walk."""
    horizon = now - RACY_NANOSECONDS
    files = {}
    for (path, info), hexadecimal in rows:
        if info is None or hexadecimal is None or info.st_ctime_ns >= horizon:
            continue
        if not horizon <= info.st_mtime_ns <= now:
            files[path] = [*identity(info), hexadecimal]
    cache.remember(root, ignore, ".files", {"files": files})
