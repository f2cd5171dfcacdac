"""Compressed streams, told apart by their first bytes, read in bounded memory and up to a limit.

gzip (RFC 1952), bzip2, xz and zstd (RFC 8878). A decompressor that asks for more than half a gibibyte of memory,
and a stream that grows beyond reason (a bomb), are errors.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from assembler.errors import AssembleError

if TYPE_CHECKING:
    import hashlib

Format: TypeAlias = Literal["gzip", "bzip2", "xz", "zstd", "zip", "plain"]

CHUNK: Final = 1 << 18
MEMORY_LIMIT: Final = 512 << 20
RATIO_LIMIT: Final = 250
"""Text and weights compress 2 to 20 times, real source archives with big generated files up to about 100."""
RATIO_FREE: Final = 128 << 20
"""Bytes that may come out whatever the ratio is: a small archive of zeros harms nobody."""
TOTAL_LIMIT: Final = 64 << 30

_MAGIC: Final[tuple[tuple[bytes, Format], ...]] = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)


class Source(Protocol):
    """What is read once, forward: an open file, or a download."""

    def read(self, amount: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


class StreamError(ValueError):
    """The stream is damaged, truncated or grows beyond the limits."""


def detect(start: bytes) -> Format:
    """What a file is by its first bytes; `plain` when it is not one of ours. A zstd file may start with a skip."""
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    if len(start) >= 4 and start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F:
        return "zstd"
    return "plain"


class Stream:
    """A file, decompressed. Reads whole amounts except at the end, and keeps the limits.

    `hashing`, where it is given, is updated with all that comes out. Of a plain file that is not everything, since
    parts of it are skipped.
    """

    __slots__ = ("_compressed", "_file", "_hashing", "_reader", "_seekable", "_total", "format")

    def __init__(self, path: Path, hashing: hashlib._Hash | None = None) -> None:
        file = path.open("rb")
        try:
            start = file.read(8)
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            self._begin(file, start, size, seekable=True, hashing=hashing)
        except BaseException:
            file.close()
            raise

    @classmethod
    def of(cls, source: Source, size: int) -> Stream:
        """The same of what is read once, forward, `size` bytes of it, such as a download. It is closed with it."""
        start = b""
        stream = cls.__new__(cls)
        try:
            while len(start) < 8 and (more := source.read(8 - len(start))):
                start += more
            stream._begin(_Forward(start, source), start, size, seekable=False)
        except BaseException:
            source.close()
            raise
        return stream

    def _begin(
        self, file: Any, start: bytes, size: int, *, seekable: bool, hashing: hashlib._Hash | None = None
    ) -> None:
        self._hashing = hashing
        self._file = file
        self._seekable = seekable
        self._compressed = size
        self._total = 0
        self.format: Format = detect(start)
        self._reader = _reader(file, self.format)

    def read(self, amount: int) -> bytes:
        """`amount` bytes, fewer only at the end of the stream. StreamError when it is damaged or too big."""
        parts = []
        missing = amount
        try:
            while missing and (data := self._reader.read(min(missing, CHUNK))):
                parts.append(data)
                missing -= len(data)
        except AssembleError:  # of the source
            raise
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise StreamError(f"the {self.format} stream is damaged or truncated: {error}") from error
        except Exception as error:
            # zstandard and isal are not imported unless needed, so their errors have no names here.
            if self.format != "zstd" and type(error).__name__ != "IsalError":
                raise
            raise StreamError(f"the {self.format} stream is damaged: {error}") from error
        self._total += amount - missing
        self._check_growth()
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._hashing:
            self._hashing.update(whole)
        return whole

    def skip(self, amount: int) -> None:
        """Move forward; StreamError when the stream ends before."""
        if self.format == "plain" and self._seekable:
            if self._file.tell() + amount > self._compressed:
                raise StreamError("the archive is truncated")
            self._file.seek(amount, io.SEEK_CUR)
            return
        while amount:
            data = self.read(min(amount, CHUNK))
            if not data:
                raise StreamError("the archive is truncated")
            amount -= len(data)

    def drain(self) -> None:
        """Read to the end, so that the checksum of the compressed stream, or of the source, is verified."""
        while (self.format != "plain" or not self._seekable) and self.read(CHUNK):
            pass
        while not self._seekable and self._file.read(CHUNK):
            pass

    @property
    def total(self) -> int:
        """Bytes that came out so far; of an uncompressed file, all that is in it."""
        return self._compressed if self.format == "plain" else self._total

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
        self._file.close()

    def _check_growth(self) -> None:
        if self.format == "plain":
            return
        check_growth(self._total, self._compressed)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_growth(total: int, compressed: int) -> None:
    """StreamError when `compressed` bytes have become so many that nobody means well."""
    if total > TOTAL_LIMIT:
        raise StreamError(f"more than {TOTAL_LIMIT >> 30} GiB come out of {compressed} compressed bytes")
    if total > RATIO_FREE and total > RATIO_LIMIT * compressed:
        raise StreamError(
            f"more than {RATIO_LIMIT} times as much comes out as goes in ({total} bytes out of {compressed})"
        )


def _reader(file: IO[bytes], name: Format) -> Any:
    if name == "gzip":
        return _gzip_type()(fileobj=file, mode="rb")
    if name == "bzip2":
        return _Members(file, "bzip2")
    if name == "xz":
        return _Members(file, "xz")
    if name == "zstd":
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=MEMORY_LIMIT)
        return decompressor.stream_reader(file, read_across_frames=True, closefd=False)
    return file


def _gzip_type() -> Any:
    """isal's subclass of the library's gzip reader where there is a build of it: two to three times as fast."""
    try:
        from isal.igzip import IGzipFile
    except ImportError:
        return gzip.GzipFile
    return IGzipFile


class _Forward:
    """A source with its first bytes put back."""

    __slots__ = ("_source", "_start")

    def __init__(self, start: bytes, source: Source) -> None:
        self._start = start
        self._source = source

    def read(self, amount: int = -1) -> bytes:
        """What is there first, then what comes."""
        if not self._start:
            return self._source.read(amount)
        if 0 <= amount < len(self._start):
            taken, self._start = self._start[:amount], self._start[amount:]
            return taken
        taken, self._start = self._start, b""
        return taken + self._source.read(amount - len(taken) if amount >= 0 else -1)

    def readinto(self, buffer: bytearray) -> int:
        """As `read`, into a buffer: isal's way."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def peek(self, _amount: int) -> bytes:
        """Some of what comes next, nothing only at the end."""
        self._start = self._start or self._source.read(CHUNK)
        return self._start

    def close(self) -> None:
        """Let go of the source."""
        self._source.close()


class _Members:
    """bzip2 or xz streams one after the other. The library's own file objects know no memory limit."""

    def __init__(self, file: IO[bytes], name: Literal["bzip2", "xz"]) -> None:
        self._file = file
        self._name = name
        self._current: Any = self._new()
        self._started = False

    def _new(self) -> Any:
        if self._name == "bzip2":
            return bz2.BZ2Decompressor()
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MEMORY_LIMIT)

    def read(self, amount: int) -> bytes:
        """Up to `amount` bytes; empty only at the end. EOFError when a stream stops in the middle."""
        while True:
            if self._current.eof:
                rest = self._current.unused_data or self._file.read(CHUNK)
                rest = rest.lstrip(b"\0") if self._name == "xz" else rest  # xz pads between streams
                if not rest and not self._file.peek(1):  # type: ignore[attr-defined]
                    return b""
                self._current = self._new()
                data = self._current.decompress(rest, amount)
            elif self._current.needs_input:
                fresh = self._file.read(CHUNK)
                if not fresh:
                    raise EOFError("it ends before its end marker")
                data = self._current.decompress(fresh, amount)
            else:
                data = self._current.decompress(b"", amount)
            if data:
                return bytes(data)

    def close(self) -> None:
        """Nothing is held."""
