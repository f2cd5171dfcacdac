"""Members of zip archives, inflated straight into the chunks of a layer and proved on the way.

A member that fits one chunk is read by one call, a larger one chunk by chunk. One thread inflates, another proves
what the first has done, both in the order of the stream: nobody waits for a turn. What is proved: the local header
says what the directory says, the deflate stream ends where it must and gives as many bytes as stated, and CRC-32
and the hash of a wheel's RECORD fit. Anything else is an UntrustedInputError that names archive and entry.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Final

from assembler.errors import NodeError, UntrustedInputError
from assembler.tree.entry import ZipMember

inflating: Any = zlib
with contextlib.suppress(ImportError):  # there is no build for some machines
    # Intel's library inflates up to three times as fast as zlib.
    from isal import isal_zlib as inflating

HASHES: Final = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
"""What a RECORD may hash with (binary distribution format, "The .dist-info directory")."""

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_EXTRA_LIMIT: Final = 0xFFFF
_DESCRIPTOR_LIMIT: Final = 24
_WHOLE: Final = 2 << 20  # more than a chunk's worth of any member takes with its header
_FEED: Final = 256 << 10
_LARGE: Final = 0xFFFF_FFFF
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_DESCRIBED: Final = 0x8


def digest_text(digest: bytes) -> str:
    """A digest as a RECORD has it."""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Archives:
    """The zip archives that are being read: each is opened once."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def reader(self, member: ZipMember) -> MemberReader:
        """A reader of this member, to be filled from in order."""
        descriptor = self._files.get(member.path)
        if descriptor is None:
            try:
                descriptor = self._files[member.path] = os.open(member.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _unreadable(member, error) from error
        return MemberReader(member, descriptor)

    def __enter__(self) -> Archives:
        return self

    def __exit__(self, *_error: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


class MemberReader:
    """One member on its way into a layer: filled part by part, and proved part by part, each in order."""

    __slots__ = ("_descriptor", "_hash", "_offset", "_raw", "_start", "_stream", "_sum", "_tail", "member")

    def __init__(self, member: ZipMember, descriptor: int) -> None:
        self.member = member
        self._descriptor = descriptor
        self._start = 0  # of the packed bytes in the file, once known
        self._raw = b""  # the packed bytes of a member that was read in one piece
        self._sum = 0

    def fill(self, offset: int, view: memoryview) -> None:
        """Put the member's bytes from `offset`, where the part before ended, into the whole of `view`."""
        try:
            if offset == 0 and len(view) == self.member.size:
                self._whole(view)
                return
            if not offset:
                self._begin()
            self._inflate(offset, view)
            if offset + len(view) == self.member.size:
                self._check_end()
        except OSError as error:
            raise _unreadable(self.member, error) from error

    def prove(self, offset: int, view: memoryview) -> None:
        """Take account of a part that was filled; with the last one, the member is what it says, or refused."""
        member = self.member
        last = offset + len(view) == member.size
        algorithm, _, expected = member.expected.partition("=")
        if offset == 0 and last:
            checksum = inflating.crc32(view)
            digest = HASHES[algorithm](view).digest() if algorithm else b""
        else:
            checksum = self._sum = inflating.crc32(view, self._sum)
            if algorithm:
                if not offset:
                    self._hash: Any = HASHES[algorithm]()
                self._hash.update(view)
                digest = self._hash.digest() if last else b""
        if not last:
            return
        if checksum != member.crc:
            raise self._refused("has another checksum than the zip directory says")
        if algorithm and (found := digest_text(digest)) != expected:
            raise self._refused(f"has the {algorithm} hash `{found}`; RECORD says `{expected}`")

    def packed(self, offset: int, amount: int) -> bytes:
        """The packed bytes that go with `amount` plain ones from `offset`: as great a share, whole at the end."""
        member = self.member
        start = member.packed * offset // member.size
        end = member.packed * (offset + amount) // member.size
        if self._raw:
            raw, self._raw = self._raw, b""
            return raw
        try:
            data = os.pread(self._descriptor, end - start, self._start + start)
        except OSError as error:
            raise _unreadable(member, error) from error
        if len(data) != end - start:
            raise self._refused("is truncated")
        return data

    def start(self, amount: int) -> bytes:
        """Up to `amount` first bytes, not proved. The reader is of no use afterwards."""
        self._begin()
        view = memoryview(bytearray(min(amount, self.member.size)))
        self._inflate(0, view)
        return bytes(view)

    def _whole(self, view: memoryview) -> None:
        member = self.member
        plain = self._raw = self._locate()
        if member.deflated:
            stream = inflating.decompressobj(-zlib.MAX_WBITS)
            try:
                plain = stream.decompress(plain, member.size + 1)
            except inflating.error as error:
                raise self._damaged(error) from error
            if len(plain) != member.size or not stream.eof or stream.unused_data:
                raise self._refused(f"does not inflate to the {member.size} bytes that are stated")
        view[:] = plain

    def _begin(self) -> None:
        self._tail = self._locate()
        self._offset = len(self._tail)
        self._stream: Any = inflating.decompressobj(-zlib.MAX_WBITS) if self.member.deflated else None

    def _inflate(self, offset: int, view: memoryview) -> None:
        if self._stream is None:
            if os.preadv(self._descriptor, [view], self._start + offset) != len(view):
                raise self._refused("is truncated")
            return
        done = 0
        while done < len(view):
            plain = self._step(min(_FEED, len(view) - done))
            view[done : done + len(plain)] = plain
            done += len(plain)

    def _step(self, limit: int) -> bytes:
        """Up to `limit` plain bytes, at least one. An inflater may hold some back when all packed bytes are in."""
        while not self._stream.eof:
            fed = self._feed()
            plain = self._decompress(limit)
            if plain:
                return plain
            if not fed:
                break
        raise self._refused(f"inflates to less than the {self.member.size} bytes that are stated")

    def _check_end(self) -> None:
        """After the last byte there must be the end of the stream, and after that nothing."""
        if self._stream is None:
            return
        while not self._stream.eof:
            fed = self._feed()
            if self._decompress(1) or not (fed or self._stream.eof):
                raise self._refused(f"does not inflate to the {self.member.size} bytes that are stated")
        if self._stream.unused_data or self._offset != self.member.packed:
            raise self._refused("has bytes after the end of its deflate stream")

    def _feed(self) -> bool:
        """Have packed bytes for the inflater, if there are any left."""
        if not self._tail:
            amount = min(_FEED, self.member.packed - self._offset)
            self._tail = os.pread(self._descriptor, amount, self._start + self._offset)
            if len(self._tail) != amount:
                raise self._refused("is truncated")
            self._offset += amount
        return bool(self._tail)

    def _decompress(self, limit: int) -> bytes:
        try:
            plain: bytes = self._stream.decompress(self._tail, limit)
        except inflating.error as error:
            raise self._damaged(error) from error
        self._tail = self._stream.unconsumed_tail
        return plain

    def _locate(self) -> bytes:
        """Check what lies around the packed bytes; a member of about a chunk is read on the way and returned."""
        member = self.member
        name = member.name.encode()
        span = member.end - member.start
        short = span <= _WHOLE
        data = os.pread(self._descriptor, span if short else _LOCAL.size + len(name) + _EXTRA_LIMIT, member.start)
        if len(data) < _LOCAL.size:
            raise self._refused("is truncated")
        magic, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack_from(data)
        body = _LOCAL.size + name_size + extra_size
        described = bool(flags & _DESCRIBED)
        if _LARGE in (packed, size):
            size, packed = _wide(data[_LOCAL.size + name_size : body], size, packed)
        stated = (member.crc, member.packed, member.size)
        if (
            magic != b"PK\3\4"
            or data[_LOCAL.size : _LOCAL.size + name_size] != name
            or method != (8 if member.deflated else 0)
            or flags & _ENCRYPTED
            or described != member.described
            or ((crc, packed, size) != stated and not (described and (crc, packed, size) == (0, 0, 0)))
        ):
            raise self._refused("has a local header that says something else than the zip directory")
        self._start = member.start + body
        rest = span - body - member.packed
        if rest < 0:
            raise self._refused("shares bytes with another entry")
        if rest:
            after = os.pread(self._descriptor, _DESCRIPTOR_LIMIT, self._start + member.packed)[:rest]
            if not described or rest > _DESCRIPTOR_LIMIT or after not in _descriptors(member):
                raise self._refused("is followed by bytes that belong to no entry")
        packed_bytes = data[body : body + member.packed] if short else b""
        if short and len(packed_bytes) != member.packed:
            raise self._refused("is truncated")
        return packed_bytes

    def _damaged(self, error: Exception) -> UntrustedInputError:
        return self._refused(f"is damaged: {error}")

    def _refused(self, what: str) -> UntrustedInputError:
        return UntrustedInputError(f"`{self.member.name}` {what}", place=self.member.archive)


def read_member(member: ZipMember, archives: Archives) -> bytes:
    """All of a small member, proved. UntrustedInputError naming archive and entry when it is not what it says."""
    data = bytearray(member.size)
    reader = archives.reader(member)
    reader.fill(0, memoryview(data))
    reader.prove(0, memoryview(data))
    return bytes(data)


def read_start(member: ZipMember, amount: int, archives: Archives) -> bytes:
    """Up to `amount` first bytes of a member. They are not proved; the packing does that."""
    return archives.reader(member).start(amount)


def _wide(extra: bytes, size: int, packed: int) -> tuple[int, int]:
    """Size and packed size, those that do not fit taken from the zip64 field of a local header."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if tag == 1:
            values = [value for (value,) in struct.iter_unpack("<Q", body[: len(body) & ~7])]
            size = values.pop(0) if size == _LARGE and values else size
            packed = values.pop(0) if packed == _LARGE and values else packed
            break
    return size, packed


def _descriptors(member: ZipMember) -> set[bytes]:
    """The forms that a data descriptor may have, with or without signature and zip64."""
    forms = set()
    for kind in ("<3L", "<L2Q"):
        with contextlib.suppress(struct.error):
            body = struct.pack(kind, member.crc, member.packed, member.size)
            forms |= {body, b"PK\7\10" + body}
    return forms


def _unreadable(member: ZipMember, error: OSError) -> NodeError:
    return NodeError(f"the archive cannot be read: {error.strerror or error}", place=str(member.path))
