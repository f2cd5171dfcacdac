"""The floor for wheels: inflate, SHA-256 and zstd-3 over the members of wheels, with nothing around them.

Run as a process of its own: `python wheel_floor.py zstd|gzip WHEEL…` prints seconds. Two hashes must be made of a
layer, that of its tar and that of its blob. With gzip nothing is compressed: the blob is what lies in the wheels.
Members are inflated in one thread, hashed in another and compressed by as many as there are processors for us.
"""

from __future__ import annotations

import hashlib
import os
import queue
import struct
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard
from isal import isal_zlib

CHUNK = 1 << 20
FEED = 256 << 10
AHEAD = 8


def members(wheels: Sequence[Path]) -> list[tuple[Path, int, int, bool]]:
    """File, offset, packed size and method of all members; looking them up is not timed."""
    found = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive, wheel.open("rb") as file:
            for info in archive.infolist():
                file.seek(info.header_offset + 26)
                start = info.header_offset + 30 + sum(struct.unpack("<2H", file.read(4)))
                found.append((wheel, start, info.compress_size, info.compress_type == zipfile.ZIP_DEFLATED))
    return found


def packed(listed: Sequence[tuple[Path, int, int, bool]]) -> Iterator[tuple[bytes, bool, bool]]:
    """The packed bytes of all members, in parts, each with whether it is deflated and whether it is the last."""
    files = {wheel: os.open(wheel, os.O_RDONLY) for wheel in {row[0] for row in listed}}
    for wheel, start, size, deflated in listed:
        for offset in range(0, size, FEED):
            amount = min(FEED, size - offset)
            yield os.pread(files[wheel], amount, start + offset), deflated, offset + amount == size


def inflated(listed: Sequence[tuple[Path, int, int, bool]]) -> Iterator[bytes]:
    """The plain bytes, about a chunk at a time."""
    parts: list[bytes] = []
    size = 0
    stream = isal_zlib.decompressobj(-zlib.MAX_WBITS)
    for data, deflated, last in packed(listed):
        plain = stream.decompress(data) if deflated else data
        if last and deflated:
            stream = isal_zlib.decompressobj(-zlib.MAX_WBITS)
        parts.append(plain)
        size += len(plain)
        if size >= CHUNK:
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join(parts)


def hashing(todo: queue.Queue[bytes | None]) -> threading.Thread:
    """A thread that hashes what it is given, until it is given None."""

    def hash_all() -> None:
        digest = hashlib.sha256()
        while (data := todo.get()) is not None:
            digest.update(data)

    thread = threading.Thread(target=hash_all)
    thread.start()
    return thread


def floor_seconds(compression: str, wheels: Sequence[Path], threads: int) -> float:
    """Wall clock of what cannot be left out."""
    listed = members(wheels)
    plain: queue.Queue[bytes | None] = queue.Queue(AHEAD)
    blob: queue.Queue[bytes | None] = queue.Queue(AHEAD)
    started = time.monotonic()
    hashers = [hashing(plain), hashing(blob)]
    copier = None
    if compression == "gzip":
        copier = threading.Thread(target=lambda: [blob.put(data) for data, _, _ in packed(listed)])
        copier.start()
        for chunk in inflated(listed):
            plain.put(chunk)
    else:
        parameters = zstandard.ZstdCompressionParameters.from_level(3, threads=threads, job_size=4 << 20)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        chunks: queue.Queue[bytes | None] = queue.Queue(AHEAD)

        def inflate() -> None:
            for chunk in inflated(listed):
                plain.put(chunk)
                chunks.put(chunk)
            chunks.put(None)

        copier = threading.Thread(target=inflate)
        copier.start()
        while (chunk := chunks.get()) is not None:
            blob.put(compressor.compress(chunk))
        blob.put(compressor.flush())
    copier.join()
    plain.put(None)
    blob.put(None)
    for hasher in hashers:
        hasher.join()
    return time.monotonic() - started


if __name__ == "__main__":
    print(floor_seconds(sys.argv[1], [Path(name) for name in sys.argv[2:]], len(os.sched_getaffinity(0))))
    print(time.process_time(), file=sys.stderr)
