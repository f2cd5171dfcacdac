"""A strict, streaming reader of tar archives: V7, ustar (POSIX.1-2001), pax headers, GNU long names.

`tarfile` reads extended headers of any announced size into memory, turns names that are not UTF-8 into
surrogates and passes over damage; here a header has a limit, names stay bytes, and damage is an error. Sparse
files, devices, pipes and multi-volume archives are refused by name. What an entry may do is not decided here but
in `assembler.tree.archive`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

BLOCK: Final = 512
CHUNK: Final = 1 << 20
_HEADER_LIMIT: Final = 1 << 20  # bytes of one pax header or long name
_HEADERS_LIMIT: Final = 16  # extended headers before one entry

_KINDS: Final[dict[bytes, Literal["file", "directory", "symlink", "hardlink"]]] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"5": "directory",
}
_SPECIAL: Final = frozenset((b"3", b"4", b"6"))
_XATTR: Final = b"SCHILY.xattr."
_REFUSED: Final = {
    b"3": "is a character device",
    b"4": "is a block device",
    b"6": "is a named pipe",
    b"S": "is a sparse file, which is not supported",
    b"M": "continues an entry of another volume",
    b"D": "is a GNU dump directory, which is not supported",
}


class TarError(ValueError):
    """The archive is damaged, or holds what this reader refuses; the message names the entry."""


class ByteStream(Protocol):
    """What is read from. `skip` moves forward without handing the bytes out."""

    def read(self, amount: int, /) -> bytes: ...
    def skip(self, amount: int, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry as the archive states it. `offset` is where its content starts in the uncompressed archive.

    What follows `offset` is only told by a reader of layers; `special` is a device or a pipe. `mtime` is in whole
    seconds since 1970.
    """

    name: bytes
    kind: Literal["file", "directory", "symlink", "hardlink"]
    executable: bool
    size: int
    link: bytes
    offset: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    special: bool = False


class TarReader:
    """Iterates over the members of a stream; the content of the current one is had from `content`.

    With `layer`, it is a layer of an image: members have modes, owners and extended attributes too, and devices
    and pipes are passed on as `special` files without content.
    """

    __slots__ = ("_global", "_layer", "_left", "_padding", "_position", "_stream", "complete")

    def __init__(self, stream: ByteStream, *, layer: bool = False) -> None:
        self._stream = stream
        self._layer = layer
        self._global: dict[bytes, bytes] = {}
        self._position = 0
        self._left = 0
        self._padding = 0
        self.complete = False
        """Was the end-of-archive block seen? False when the stream just stopped between two entries."""

    def __iter__(self) -> Iterator[Member]:
        while True:
            self._skip(self._left + self._padding)
            self._left = self._padding = 0
            member = self._next()
            if member is None:
                return
            if member.kind == "file":
                self._left, self._padding = member.size, -member.size % BLOCK
            yield member

    def content(self) -> Iterator[bytes]:
        """What is left of the current member's bytes, in pieces. TarError when the archive ends before."""
        while self._left:
            data = self._read(min(CHUNK, self._left))
            self._left -= len(data)
            yield data

    def _next(self) -> Member | None:
        """The next member with its extended headers applied, or None at the end of the archive."""
        records = dict(self._global)
        for _ in range(_HEADERS_LIMIT):
            header = self._header()
            if header is None:
                return None
            kind = header[156:157]
            if kind in {b"x", b"X", b"g"}:
                found = _pax_records(self._extended(header))
                (self._global if kind == b"g" else records).update(found)
                if kind == b"g":
                    records = {**found, **records}
            elif kind == b"L":
                records[b"path"] = self._extended(header).split(b"\0", 1)[0]
            elif kind == b"K":
                records[b"linkpath"] = self._extended(header).split(b"\0", 1)[0]
            else:
                return self._member(header, records)
        raise TarError("one entry has too many extended headers")

    def _header(self) -> bytes | None:
        data = self._stream.read(BLOCK)
        self._position += len(data)
        if not data:
            return None
        if len(data) != BLOCK:
            raise TarError("the archive is truncated in a header")
        if data.count(0) == BLOCK:
            self.complete = True
            return None
        if not checksum_fits(data):
            raise TarError(f"the checksum of the header at byte {self._position - BLOCK} is wrong")
        return data

    def _extended(self, header: bytes) -> bytes:
        size = _number(header[124:136])
        if not 0 <= size <= _HEADER_LIMIT:
            raise TarError(f"expected an extended header of at most {_HEADER_LIMIT} bytes, found {size}")
        data = b""
        while len(data) < size:
            data += self._read(size - len(data))
        self._skip(-size % BLOCK)
        return data

    def _member(self, header: bytes, records: dict[bytes, bytes]) -> Member:
        name = records.get(b"path") or _stored_name(header)
        kind = _KINDS.get(header[156:157])
        special = self._layer and header[156:157] in _SPECIAL
        if kind is None and not special:
            what = _REFUSED.get(header[156:157], f"is of the unknown type {header[156:157]!r}")
            raise TarError(f"`{shown(name)}` {what}")
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise TarError(f"`{shown(name)}` {_REFUSED[b'S']}")
        if kind == "file" and name.endswith(b"/"):  # V7 has no type for directories
            kind = "directory"
        try:
            size = int(records[b"size"]) if b"size" in records else _number(header[124:136])
            mode = _number(header[100:108])
            owners = _owners(header, records) if self._layer else (0, 0)
            mtime = _mtime(header, records) if self._layer else 0
        except ValueError as error:
            raise TarError(f"`{shown(name)}` has a header that is no number: {error}") from None
        if size < 0:
            raise TarError(f"`{shown(name)}` has the size {size}")
        if min(owners) < 0:
            raise TarError(f"`{shown(name)}` has a negative owner")
        return Member(
            name=name,
            kind=kind or "file",
            executable=bool(mode & 0o100),
            size=size if kind == "file" else 0,
            link=records.get(b"linkpath") or _cut(header[157:257]),
            offset=self._position,
            mode=mode & 0o7777,
            uid=owners[0],
            gid=owners[1],
            mtime=mtime,
            xattrs=_xattrs(records) if self._layer else {},
            special=special,
        )

    def _read(self, amount: int) -> bytes:
        data = self._stream.read(amount)
        if not data:
            raise TarError("the archive is truncated")
        self._position += len(data)
        return data

    def _skip(self, amount: int) -> None:
        if amount:
            self._stream.skip(amount)
            self._position += amount


def shown(name: bytes) -> str:
    """An entry's name for a message, with bytes and characters that do not print escaped."""
    text = name.decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def checksum_fits(header: bytes) -> bool:
    """Does the header's checksum hold? Some old writers summed signed bytes."""
    try:
        stated = int(_cut(header[148:156]).strip() or b"0", 8)
    except ValueError:
        return False
    rest = header[:148] + b" " * 8 + header[156:BLOCK]
    unsigned = sum(rest)
    return stated == unsigned or stated == unsigned - 256 * sum(byte > 127 for byte in rest)


def _cut(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _stored_name(header: bytes) -> bytes:
    """The name in the header; only POSIX ustar has a prefix, GNU puts other things in its place."""
    name, prefix = _cut(header[:100]), _cut(header[345:500])
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _number(field: bytes) -> int:
    """A number in octal digits, or in GNU's and star's base 256. ValueError (TarError) when it is neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
    text = _cut(field).strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise TarError(f"expected an octal number in a header, found `{shown(text)}`") from None


def _owners(header: bytes, records: dict[bytes, bytes]) -> tuple[int, int]:
    uid = int(records[b"uid"]) if b"uid" in records else _number(header[108:116])
    gid = int(records[b"gid"]) if b"gid" in records else _number(header[116:124])
    return uid, gid


def _mtime(header: bytes, records: dict[bytes, bytes]) -> int:
    """Whole seconds; pax has fractions too."""
    stored = records.get(b"mtime")
    return _number(header[136:148]) if stored is None else int(stored.partition(b".")[0] or b"0")


def _xattrs(records: dict[bytes, bytes]) -> dict[str, bytes]:
    """Extended attributes, as star and every container tool write them."""
    found = {key: value for key, value in records.items() if key.startswith(_XATTR)}
    return {key[len(_XATTR) :].decode(errors="surrogateescape"): value for key, value in found.items()}


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """`LENGTH KEY=VALUE\\n` repeated (POSIX.1-2001, pax extended header)."""
    records = {}
    rest = data
    while rest.strip(b"\0"):
        length, space, _ = rest.partition(b" ")
        if not space or not length.isdigit() or len(length) > 8 or not len(length) + 2 < int(length) <= len(rest):
            raise TarError("a pax header is damaged")
        record, rest = rest[len(length) + 1 : int(length)], rest[int(length) :]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise TarError("a pax header is damaged")
        records[key] = value
    return records
