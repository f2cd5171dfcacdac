"""gzip without compressing again: a wheel's deflate streams become members of the layer as they are.

A gzip file is any number of members one after the other (RFC 1952, 2.2), each a header, a deflate stream, a CRC-32
and a size. A zip archive has all of that: the stream in the archive, checksum and size in its directory. What lies
between two such streams (the padding of one file and the tar header of the next) is deflated here, each run as a
member of its own. Output follows from the bytes alone, like that of the other compressors: a run ends where a
chunk ends, a stream is cut in proportion to the chunks, and threads change nothing.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Final

from assembler.pack.compress import Compression, compressor_id, level_of
from assembler.pack.inline import executor
from assembler.pack.members import MemberReader
from assembler.tree.entry import Entry, ZipMember

_HEADER: Final = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"  # no name, no time, no system
_FORMAT: Final = 1
_USEFUL_THREADS: Final = 4  # hashing the tar is one stream, and most of what is spliced is only copied
_SHORT: Final = 4 << 10
# A short run is mostly one tar header: a small window costs a tenth of the time to set up, and saves as much.
_SHORT_SETTINGS: Final = (4, zlib.DEFLATED, -9, 1)


def open_splicer(level: int | None = None, threads: int | None = None, *, inline: bool = False) -> Splicer:
    """A splicer with its threads running; `level` is for what has to be deflated after all."""
    count = min(len(os.sched_getaffinity(0)), _USEFUL_THREADS) if threads is None else max(1, threads)
    return Splicer(level_of("gzip", level), count, inline=inline)


def splicer_id(level: int | None = None) -> str:
    """Everything besides the bytes that decides the output, as `compressor_id` says it of the others."""
    return f"{compressor_id('gzip', level)} zip-members-{_FORMAT}"


def is_spliced(entries: Iterable[Entry], compression: Compression) -> bool:
    """Is a layer of these entries spliced? If any of them lies in a zip archive, gzip is."""
    return compression == "gzip" and any(isinstance(entry.content, ZipMember) for entry in entries)


class Splicer:
    """A `Compressor` that is told by `watch` what the chunks are made of."""

    def __init__(self, level: int, threads: int, *, inline: bool = False) -> None:
        self.threads = threads
        self._level = level
        self._pool = executor(threads, "splice", inline=inline)
        self._expected: deque[list[Any]] = deque()

    def watch(self, chunks: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """Pass chunks on, in the order in which `compress` will get their bytes."""
        for chunk in chunks:
            self._expected.append(chunk)
            yield chunk

    def compress(self, chunk: memoryview) -> Future[bytes]:
        """The members, and parts of members, that make up this chunk."""
        return self._pool.submit(self._splice, self._expected.popleft(), chunk)

    def finish(self) -> Future[bytes]:
        """Nothing is held back."""
        end: Future[bytes] = Future()
        end.set_result(b"")
        return end

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _splice(self, pieces: list[Any], chunk: memoryview) -> bytes:
        parts: list[bytes] = []
        begun = position = 0
        for piece in pieces:
            if isinstance(piece, bytes):
                position += len(piece)
                continue
            source, offset, amount = piece
            position += amount
            if not (amount and isinstance(source, MemberReader) and source.member.deflated):
                continue
            if begun < position - amount:
                parts.append(self._member(chunk[begun : position - amount]))
            if not offset:
                parts.append(_HEADER)
            parts.append(source.packed(offset, amount))
            if offset + amount == source.member.size:
                parts.append(struct.pack("<2L", source.member.crc, source.member.size & 0xFFFF_FFFF))
            begun = position
        if begun < position:
            parts.append(self._member(chunk[begun:position]))
        return b"".join(parts)

    def _member(self, data: memoryview) -> bytes:
        """Bytes as a member of their own."""
        if len(data) <= _SHORT:
            stream = zlib.compressobj(*_SHORT_SETTINGS)
        else:
            stream = zlib.compressobj(self._level, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = stream.compress(data) + stream.flush()
        return b"".join((_HEADER, packed, struct.pack("<2L", zlib.crc32(data), len(data))))
