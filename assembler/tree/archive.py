"""Archives from outside: listed or unpacked, and taken for hostile until every entry is proved harmless.

Understood, by their first bytes and not by their name: tar, alone or in gzip, bzip2, xz or zstd, and zip.
Refused with the name of the entry: absolute paths and `..`, symbolic links that lead out of the tree (also by
way of other links), entries that would be written through a link, hard links to anything but an earlier file,
devices, pipes, sparse files, duplicates, names that are not UTF-8, entries above 8 GiB, bombs, encrypted members.

Nothing is written outside the wanted directory, and nothing is left when an archive is refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Final, Literal, TypeAlias

from assembler.errors import RequestError, UntrustedInputError
from assembler.tree.decompress import Stream, StreamError, detect
from assembler.tree.entry import Content, Entry, Slice
from assembler.tree.ignore import Ignore
from assembler.tree.inventory import Inventory, RefusedError
from assembler.tree.tar_stream import BLOCK, Member, TarError, TarReader, checksum_fits
from assembler.tree.zip_stream import zip_members

Strip: TypeAlias = int | Literal["single"] | None
"""Leading path components to drop, or `single`: the one top directory, when all entries lie in one."""

SOURCE_TIME: Final = 315_619_200
"""The mtime of unpacked files, 1980-01-02. Not 0, since zip, and so many a wheel's build, knows no time before."""

_MEMORY_LIMIT: Final = 256 << 20
_Member: TypeAlias = tuple[Member, Callable[[], Iterator[bytes]]]


def read_archive(path: Path, *, strip: Strip = None, scratch: Path | None = None) -> tuple[Entry, ...]:
    """The entries of an archive, in its order, without parents that it does not list.

    The contents of an uncompressed tar are slices of it. Those of a compressed archive go to one new file in the
    directory `scratch`, which the caller removes; without one they are held in memory, up to 256 MiB.
    Raises UntrustedInputError, naming archive and entry, and RequestError when there is no such file.
    """
    inventory = Inventory(_count(strip))
    entries = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_blaming(path))
        plain, members = stack.enter_context(_members(path))
        spool = None if plain else stack.enter_context(_Spool(scratch))
        for member, content in members:
            entry = inventory.admit(member)
            if entry is None:
                continue
            if entry.kind == "file":
                kept = Slice(path, member.offset, member.size) if spool is None else spool.keep(content())
                entry = replace(entry, content=kept)
            entries.append(entry)
        top = inventory.finish(single=strip == "single")
        if spool:
            spool.keep_file()
    return tuple(_without(entry, top) for entry in entries if entry.path != top) if top else tuple(entries)


def unpack(
    path: Path, directory: Path, *, strip: Strip = None, ignore: Sequence[str] = (), name: str | None = None
) -> None:
    """Unpack an archive to `directory`, which must not exist or be empty; its parent must exist.

    Files become 0644 or 0755, directories 0755, all of one time, owned by who runs this. The tree appears whole,
    by a rename, or not at all. Entries that the gitignore patterns `ignore` match are passed over before they are
    judged; `.git` is one of them only when there are patterns. Raises UntrustedInputError, naming the archive (by
    `name`, if given) and the entry, and RequestError when there is no such file.
    """
    rules = Ignore(ignore) if ignore else None
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        tree = temporary / "tree"
        with _blaming(path, name):
            top = _unpack(path, tree, strip, rules)
            if rules and strip == "single" and not top:
                # the patterns were taken from below a top directory that is not the only one
                shutil.rmtree(tree)
                top = _unpack(path, tree, None, rules)
        (tree / top).rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack(path: Path, tree: Path, strip: Strip, rules: Ignore | None) -> str:
    """Unpack into the new directory `tree` and return the top directory that is to be taken off, or nothing."""
    tree.mkdir()
    inventory = Inventory(_count(strip))
    below = 1 if strip == "single" else _count(strip)
    with _members(path) as (_, members):
        for member, content in members:
            if rules and _is_ignored(rules, member, below):
                continue
            entry = inventory.admit(member)
            if entry is not None:
                _write(tree, entry, content)
    top = inventory.finish(single=strip == "single")
    for directory in [*inventory.directories, ""]:
        (tree / directory).chmod(0o755)
        os.utime(tree / directory, (SOURCE_TIME, SOURCE_TIME))
    return top


def _is_ignored(rules: Ignore, member: Member, below: int) -> bool:
    """Does a pattern leave out the member or a directory above it, `below` components taken off?"""
    parts = [part for part in member.name.decode(errors="replace").split("/") if part not in {"", "."}][below:]
    for count in range(1, len(parts) + 1):
        is_directory = count < len(parts) or member.kind == "directory"
        if rules.ignored("/".join(parts[:count]), parts[count - 1], is_directory):
            return True
    return False


def _count(strip: Strip) -> int:
    return strip if isinstance(strip, int) else 0


def _without(entry: Entry, top: str) -> Entry:
    """The entry with the top directory taken off its path, and off its target if it is a hard link."""
    link = entry.link.removeprefix(top + "/") if entry.kind == "hardlink" else entry.link
    return replace(entry, path=entry.path.removeprefix(top + "/"), link=link)


@contextlib.contextmanager
def _blaming(path: Path, name: str | None = None) -> Iterator[None]:
    """Turn what readers and inventory raise into an error that names the archive."""
    try:
        yield
    except (RefusedError, TarError, StreamError, zipfile.BadZipFile) as error:
        raise UntrustedInputError(str(error), place=name or path.name) from error
    except FileNotFoundError as error:
        if error.filename != os.fspath(path):
            raise
        raise RequestError("no such file", place=str(path)) from error


@contextlib.contextmanager
def _members(path: Path) -> Iterator[tuple[bool, Iterator[_Member]]]:
    """Is it an uncompressed tar, and the members with a way to their content, in the order of the archive."""
    with path.open("rb") as file:
        start = file.read(BLOCK)
    if detect(start) == "zip":
        with zip_members(path) as members:
            yield False, members
        return
    with Stream(path) as stream:
        if stream.format == "plain" and not _is_tar(start):
            raise TarError("expected a tar (plain, gzip, bzip2, xz, zstd) or zip archive")
        yield stream.format == "plain", _tar_members(stream)


def _is_tar(start: bytes) -> bool:
    return len(start) == BLOCK and (start.count(0) == BLOCK or checksum_fits(start))


def _tar_members(stream: Stream) -> Iterator[_Member]:
    reader = TarReader(stream)
    for member in reader:
        yield member, reader.content
    if not reader.complete and stream.format in {"plain", "zstd"}:
        # the other formats notice themselves when they are cut
        raise TarError("the archive is truncated: it has no end-of-archive block")
    stream.drain()


class _Spool:
    """Contents taken out of a compressed archive: in one file of `directory`, or in memory when there is none."""

    def __init__(self, directory: Path | None) -> None:
        self._file: IO[bytes] | None = None
        self._path = Path()
        if directory is not None:
            descriptor, name = tempfile.mkstemp(dir=directory, prefix="contents-")
            self._file, self._path = os.fdopen(descriptor, "wb"), Path(name)
        self._size = 0
        self._kept = False

    def keep(self, content: Iterator[bytes]) -> Content:
        """Take over the bytes and say where they are."""
        if self._file is None:
            data = bytearray()
            for piece in content:
                data += piece
                if self._size + len(data) > _MEMORY_LIMIT:
                    raise RefusedError(
                        f"expected at most {_MEMORY_LIMIT >> 20} MiB of contents; unpack it instead"
                    )
            self._size += len(data)
            return bytes(data)
        start = self._size
        for piece in content:
            self._file.write(piece)
            self._size += len(piece)
        return Slice(self._path, start, self._size - start)

    def keep_file(self) -> None:
        """All went well: the file stays."""
        self._kept = True

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
            if not self._kept:
                self._path.unlink(missing_ok=True)


def _write(tree: Path, entry: Entry, content: Callable[[], Iterator[bytes]]) -> None:
    """Put one admitted entry into the tree, whose every parent is a directory that we made."""
    target = tree / entry.path
    if entry.kind == "directory":
        target.mkdir(parents=True, exist_ok=True)
        return
    try:
        _create(tree, target, entry, content)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        _create(tree, target, entry, content)


def _create(tree: Path, target: Path, entry: Entry, content: Callable[[], Iterator[bytes]]) -> None:
    """Make a file or link. FileNotFoundError, and no content read, when its parent is not there."""
    if entry.kind == "hardlink":
        target.hardlink_to(tree / entry.link)
        return
    if entry.kind == "symlink":
        target.symlink_to(entry.link)
    else:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for piece in content():
                file.write(piece)
            os.fchmod(descriptor, entry.mode)
    os.utime(target, (SOURCE_TIME, SOURCE_TIME), follow_symlinks=False)
