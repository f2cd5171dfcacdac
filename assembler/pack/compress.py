"""Compressors whose output depends on the bytes, the level and the library version, and on nothing else.

In particular not on the number of threads, which differs from node to node while keys must not:

- zstd is always used in its multi-threaded mode, with one worker too. That mode cuts its input into jobs of a
  fixed size and gives the same bytes for any number of workers; the single-threaded mode gives others.
- gzip is cut into blocks of a fixed size that are deflated side by side, each primed with the end of the block
  before it (as pigz does), and joined to one ordinary gzip member, so every reader reads it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import zlib
from concurrent.futures import Future
from typing import Any, Final, Literal, Protocol, TypeAlias

from assembler.errors import RequestError
from assembler.oci import media_types
from assembler.pack.inline import executor

Compression: TypeAlias = Literal["zstd", "gzip"]

CHUNK: Final = 1 << 20
"""Bytes handed to a compressor at a time, fewer at the end. It is gzip's block, so it shows in the output."""

_ZSTD_JOB: Final = 4 << 20
_ZSTD_LEVELS: Final = range(1, 20)  # the levels above 19 need a window that some readers refuse
_GZIP_LEVELS: Final = range(1, 10)
_DEFAULT_LEVEL: Final = {"zstd": 3, "gzip": 6}
_MEDIA_TYPE: Final = {"zstd": media_types.LAYER_ZSTD, "gzip": media_types.LAYER_GZIP}
# SHA-256 of the tar is one stream and runs at the speed of four zstd workers, or of forty deflating ones.
_USEFUL_THREADS: Final = {"zstd": 6, "gzip": 32}
_GZIP_HEADER: Final = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"  # no name, no time, no system
_WINDOW: Final = 32 << 10


class Compressor(Protocol):
    """Takes chunks in order; each gives a part of the output, in the same order, as soon as it is done.

    A chunk must stay as it is until its future is done.
    """

    threads: int

    def compress(self, chunk: memoryview) -> Future[bytes]:
        """Compress the next `CHUNK` bytes, or fewer at the end."""

    def finish(self) -> Future[bytes]:
        """The end of the output."""

    def close(self) -> None:
        """Stop the threads. What was not begun is dropped."""


def other_than(compression: Compression) -> Compression:
    """The other one."""
    return "zstd" if compression == "gzip" else "gzip"


def media_type(compression: Compression) -> str:
    """The media type of a layer compressed so."""
    return _MEDIA_TYPE[compression]


def level_of(compression: Compression, level: int | None) -> int:
    """The level that is used; RequestError when the compressor has no such level."""
    if level is None:
        return _DEFAULT_LEVEL[compression]
    levels = _ZSTD_LEVELS if compression == "zstd" else _GZIP_LEVELS
    if level not in levels:
        raise RequestError(f"expected a {compression} level from {levels[0]} to {levels[-1]}, got {level}")
    return level


def compressor_id(compression: Compression, level: int | None = None) -> str:
    """Everything besides the bytes that decides the output: for keys, and for the layer's annotation."""
    number = level_of(compression, level)
    if compression == "gzip":
        return f"gzip zlib-{zlib.ZLIB_RUNTIME_VERSION} level-{number} block-{CHUNK}"
    import zstandard

    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    return f"zstd libzstd-{version} level-{number} job-{_ZSTD_JOB}"


def open_compressor(
    compression: Compression, level: int | None = None, threads: int | None = None, *, inline: bool = False
) -> Compressor:
    """A compressor with its threads running: by default as many as this process may use and profits from."""
    number = level_of(compression, level)
    count = min(len(os.sched_getaffinity(0)), _USEFUL_THREADS[compression]) if threads is None else max(1, threads)
    return (_Zstd if compression == "zstd" else _Gzip)(number, count, inline=inline)


class _Zstd:
    """One frame, made by libzstd's own workers; one thread of ours feeds them and waits for them."""

    def __init__(self, level: int, threads: int, *, inline: bool) -> None:
        import zstandard

        _give_back_memory()
        self.threads = threads
        parameters = zstandard.ZstdCompressionParameters.from_level(level, threads=threads, job_size=_ZSTD_JOB)
        self._stream: Any = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        self._feeder = executor(1, "zstd", inline=inline)

    def compress(self, chunk: memoryview) -> Future[bytes]:
        return self._feeder.submit(self._stream.compress, chunk)

    def finish(self) -> Future[bytes]:
        return self._feeder.submit(self._stream.flush)

    def close(self) -> None:
        self._feeder.shutdown(cancel_futures=True)


@functools.cache
def _give_back_memory() -> None:
    """Have large buffers returned to the system when they are freed, for the rest of the process.

    glibc raises the size from which it does so with the first large buffer that is freed, and from then on keeps
    those of every worker thread: 25 MiB more for each layer packed. A fixed threshold ends that, at no cost.
    """
    import ctypes

    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 20)


class _Gzip:
    """One member (RFC 1952), made of blocks that end at a byte boundary (zlib's Z_SYNC_FLUSH)."""

    def __init__(self, level: int, threads: int, *, inline: bool) -> None:
        self.threads = threads
        self._level = level
        self._pool = executor(threads, "gzip", inline=inline)
        self._before = b""
        self._begun = False
        self._checksum = 0
        self._size = 0

    def compress(self, chunk: memoryview) -> Future[bytes]:
        head = b"" if self._begun else _GZIP_HEADER
        self._begun = True
        before, self._before = self._before, bytes(chunk[-_WINDOW:])
        self._checksum = zlib.crc32(chunk, self._checksum)
        self._size += len(chunk)
        return self._pool.submit(self._deflate, chunk, before, head)

    def _deflate(self, chunk: memoryview, before: bytes, head: bytes) -> bytes:
        # Raw deflate takes the dictionary as the bytes that came before, so the reader needs to know nothing.
        stream = zlib.compressobj(self._level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, 0, before)
        return head + stream.compress(chunk) + stream.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> Future[bytes]:
        last = b"\x03\x00"  # a final block with nothing in it
        trailer = last + struct.pack("<II", self._checksum, self._size & 0xFFFFFFFF)
        end: Future[bytes] = Future()
        end.set_result(trailer if self._begun else _GZIP_HEADER + trailer)
        return end

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
