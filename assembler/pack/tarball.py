"""Entries → deterministic tar → compressed blob in the store: one pass, two digests, constant memory.

The layout of the tar follows from the entries alone, so it is cut into chunks before anything is read, and chunks
are filled by several threads at once, out of order in time and in order in the stream. Small files share a chunk,
large files are read straight into theirs. Reading, hashing the tar, compressing, and hashing and writing the
output go on side by side; all of them leave the interpreter lock while they work.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from assembler.errors import NodeError, StepError
from assembler.oci.descriptor import COMPRESSOR, Descriptor
from assembler.oci.digest import Digest, Writable
from assembler.oci.image import BlobLayer
from assembler.oci.layout import BlobWriter, Store
from assembler.pack import ustar
from assembler.pack.compress import (
    CHUNK,
    Compression,
    Compressor,
    compressor_id,
    media_type,
    open_compressor,
)
from assembler.pack.members import Archives, MemberReader
from assembler.pack.splice import open_splicer, splicer_id
from assembler.tree.builder import arrange
from assembler.tree.entry import Entry, Slice, ZipMember

__all__ = ["CHUNK", "Compression", "PackedLayer", "compressor_id", "pack"]

_READERS: Final = 3
_WRITES: Final = 4
_FLUSH: Final = 8 << 20

_Piece: TypeAlias = bytes | tuple[Entry | MemberReader, int, int]
"""Part of a chunk: bytes as they are, or `amount` bytes of a file's content from `offset`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayer:
    """A layer whose blob is in the store. `uncompressed_bytes` is the size of its tar, `files` its entries."""

    layer: BlobLayer
    uncompressed_bytes: int
    files: int


def pack(
    entries: Sequence[Entry],
    store: Store,
    *,
    compression: Compression = "zstd",
    level: int | None = None,
    epoch: int = 0,
    threads: int | None = None,
    created_by: str = "",
    progress: Callable[[int], None] | None = None,
    sink: Writable | None = None,
) -> PackedLayer:
    """Pack `entries` into a layer of `store`. Equal entries give equal bytes, in whatever order they come.

    `epoch` is the time of every entry, in seconds since 1970. `progress` is told the uncompressed bytes that are
    through so far. `sink` gets the compressed bytes as they are made, from a thread of ours; what it raises ends
    the packing. Nothing is stored unless all went well.

    StepError when a file is not as large as its entry says, NodeError when one cannot be read or the store
    cannot be written.
    """
    arranged = arrange(entries)
    if not 0 <= epoch < 8**11:
        raise ValueError(f"expected an epoch from 0 to {8**11 - 1} seconds, got {epoch}")
    spliced = compression == "gzip" and any(isinstance(entry.content, ZipMember) for entry in arranged)
    with ExitStack() as stack:
        blob = stack.enter_context(store.writer())
        chunks = _chunks(arranged, epoch, stack.enter_context(Archives()))
        compressor: Compressor
        if spliced:
            compressor = splicer = open_splicer(level, threads)
            chunks = splicer.watch(chunks)
        else:
            compressor = open_compressor(compression, level, threads)
        stack.callback(compressor.close)
        run = stack.enter_context(_Run(compressor, blob, sink, progress, store))
        run.pack(chunks)
        digest = Digest("sha256:" + run.packed.hexdigest())
        _commit(blob, digest, store)
    descriptor = Descriptor(
        media_type=media_type(compression),
        digest=digest,
        size=run.packed_bytes,
        annotations={COMPRESSOR: splicer_id(level) if spliced else compressor_id(compression, level)},
    )
    diff_id = Digest("sha256:" + run.plain.hexdigest())
    return PackedLayer(
        layer=BlobLayer(descriptor=descriptor, diff_id=diff_id, created_by=created_by),
        uncompressed_bytes=run.plain_bytes,
        files=len(arranged),
    )


class _Run:
    """One packing: its threads, its buffers, and how far it is."""

    def __init__(
        self,
        compressor: Compressor,
        blob: BlobWriter,
        sink: Writable | None,
        progress: Callable[[int], None] | None,
        store: Store,
    ) -> None:
        self.plain = hashlib.sha256()
        self.packed = hashlib.sha256()
        self.plain_bytes = 0
        self.packed_bytes = 0
        self._flushed = 0
        self._compressor = compressor
        self._blob = blob
        self._sink = sink
        self._progress = progress
        self._store = store
        self._working = compressor.threads + 2
        self._pools: list[ThreadPoolExecutor] = []
        self._readers = self._pool(_READERS, "read")
        self._hasher = self._pool(1, "hash")
        self._writer = self._pool(1, "write")

    def _pool(self, threads: int, name: str) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(threads, name)
        self._pools.append(pool)
        return pool

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_error: object) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def pack(self, chunks: Iterator[list[_Piece]]) -> None:
        """Send every chunk through, keeping each stage a few chunks ahead of the next."""
        # One byte more than a chunk: a file that grew shows itself by it.
        free = [memoryview(bytearray(CHUNK + 1)) for _ in range(_READERS + self._working)]
        reading: deque[tuple[memoryview, Future[int]]] = deque()
        working: deque[tuple[memoryview, int, Future[None], Future[bytes]]] = deque()
        writing: deque[Future[None]] = deque()
        more = True
        while True:
            while more and free and len(reading) < _READERS:
                chunk = next(chunks, None)
                if chunk is None:
                    more = False
                    break
                buffer = free.pop()
                reading.append((buffer, self._readers.submit(_fill, chunk, buffer)))
            if reading and len(working) < self._working:
                buffer, filled = reading.popleft()
                size = filled.result()
                view = buffer[:size]
                working.append(
                    (buffer, size, self._hasher.submit(self.plain.update, view), self._compressor.compress(view))
                )
            elif working:
                buffer, size, hashed, compressed = working.popleft()
                self._write(compressed.result(), writing)
                hashed.result()
                free.append(buffer)
                self.plain_bytes += size
                if self._progress:
                    self._progress(self.plain_bytes)
            else:
                break
        self._write(self._compressor.finish().result(), writing)
        while writing:
            writing.popleft().result()

    def _write(self, data: bytes, writing: deque[Future[None]]) -> None:
        if data:
            writing.append(self._writer.submit(self._put, data))
        while len(writing) > _WRITES or (writing and writing[0].done()):
            writing.popleft().result()

    def _put(self, data: bytes) -> None:
        """Hash and write a part of the output; begin to send it to the disk, so that `commit` need not wait."""
        self.packed.update(data)
        try:
            written = self._blob.write(data)
            while written < len(data):  # a full disk writes what fits first, and fails then
                written += self._blob.write(data[written:])
            self.packed_bytes += len(data)
            if self.packed_bytes - self._flushed >= _FLUSH:
                # Linux begins to write dirty pages back when they are said not to be needed, and keeps them.
                amount = self.packed_bytes - self._flushed
                os.posix_fadvise(self._blob.fileno(), self._flushed, amount, os.POSIX_FADV_DONTNEED)
                self._flushed = self.packed_bytes
        except OSError as error:
            raise _cannot_write(self._store, error) from error
        if self._sink:
            self._sink.write(data)


def _commit(blob: BlobWriter, digest: Digest, store: Store) -> None:
    try:
        blob.commit(digest)
    except OSError as error:
        raise _cannot_write(store, error) from error


def _cannot_write(store: Store, error: OSError) -> NodeError:
    return NodeError(f"the layer cannot be written: {error.strerror or error}", place=str(store.root))


def _chunks(entries: Sequence[Entry], epoch: int, archives: Archives) -> Iterator[list[_Piece]]:
    """The whole tar as pieces, `CHUNK` bytes at a time."""
    pieces: list[_Piece] = []
    room = CHUNK
    for entry in entries:
        data = ustar.header(entry, epoch)
        while len(data) > room:
            pieces.append(data[:room])
            yield pieces
            data, pieces, room = data[room:], [], CHUNK
        pieces.append(data)
        room -= len(data)
        if entry.kind != "file":
            continue
        offset, size = 0, entry.size
        source = archives.reader(entry.content) if isinstance(entry.content, ZipMember) else entry
        while size - offset > room:
            if room:
                pieces.append((source, offset, room))
                offset += room
            yield pieces
            pieces, room = [], CHUNK
        # An empty file gets its piece too: it may have grown.
        pieces.append((source, offset, size - offset))
        room -= size - offset
        # Headers and contents are whole blocks and so is a chunk: the padding always fits.
        if padding := ustar.padding(size):
            pieces.append(bytes(padding))
            room -= padding
    if room < len(ustar.END):
        pieces.append(ustar.END[:room])
        yield pieces
        pieces, room = [ustar.END[room:]], CHUNK
    else:
        pieces.append(ustar.END)
    yield pieces


def _fill(pieces: Sequence[_Piece], buffer: memoryview) -> int:
    """Put the pieces into the buffer, one after the other, and return their size together."""
    position = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            end = position + len(piece)
            buffer[position:end] = piece
        else:
            source, offset, amount = piece
            end = position + amount
            if isinstance(source, Entry):
                _copy(source, offset, amount, buffer[position : end + 1])
            else:
                source.fill(offset, buffer[position:end])
        position = end
    return position


def _copy(entry: Entry, offset: int, amount: int, view: memoryview) -> None:
    """Read part of an entry's content into `view`, which has room for one byte more."""
    content = entry.content
    if isinstance(content, bytes):
        if len(content) != entry.size:
            raise _changed(entry)
        view[:amount] = content[offset : offset + amount]
        return
    if content is None or isinstance(content, ZipMember):
        raise ValueError(f"`{entry.path}` is a file without content of its own")
    try:
        if isinstance(content, Slice):
            found = _read(content.path, content.offset + offset, view[:amount])
        elif not entry.size:
            found = content.stat().st_size
        else:
            # Past the end of a file there must be nothing.
            found = _read(content, offset, view if offset + amount == entry.size else view[:amount])
    except OSError as error:
        place = str(content.path if isinstance(content, Slice) else content)
        raise NodeError(f"`{entry.path}` cannot be read: {error.strerror or error}", place=place) from error
    if found != amount:
        raise _changed(entry)


def _read(path: os.PathLike[str], offset: int, view: memoryview) -> int:
    """Fill the view from the file and return how much of it there was."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:] if done else view], offset + done)
            if not count:
                break
            done += count
        return done
    finally:
        os.close(descriptor)


def _changed(entry: Entry) -> StepError:
    content = entry.content
    path = content.path if isinstance(content, Slice) else content
    got = f"{len(content)} bytes" if isinstance(content, bytes) else "another size"
    if isinstance(content, Path):
        with contextlib.suppress(OSError):
            got = f"{content.stat().st_size} bytes"
    return StepError(
        f"`{entry.path}` changed while it was packed: expected {entry.size} bytes, got {got}",
        place=str(path) if isinstance(path, Path) else None,
        hint="let whatever writes there end, and run again",
    )
