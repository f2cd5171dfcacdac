"""The same layer in two compressions: made from one reading of its content, or one from the other.

Both have the diff ID of the one tar, so images that differ in nothing but these layers share their config. A layer
that is in the store already is compressed anew from there: what a command did in a container is then not done
twice, and could not come out differently.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import cast

from assembler.errors import VerifyError
from assembler.oci import media_types
from assembler.oci.digest import Digest, Readable
from assembler.oci.image import BlobLayer
from assembler.oci.layout import BlobWriter, Store
from assembler.pack.chunks import Watch
from assembler.pack.compress import CHUNK, Compression, Compressor, open_compressor
from assembler.pack.splice import is_spliced, open_splicer
from assembler.pack.tarball import Follower, PackedLayer, cannot_write, commit, layer_descriptor, pack
from assembler.tree.entry import Entry


def pack_twins(
    entries: Sequence[Entry],
    store: Store,
    compressions: tuple[Compression, Compression],
    *,
    epoch: int = 0,
    threads: int | None = None,
    created_by: str = "",
    progress: Callable[[int], None] | None = None,
    follower: Follower | None = None,
) -> tuple[PackedLayer, PackedLayer]:
    """Pack `entries` in both compressions at once: they are read, and the tar is hashed, once.

    The bytes are those of `pack` with either; so are options and errors. `follower` reads the first of the blobs.
    """
    first, second = compressions
    with ExitStack() as stack:
        spliced = is_spliced(entries, second)
        output = stack.enter_context(_Output(store, second, threads, spliced=spliced))
        packed = pack(
            entries,
            store,
            compression=first,
            epoch=epoch,
            threads=threads,
            created_by=created_by,
            progress=progress,
            follower=follower,
            tap=output.add,
            watch=output.watch,
        )
        digest, size = output.finish()
    other = replace(packed.layer, descriptor=layer_descriptor(digest, size, second, spliced=spliced))
    return packed, replace(packed, layer=other)


def recompress(
    layer: BlobLayer,
    store: Store,
    compression: Compression,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> BlobLayer:
    """A layer of the store in another compression, with the bytes that packing its content would have given.

    Raises VerifyError when the layer is not what its diff ID says, NodeError when the store cannot be written.
    """
    plain = hashlib.sha256()
    done = 0
    with ExitStack() as stack:
        output = stack.enter_context(_Output(store, compression, threads))
        waiting: list[Future[None]] = []
        for chunk in _chunks(stack.enter_context(_decompressed(store, layer))):
            plain.update(chunk)
            waiting.append(output.add(memoryview(chunk)))
            if len(waiting) > output.ahead:
                waiting.pop(0).result()
            done += len(chunk)
            if progress:
                progress(done)
        for future in waiting:
            future.result()
        found = Digest("sha256:" + plain.hexdigest())
        if found != layer.diff_id:
            place = f"layer {layer.descriptor.digest}"
            raise VerifyError(f"expected diff ID {layer.diff_id}, the tar gives {found}", place=place)
        digest, size = output.finish()
    return replace(layer, descriptor=layer_descriptor(digest, size, compression))


class _Output:
    """A blob of the store that is compressed chunk by chunk; `ahead` chunks may be on their way at once."""

    def __init__(
        self, store: Store, compression: Compression, threads: int | None, *, spliced: bool = False
    ) -> None:
        self._store = store
        self._hash = hashlib.sha256()
        self._size = 0
        self._compression = compression
        self._threads = threads
        self._spliced = spliced
        self.watch: Watch | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _Output:
        with ExitStack() as stack:
            self._blob: BlobWriter = stack.enter_context(self._store.writer())
            # Ended last: it waits for chunks that the compressor still has.
            self._writer = ThreadPoolExecutor(1, "write-twin")
            stack.callback(self._writer.shutdown, cancel_futures=True)
            if self._spliced:
                self._compressor: Compressor = (splicer := open_splicer(None, self._threads))
                self.watch = splicer.watch
            else:
                self._compressor = open_compressor(self._compression, None, self._threads)
            stack.callback(self._compressor.close)
            self._stack = stack.pop_all()
        self.ahead = self._compressor.threads + 2
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, chunk: memoryview) -> Future[None]:
        """The next chunk; done when it is compressed and what came of it is written."""
        part = self._compressor.compress(chunk)
        return self._writer.submit(lambda: self._put(part.result()))

    def finish(self) -> tuple[Digest, int]:
        """Make the blob visible; its digest and size."""
        part = self._compressor.finish()
        self._writer.submit(lambda: self._put(part.result())).result()
        digest = Digest("sha256:" + self._hash.hexdigest())
        commit(self._blob, digest, self._store)
        return digest, self._size

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        try:
            written = 0
            while written < len(data):
                written += self._blob.write(data[written:])
        except OSError as error:
            raise cannot_write(self._store, error) from error


def _chunks(stream: Readable) -> Iterator[bytes]:
    """The stream in whole chunks, since gzip's blocks are chunks; the last may be shorter."""
    while True:
        parts, missing = [], CHUNK
        while missing and (data := stream.read(missing)):
            parts.append(data)
            missing -= len(data)
        if parts:
            yield b"".join(parts)
        if missing:
            return


@contextmanager
def _decompressed(store: Store, layer: BlobLayer) -> Iterator[Readable]:
    """The tar of a layer of the store; VerifyError when its blob is damaged."""
    import zstandard

    with store.open(layer.descriptor.digest) as file:
        try:
            if layer.descriptor.media_type == media_types.LAYER_GZIP:
                with gzip.GzipFile(fileobj=file, mode="rb") as plain:
                    yield cast("Readable", plain)
            elif layer.descriptor.media_type == media_types.LAYER_ZSTD:
                with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader:
                    yield cast("Readable", reader)
            else:
                yield file
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise VerifyError(f"is damaged: {error}", place=f"layer {layer.descriptor.digest}") from error
