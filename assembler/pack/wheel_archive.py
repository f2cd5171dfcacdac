"""The directory of a wheel: a zip archive (PKWARE APPNOTE 6.3.x) taken for hostile until it is proved plain.

Written here because `zipfile` believes what it reads: installers that read a zip by its directory and others that
read it by its local headers can be shown two different wheels in one file. What can be read in two ways is
refused: bytes before, between or after the members, a directory that is not where it says, members that overlap or
share a name, names that are not UTF-8. So are encryption, links, devices, other methods than stored and deflated,
several disks, and more bytes than anybody means well with. Local headers are compared when the members are read.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from assembler.errors import NodeError, UntrustedInputError
from assembler.tree.decompress import StreamError, check_growth
from assembler.tree.tar_stream import shown

_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR: Final = struct.Struct("<4sLQL")
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_LISTED: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL_HEADER: Final = 30
_COMMENT_LIMIT: Final = 0xFFFF
_ENTRIES_LIMIT: Final = 1_000_000
_DIRECTORY_LIMIT: Final = 256 << 20

_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000  # traditional, strong, and a masked directory
_DESCRIBED: Final = 0x8
_STORED: Final = 0
_DEFLATED: Final = 8
_ZIP_64: Final = 0x0001
_SMALL: Final = 0xFFFF
_LARGE: Final = 0xFFFF_FFFF
# What deflate adds at most to bytes that do not compress, whatever its settings.
_DEFLATE_SLACK: Final = 1 << 10

_BAD_NAME: Final = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)|[\0-\x1f\x7f]")


class Listed(NamedTuple):
    """A member as the directory lists it. The fields are those of `ZipMember`."""

    name: str
    start: int
    end: int
    packed: int
    size: int
    crc: int
    deflated: bool
    described: bool
    executable: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """A wheel whose directory holds no surprises. `name` is the wheel's, for people; members are in zip order."""

    path: Path
    name: str
    size: int
    files: tuple[Listed, ...]
    directories: tuple[Listed, ...]


def read_archive(path: Path, name: str) -> Archive:
    """Read the directory of a wheel.

    UntrustedInputError naming the wheel, and the entry where it is one; NodeError when it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            data, count, start = _directory(descriptor, size)
            listed = _members(data, count, start)
        finally:
            os.close(descriptor)
        check_growth(sum(member.size for member in listed), size)
    except OSError as error:
        raise NodeError(f"the wheel cannot be read: {error.strerror or error}", place=str(path)) from error
    except StreamError as error:
        raise UntrustedInputError(str(error), place=name) from error
    return Archive(
        path=path,
        name=name,
        size=size,
        files=tuple(member for member in listed if not member.name.endswith("/")),
        directories=tuple(member for member in listed if member.name.endswith("/")),
    )


def _directory(descriptor: int, size: int) -> tuple[bytes, int, int]:
    """The directory's bytes, the number of its entries, and where it begins."""
    length = min(size, _COMMENT_LIMIT + _END.size + _LOCATOR.size + _END_64.size)
    tail = os.pread(descriptor, length, size - length)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0 or len(tail) != length:
        raise StreamError(
            "expected a zip archive with its directory at the end; the wheel is truncated or no wheel"
        )
    _, disk, first_disk, here, count, amount, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != length:
        raise StreamError("the end of the zip directory is in doubt: there are bytes after it")
    end = size - length + at
    if _SMALL in (disk, first_disk, here, count) or _LARGE in (amount, start):
        disk, first_disk, here, count, amount, start, end = _wide_end(tail, at, end)
    if disk or first_disk or here != count:
        raise StreamError("the archive is one of several disks")
    if start + amount != end:
        raise StreamError(
            "the zip directory is not where it says; the wheel is damaged or made to be read in two ways"
        )
    if count > _ENTRIES_LIMIT or amount > _DIRECTORY_LIMIT:
        raise StreamError(f"the zip directory has {count} entries in {amount} bytes, more than a wheel can need")
    data = os.pread(descriptor, amount, start)
    if len(data) != amount:
        raise StreamError("the zip directory is truncated")
    return data, count, start


def _wide_end(tail: bytes, at: int, end: int) -> tuple[int, int, int, int, int, int, int]:
    """The same fields from the zip64 record, which stands before its locator, which stands before the end."""
    locator_at, record_at = at - _LOCATOR.size, at - _LOCATOR.size - _END_64.size
    record_end = end - _LOCATOR.size - _END_64.size
    if (
        record_at >= 0
        and tail[locator_at : locator_at + 4] == b"PK\6\7"
        and tail[record_at:].startswith(b"PK\6\6")
    ):
        _, disk_of_record, place, disks = _LOCATOR.unpack_from(tail, locator_at)
        _, length, _, _, disk, first_disk, here, count, amount, start = _END_64.unpack_from(tail, record_at)
        if place == record_end and not disk_of_record and disks <= 1 and length == _END_64.size - 12:
            return disk, first_disk, here, count, amount, start, record_end
    raise StreamError("the zip64 end of the directory is missing or damaged")


def _members(data: bytes, count: int, directory: int) -> list[Listed]:
    """Every entry of the directory, each with the place where the next one begins."""
    listed: list[tuple[str, int, int, int, int, bool, bool, bool]] = []
    starts: list[int] = [directory]
    names: set[str] = set()
    at = 0
    for _ in range(count):
        if at + _LISTED.size > len(data):
            raise StreamError("the zip directory is truncated")
        fields = _LISTED.unpack_from(data, at)
        (magic, _, _, flags, method, _, _, crc, packed, size) = fields[:10]
        (name_size, extra_size, comment_size, disk, _, attributes, start) = fields[10:]
        name_end = at + _LISTED.size + name_size
        following = name_end + extra_size + comment_size
        if magic != b"PK\1\2" or following > len(data):
            raise StreamError("the zip directory is damaged")
        name = _name(data[at + _LISTED.size : name_end])
        if _LARGE in (packed, size, start) or disk == _SMALL:
            size, packed, start, disk = _widened(
                name, data[name_end : name_end + extra_size], size, packed, start, disk
            )
        at = following
        if name in names:
            raise StreamError(f"`{name}` is there twice")
        names.add(name)
        starts.append(start)
        if flags & _ENCRYPTED:
            raise StreamError(f"`{name}` is encrypted")
        executable = _is_executable(name, attributes)
        if size and name.endswith("/"):
            raise StreamError(f"`{name}` is a directory with content")
        if method not in {_STORED, _DEFLATED}:
            raise StreamError(f"`{name}` is compressed by method {method}; expected 0 (stored) or 8 (deflated)")
        if disk or (method == _STORED and packed != size) or packed > size + (size >> 3) + _DEFLATE_SLACK:
            raise StreamError(f"`{name}` has sizes that cannot be: {packed} bytes packed, {size} plain")
        described = bool(flags & _DESCRIBED)
        listed.append((name, start, packed, size, crc, method == _DEFLATED, described, executable))
    if at != len(data):
        raise StreamError("the zip directory has bytes that belong to no entry")
    return _bounded(listed, starts)


def _bounded(listed: list[tuple[str, int, int, int, int, bool, bool, bool]], starts: list[int]) -> list[Listed]:
    """The entries with their ends: where the next member, or the directory, begins. Overlaps show themselves."""
    starts.sort()
    if starts[0] and len(starts) > 1:
        raise StreamError("there are bytes before the first entry")
    following = dict(itertools.pairwise(starts))
    if len(following) != len(starts) - 1:
        raise StreamError("two entries begin at the same byte")
    members = []
    for name, start, packed, size, crc, deflated, described, executable in listed:
        end = following.get(start)
        if end is None or start + _LOCAL_HEADER + packed > end:
            raise StreamError(f"`{name}` shares bytes with another entry, or lies beyond the end")
        members.append(Listed(name, start, end, packed, size, crc, deflated, described, executable))
    return members


def _name(raw: bytes) -> str:
    """A member's name. The wheel specification wants UTF-8, whether the flag is set or not."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise StreamError(f"`{shown(raw)}` has a name that is not UTF-8") from None
    if "//" not in name and "/." not in name and name[:1] not in "./" and name.isprintable():
        return name  # the common case, told apart without the pattern
    # A directory's own slash is its last.
    if _BAD_NAME.search(name.removesuffix("/")):
        raise StreamError(
            f"`{shown(raw)}`: expected a relative path without empty, `.` and `..` parts or control characters"
        )
    return name


def _is_executable(name: str, attributes: int) -> bool:
    """By the Unix mode, which wheels use whatever system they name. What is no file or directory is refused."""
    mode = attributes >> 16
    kind = stat.S_IFMT(mode)
    if name.endswith("/"):
        if kind in {0, stat.S_IFDIR}:
            return False
    elif kind in {0, stat.S_IFREG}:
        return bool(mode & 0o111)
    what = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory by its mode alone"}.get(
        kind, "no plain file"
    )
    raise StreamError(f"`{name}` is {what}; a wheel has files only")


def _widened(name: str, extra: bytes, size: int, packed: int, start: int, disk: int) -> tuple[int, int, int, int]:
    """Size, packed size, start and disk, those that do not fit taken from the zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if tag != _ZIP_64:
            continue
        wanted = [size == _LARGE, packed == _LARGE, start == _LARGE]
        if len(body) < 8 * sum(wanted) + 4 * (disk == _SMALL):
            break
        values = iter(struct.unpack_from(f"<{sum(wanted)}Q", body))
        wide = [next(values) if want else old for want, old in zip(wanted, (size, packed, start), strict=True)]
        if disk == _SMALL:
            (disk,) = struct.unpack_from("<L", body, 8 * sum(wanted))
        return wide[0], wide[1], wide[2], disk
    raise StreamError(f"`{name}` has no zip64 field for its sizes")
