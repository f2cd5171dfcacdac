"""Output that depends on bytes, level and library version only."""

from __future__ import annotations

import gzip
import random
import zlib
from concurrent.futures import Future
from typing import get_args

import pytest
import zstandard

from assembler.errors import RequestError
from assembler.oci import media_types
from assembler.pack.compress import CHUNK, Compression, compressor_id, media_type, open_compressor

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


def compress(data: bytes, compression: Compression, threads: int, level: int | None = None) -> bytes:
    compressor = open_compressor(compression, level, threads)
    view = memoryview(data)
    try:
        parts: list[Future[bytes]] = [
            compressor.compress(view[start : start + CHUNK]) for start in range(0, len(data), CHUNK)
        ]
        parts.append(compressor.finish())
        return b"".join(part.result() for part in parts)
    finally:
        compressor.close()


def decompress(data: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


@pytest.fixture(scope="module")
def mixture() -> bytes:
    """11 MB: nearly three zstd jobs, eleven gzip blocks, some of it repeating across their borders."""
    source = random.Random(1)  # noqa: S311  (the same bytes in every run)
    phrases = [source.randbytes(source.randint(4, 90)) for _ in range(4000)]
    return b"".join(source.choices(phrases, k=230_000)) + bytes(5)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_threads_do_not_show(mixture: bytes, compression: Compression) -> None:
    level = 1 if compression == "gzip" else None
    outputs = {compress(mixture, compression, threads, level) for threads in (1, 2, 3, 4)}
    assert len(outputs) == 1
    assert decompress(outputs.pop(), compression) == mixture


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_sizes_around_a_chunk(mixture: bytes, compression: Compression, size: int) -> None:
    packed = compress(mixture[:size], compression, 2)
    assert decompress(packed, compression) == mixture[:size]


def test_gzip_is_one_ordinary_member(mixture: bytes) -> None:
    """A reader that stops after the first member, as many do, has everything."""
    data = mixture[: 3 * CHUNK + 17]
    packed = compress(data, "gzip", 2, 1)
    stream = zlib.decompressobj(31)
    assert stream.decompress(packed) == data
    assert stream.eof
    assert stream.unused_data == b""
    assert packed[:10] == b"\x1f\x8b\x08\x00\0\0\0\0\x00\xff", "no name, no time"


def test_gzip_blocks_know_what_came_before() -> None:
    block = random.Random(2).randbytes(30_000)  # noqa: S311
    data = (bytes(CHUNK) + block)[-CHUNK:] + block
    assert len(compress(data, "gzip", 2)) < 34_000, "the second time it is found in the window"


def test_the_compressor_is_named_with_all_that_decides_its_output() -> None:
    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    assert compressor_id("zstd").startswith(f"zstd libzstd-{version} level-3 job-")
    assert compressor_id("gzip") == f"gzip zlib-{zlib.ZLIB_RUNTIME_VERSION} level-6 block-{CHUNK}"
    assert compressor_id("zstd", 3) == compressor_id("zstd")
    assert len({compressor_id("zstd", level) for level in range(1, 20)}) == 19


@pytest.mark.parametrize(("compression", "level"), [("zstd", 0), ("zstd", 20), ("gzip", 0), ("gzip", 10)])
def test_a_level_that_is_not_there(compression: Compression, level: int) -> None:
    with pytest.raises(RequestError, match=f"expected a {compression} level from 1 to .*, got {level}"):
        compressor_id(compression, level)


def test_media_types() -> None:
    assert media_type("zstd") == media_types.LAYER_ZSTD
    assert media_type("gzip") == media_types.LAYER_GZIP
