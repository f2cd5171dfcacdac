"""A tar in chunks: cut before anything is read, and filled by threads that read ahead.

The layout of a tar follows from its entries alone, so chunks are filled by several threads at once, out of order
in time and in order in the stream. Small files share a chunk, large files are read straight into theirs.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Final, TypeAlias

from assembler.errors import NodeError, StepError, refused
from assembler.pack import ustar
from assembler.pack.compress import CHUNK
from assembler.pack.inline import executor
from assembler.pack.members import Archives, MemberReader
from assembler.tree.entry import Entry, Slice, ZipMember

_READERS: Final = 3

Piece: TypeAlias = bytes | tuple[Entry | MemberReader, int, int]
"""Part of a chunk: bytes as they are, or `amount` bytes of a file's content from `offset`."""

Watch: TypeAlias = Callable[[Iterator[list[Piece]]], Iterator[list[Piece]]]
"""Sees what each chunk is made of, on its way to being filled."""


class ReadAhead:
    """The chunks of a tar in order, read by threads some chunks ahead. A context manager, to be iterated once.

    A chunk stays as it is until it is given back. At most `held` may be kept at a time. Members of zip archives
    are inflated in one thread and proved in another; what that finds is raised some chunks later, at the latest
    when the iteration ends.

    Raises StepError when a file is not as large as its entry says, NodeError when one cannot be read, and
    UntrustedInputError when a member of an archive is not what it says.
    """

    def __init__(
        self, entries: Sequence[Entry], epoch: int, held: int, watch: Watch | None = None, *, inline: bool = False
    ) -> None:
        self._archives = Archives()
        chunks = cut(entries, epoch, self._archives)
        self._chunks = watch(chunks) if watch else chunks
        self._prover: Executor | None = None
        readers = _READERS
        if any(isinstance(entry.content, ZipMember) for entry in entries):
            readers = 1  # parts of a member come one after the other
            self._prover = executor(1, "prove", inline=inline)
        self._proofs: dict[int, Future[None]] = {}
        # One byte more than a chunk: a file that grew shows itself by it.
        self._ahead = 1 if inline else _READERS
        self._free = [memoryview(bytearray(CHUNK + 1)) for _ in range(self._ahead + held)]
        self._reading: deque[tuple[list[Piece], memoryview, Future[int]]] = deque()
        self._pool = executor(readers, "read", inline=inline)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._prover:
            self._prover.shutdown(cancel_futures=True)
        self._archives.__exit__()

    def __iter__(self) -> Iterator[memoryview]:
        """Chunks of `CHUNK` bytes; the last may be shorter."""
        while True:
            while self._free and len(self._reading) < self._ahead:
                pieces = next(self._chunks, None)
                if pieces is None:
                    break
                buffer = self._free.pop()
                self._reading.append((pieces, buffer, self._pool.submit(_fill, pieces, buffer)))
            if not self._reading:
                break
            pieces, buffer, filled = self._reading.popleft()
            chunk = buffer[: filled.result()]
            if self._prover:
                self._proofs[id(buffer.obj)] = self._prover.submit(_prove, pieces, buffer)
            yield chunk
        for proof in self._proofs.values():
            proof.result()

    def give_back(self, chunk: memoryview) -> None:
        """The chunk is not needed any more."""
        proof = self._proofs.pop(id(chunk.obj), None)
        if proof:
            proof.result()
        self._free.append(memoryview(chunk.obj))


def cut(entries: Sequence[Entry], epoch: int, archives: Archives) -> Iterator[list[Piece]]:
    """The whole tar as pieces, `CHUNK` bytes at a time."""
    pieces: list[Piece] = []
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


def _fill(pieces: Sequence[Piece], buffer: memoryview) -> int:
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


def _prove(pieces: Sequence[Piece], buffer: memoryview) -> None:
    """Prove the members of archives in a chunk that was filled."""
    position = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            position += len(piece)
            continue
        source, offset, amount = piece
        if isinstance(source, MemberReader):
            source.prove(offset, buffer[position : position + amount])
        position += amount


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
            found = _read(content.path, content.offset + offset, view[:amount], amount)
        elif not entry.size:
            found = content.stat().st_size
        else:
            # Past the end of a file there must be nothing.
            found = _read(content, offset, view if offset + amount == entry.size else view[:amount], amount)
    except OSError as error:
        place = str(content.path if isinstance(content, Slice) else content)
        raise NodeError(f"`{entry.path}` cannot be read: {refused(error)}", place=place) from error
    if found != amount:
        raise _changed(entry)


def _read(path: os.PathLike[str], offset: int, view: memoryview, enough: int) -> int:
    """Fill the view from the file and return how much there was; short answers are followed up to `enough`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        done = count = os.preadv(descriptor, [view], offset)
        # The kernel gives less than was asked for at the end of a file, and in pieces of 2 GiB at the most.
        while count > 0 and done < enough:
            count = os.preadv(descriptor, [view[done:]], offset + done)
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
