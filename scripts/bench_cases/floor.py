"""The floor: SHA-256 and zstd-3 over the bytes of a directory, with nothing around them.

Run as a process of its own, since it holds all the bytes: `python floor.py DIRECTORY` prints seconds. Reading is
not timed. Both calls run side by side, with as many compressing threads as there are processors for us.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from pathlib import Path

import zstandard

CHUNK = 1 << 20


def floor_seconds(root: Path, threads: int) -> float:
    """Wall clock of hashing and compressing all files below `root`."""
    data = memoryview(b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()))
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    digest = hashlib.sha256()
    parameters = zstandard.ZstdCompressionParameters.from_level(3, threads=threads)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def hash_all() -> None:
        for chunk in chunks:
            digest.update(chunk)

    hasher = threading.Thread(target=hash_all)
    started = time.monotonic()
    hasher.start()
    for chunk in chunks:
        compressor.compress(chunk)
    compressor.flush()
    hasher.join()
    return time.monotonic() - started


if __name__ == "__main__":
    print(floor_seconds(Path(sys.argv[1]), len(os.sched_getaffinity(0))))
