"""Entries → deterministic tar → compressed blob in the store: one pass, two digests, constant memory.

Reading, hashing the tar, compressing, and hashing and writing the output go on side by side; all of them leave the
interpreter lock while they work. `diff_id_of` is the same pass without what comes after the first digest: it says
which layer entries would give, at the speed of hashing.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from assembler.errors import NodeError, refused
from assembler.oci.descriptor import COMPRESSOR, Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import BlobLayer
from assembler.oci.layout import BlobWriter, Store
from assembler.pack.chunks import ReadAhead, Watch
from assembler.pack.compress import (
    CHUNK,
    Compression,
    Compressor,
    compressor_id,
    media_type,
    open_compressor,
)
from assembler.pack.inline import executor
from assembler.pack.splice import is_spliced, open_splicer, splicer_id
from assembler.tree.builder import arrange
from assembler.tree.entry import Entry

__all__ = [
    "CHUNK",
    "Compression",
    "Follower",
    "PackedLayer",
    "Tap",
    "compressor_id",
    "diff_id_of",
    "layer_descriptor",
    "pack",
]

_WRITES: Final = 4
_FLUSH: Final = 8 << 20

Tap: TypeAlias = Callable[[memoryview], Future[None]]
"""Gets the tar chunk by chunk, in order; a chunk stays as it is until the future that it answered with is done."""


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
    follower: Follower | None = None,
    tap: Tap | None = None,
    watch: Watch | None = None,
    inline: bool = False,
) -> PackedLayer:
    """Pack `entries` into a layer of `store`. Equal entries give equal bytes, in whatever order they come.

    `epoch` is the time of every entry, in seconds since 1970. `progress` is told the uncompressed bytes that are
    through so far. `follower` may read the blob while it grows, `tap` gets the tar before it is compressed, and
    `watch` sees what its chunks are made of; what they raise ends the packing. With `inline` only zstd has threads
    of its own, as for layers that are packed beside each other. Nothing is stored unless all went well.

    StepError when a file is not as large as its entry says, NodeError when one cannot be read or the store
    cannot be written.
    """
    arranged = _arranged(entries, epoch)
    spliced = is_spliced(arranged, compression)
    with ExitStack() as stack:
        blob = stack.enter_context(store.writer())
        compressor: Compressor
        if spliced:
            compressor = splicer = open_splicer(level, threads, inline=inline)
            watch = splicer.watch
        else:
            compressor = open_compressor(compression, level, threads, inline=inline)
        stack.callback(compressor.close)
        if follower:
            follower.begin(blob.path)
        run = stack.enter_context(_Run(compressor, blob, follower, progress, store, tap, inline=inline))
        run.pack(stack.enter_context(ReadAhead(arranged, epoch, run.ahead, watch, inline=inline)))
        digest = Digest("sha256:" + run.packed.hexdigest())
        commit(blob, digest, store)
    descriptor = layer_descriptor(digest, run.packed_bytes, compression, level, spliced=spliced)
    diff_id = Digest("sha256:" + run.plain.hexdigest())
    return PackedLayer(
        layer=BlobLayer(descriptor=descriptor, diff_id=diff_id, created_by=created_by),
        uncompressed_bytes=run.plain_bytes,
        files=len(arranged),
    )


def diff_id_of(
    entries: Sequence[Entry], *, epoch: int = 0, progress: Callable[[int], None] | None = None
) -> Digest:
    """The diff ID that a layer of `entries` would have. Errors as of `pack`."""
    plain = hashlib.sha256()
    done = 0
    with ReadAhead(_arranged(entries, epoch), epoch, 1) as chunks:
        for chunk in chunks:
            plain.update(chunk)
            done += len(chunk)
            chunks.give_back(chunk)
            if progress:
                progress(done)
    return Digest("sha256:" + plain.hexdigest())


def _arranged(entries: Sequence[Entry], epoch: int) -> tuple[Entry, ...]:
    if not 0 <= epoch < 8**11:
        raise ValueError(f"expected an epoch from 0 to {8**11 - 1} seconds, got {epoch}")
    return arrange(entries)


def layer_descriptor(
    digest: Digest, size: int, compression: Compression, level: int | None = None, *, spliced: bool = False
) -> Descriptor:
    """The descriptor of a layer that was compressed here, with the compressor as annotation."""
    return Descriptor(
        media_type=media_type(compression),
        digest=digest,
        size=size,
        annotations={COMPRESSOR: splicer_id(level) if spliced else compressor_id(compression, level)},
    )


class Follower(Protocol):
    """Reads a blob while it is written: an upload that need not wait for the end. Called from threads of ours."""

    def begin(self, path: Path) -> None:
        """The blob is going to be written into this file."""

    def grew(self, size: int) -> None:
        """So many of its bytes are there."""


class _Run:
    """One packing: its threads, its buffers, and how far it is."""

    def __init__(
        self,
        compressor: Compressor,
        blob: BlobWriter,
        follower: Follower | None,
        progress: Callable[[int], None] | None,
        store: Store,
        tap: Tap | None,
        *,
        inline: bool,
    ) -> None:
        self.plain = hashlib.sha256()
        self.packed = hashlib.sha256()
        self.plain_bytes = 0
        self.packed_bytes = 0
        self._flushed = 0
        self._compressor = compressor
        self._blob = blob
        self._follower = follower
        self._progress = progress
        self._store = store
        self._tap = tap
        self.ahead = 1 if inline else compressor.threads + 2
        self._inline = inline
        self._pools: list[Executor] = []
        self._hasher = self._pool(1, "hash")
        self._writer = self._pool(1, "write")

    def _pool(self, threads: int, name: str) -> Executor:
        pool = executor(threads, name, inline=self._inline)
        self._pools.append(pool)
        return pool

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_error: object) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def pack(self, chunks: ReadAhead) -> None:
        """Send every chunk through, keeping each stage a few chunks ahead of the next."""
        working: deque[tuple[memoryview, list[Future[None]], Future[bytes]]] = deque()
        writing: deque[Future[None]] = deque()
        for chunk in chunks:
            looking = [self._hasher.submit(self.plain.update, chunk)]
            if self._tap:
                looking.append(self._tap(chunk))
            working.append((chunk, looking, self._compressor.compress(chunk)))
            if len(working) == self.ahead:
                chunks.give_back(self._end_one(working, writing))
        while working:
            self._end_one(working, writing)
        self._write(self._compressor.finish().result(), writing)
        while writing:
            writing.popleft().result()

    def _end_one(
        self, working: deque[tuple[memoryview, list[Future[None]], Future[bytes]]], writing: deque[Future[None]]
    ) -> memoryview:
        """Wait for the oldest chunk, pass on what came of it, and return it."""
        chunk, looking, compressed = working.popleft()
        self._write(compressed.result(), writing)
        for done in looking:
            done.result()
        self.plain_bytes += len(chunk)
        if self._progress:
            self._progress(self.plain_bytes)
        return chunk

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
            raise cannot_write(self._store, error) from error
        if self._follower:
            self._follower.grew(self.packed_bytes)


def commit(blob: BlobWriter, digest: Digest, store: Store) -> None:
    """Make a packed layer visible; NodeError when the disk refuses."""
    try:
        blob.commit(digest)
    except OSError as error:
        raise cannot_write(store, error) from error


def cannot_write(store: Store, error: OSError) -> NodeError:
    """The error for a store that takes no more bytes."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "`assemble gc` frees disk; `--cache DIR` puts the cache elsewhere" if is_full else None
    return NodeError(f"the layer cannot be written: {refused(error)}", place=str(store.root), hint=hint)
