"""Tar headers: POSIX ustar, with a PAX extended header only where ustar cannot say it (POSIX.1-2017, `pax`).

Written here because the standard library's `tarfile` takes a tenth of a millisecond a member and leaves the choice
of format to the caller. There is nothing in a header but what `Entry` says and one time for all: no owner names,
no device numbers, no clock.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from assembler.errors import UntrustedInputError
from assembler.tree.builder import tar_name
from assembler.tree.entry import Entry

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""Two empty blocks end an archive. The traditional filling up to 10 KiB says nothing and is left out."""

_NAME: Final = 100
_PREFIX: Final = 155
_LARGEST: Final = 8**11 - 1  # eleven octal digits: 8 GiB less one byte, or a time in the year 2242
_LARGEST_OWNER: Final = 8**7 - 1
_TYPES: Final = {
    "file": b"0",
    "whiteout": b"0",
    "opaque": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "directory": b"5",
}


def padding(size: int) -> int:
    """Zero bytes that follow a content of this size."""
    return -size % BLOCK


def header(entry: Entry, epoch: int) -> bytes:
    """Everything that comes before the content of an entry: one block, or three and more with an extended header.

    UntrustedInputError when the entry holds what no tar can: text that is not UTF-8.
    """
    name = tar_name(entry)
    if entry.kind == "directory":
        name += "/"
    link = entry.link if entry.kind in {"symlink", "hardlink"} else ""
    if not (name.isascii() and link.isascii()) or len(name) > _NAME or len(link) > _NAME:
        return _long_header(entry, name, link, epoch)
    if entry.size > _LARGEST or entry.uid > _LARGEST_OWNER or entry.gid > _LARGEST_OWNER or entry.xattrs:
        return _long_header(entry, name, link, epoch)
    return _block(name.encode(), b"", link.encode(), entry, epoch)


def _long_header(entry: Entry, name: str, link: str, epoch: int) -> bytes:
    """A header for an entry that may need more than one plain block."""
    records: dict[str, bytes] = {}
    try:
        name_bytes, link_bytes = name.encode(), link.encode()
    except UnicodeEncodeError:
        raise UntrustedInputError(f"`{name!a}` has a name or a link that is not UTF-8") from None
    prefix, short = _split(name_bytes)
    if not name.isascii() or short is None:
        records["path"] = name_bytes
        prefix, short = b"", _ascii(name)[:_NAME]
    if not link.isascii() or len(link_bytes) > _NAME:
        records["linkpath"] = link_bytes
        link_bytes = _ascii(link)[:_NAME]
    uid, gid, size = entry.uid, entry.gid, entry.size
    if uid > _LARGEST_OWNER:
        records["uid"], uid = b"%d" % uid, 0
    if gid > _LARGEST_OWNER:
        records["gid"], gid = b"%d" % gid, 0
    if size > _LARGEST:
        records["size"], size = b"%d" % size, 0
    records.update({f"SCHILY.xattr.{key}": value for key, value in entry.xattrs.items()})
    plain = Entry(path="", kind=entry.kind, mode=entry.mode, uid=uid, gid=gid, size=size)
    return (_extended(records, epoch) if records else b"") + _block(short, prefix, link_bytes, plain, epoch)


def _block(name: bytes, prefix: bytes, link: bytes, entry: Entry, epoch: int) -> bytes:
    """One ustar header block of an entry."""
    numbers = (entry.mode, entry.uid, entry.gid, entry.size, epoch)
    return _sealed(name, numbers, _TYPES[entry.kind] + link, prefix)


def _sealed(name: bytes, numbers: tuple[int, int, int, int, int], kind_and_link: bytes, prefix: bytes) -> bytes:
    """A header block with its checksum. Every text in it is ASCII; numbers are octal with a closing NUL."""
    head = name.ljust(_NAME, b"\0") + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % numbers
    names = kind_and_link.ljust(1 + _NAME, b"\0") + b"ustar\x0000"
    tail = names.ljust(345 - 156, b"\0") + prefix.ljust(512 - 345, b"\0")
    # The sum of all bytes, the checksum field counted as blanks. Adler-32's lower half is one plus that sum
    # modulo 65521, and 512 bytes of ASCII cannot reach it: the same number, thirty times faster than `sum`.
    checksum = (zlib.adler32(head + b"        " + tail) & 0xFFFF) - 1
    return head + b"%06o\0 " % checksum + tail


def _extended(records: Mapping[str, bytes], epoch: int) -> bytes:
    """A PAX extended header with these records, in the order of their names, filled up to whole blocks."""
    body = b"".join(_record(key.encode(), records[key]) for key in sorted(records))
    head = _sealed(b"././@PaxHeader", (0o644, 0, 0, len(body), epoch), b"x", b"")
    return head + body + bytes(padding(len(body)))


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """The name as ustar's prefix and name, cut at a slash; no name when it cannot be cut so."""
    if len(name) <= _NAME:
        return b"", name
    # The last byte may be a directory's own slash, which is no place to cut.
    cut = name.rfind(b"/", 0, min(_PREFIX + 1, len(name) - 1))
    if cut <= 0 or len(name) - cut - 1 > _NAME:
        return b"", None
    return name[:cut], name[cut + 1 :]


def _ascii(name: str) -> bytes:
    """What a reader that knows no extended headers sees."""
    return name.encode("ascii", "replace")
