"""Which GPU architectures a program or library has code for, read from its ELF file, of which nothing is trusted.

CUDA: the sections `.nv_fatbin` and `__nv_relfatbin` are containers one after the other (magic 0xBA55ED50, as in
NVIDIA's fatbinary_section.h), each with entries of machine code or PTX; the entries' headers name the architecture
even where their content is compressed. The flags for `a` and `f` were read off what nvcc 13.0 writes.

HIP: the section `.hip_fatbin` has clang's offload bundles, one for each file that was compiled, each at a multiple
of 4096 bytes: a table of targets, or the same compressed ("Clang Offload Bundler", LLVM's documentation).
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_CUDA_SECTIONS: Final = (b".nv_fatbin", b"__nv_relfatbin")
_HIP_SECTIONS: Final = (b".hip_fatbin",)
_NO_BITS: Final = 8
_MOST_SECTIONS: Final = 65_000

_CONTAINER: Final = struct.Struct("<IHHQ")
_CONTAINER_MAGIC: Final = 0xBA55ED50
_ENTRY: Final = struct.Struct("<HHIQIIHHIIIQ")
_PTX: Final = 1
_CUBIN: Final = 2
_ONLY_THIS: Final = 0x100000
_FAMILY: Final = 0x200000

_BUNDLE: Final = b"__CLANG_OFFLOAD_BUNDLE__"
_COMPRESSED: Final = b"CCOB"
_BUNDLE_ALIGNMENT: Final = 4096
_BUNDLE_ENTRY: Final = struct.Struct("<QQQ")
_MOST_TARGETS: Final = 1024
_LONGEST_TARGET: Final = 512
_TABLE_BYTES: Final = 1 << 20
_TARGET: Final = re.compile(rb"(gfx[0-9a-z]+(?:-[0-9a-z]+)*(?::[a-z]+[+-])*)$")


def gpu_architectures(path: Path) -> frozenset[str] | None:
    """Architectures as a manifest names them, `compute_90` for PTX; empty without GPU code, None when damaged.

    A file that is no 64-bit little-endian ELF has none. Follows no link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < _HEADER.size:
            return frozenset()
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            return architectures_in(data)
    except (OSError, ValueError):
        return frozenset()  # no regular file
    finally:
        os.close(descriptor)


def architectures_in(data: mmap.mmap | bytes) -> frozenset[str] | None:
    """The same for an ELF file in memory."""
    if data[:7] != b"\x7fELF\x02\x01\x01":
        return frozenset()
    found: set[str] = set()
    try:
        for name, start, end in _sections(data):
            if name in _CUDA_SECTIONS:
                found.update(_cuda(data, start, end))
            elif name in _HIP_SECTIONS:
                found.update(_hip(data, start, end))
    except (struct.error, _DamagedError):
        return None
    return frozenset(found)


class _DamagedError(ValueError):
    """A number leads outside the file, or a table is no table."""


def _sections(data: mmap.mmap | bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the sections that have bytes in the file."""
    fields = _HEADER.unpack_from(data)
    table, size, count, names_index = fields[6], fields[11], fields[12], fields[13]
    if not table or not count:
        return
    if size != _SECTION.size or count > _MOST_SECTIONS or names_index >= count:
        raise _DamagedError
    if table + size * count > len(data):
        raise _DamagedError
    sections = [_SECTION.unpack_from(data, table + number * size) for number in range(count)]
    names = sections[names_index][4]
    for name, kind, _, _, start, length, *_ in sections:
        text = bytes(data[names + name : names + name + 32]).partition(b"\0")[0]
        if kind != _NO_BITS and text in (*_CUDA_SECTIONS, *_HIP_SECTIONS):
            if start + length > len(data):
                raise _DamagedError
            yield text, start, start + length


def _cuda(data: mmap.mmap | bytes, start: int, end: int) -> Iterator[str]:
    magic = struct.pack("<I", _CONTAINER_MAGIC)
    while (start := data.find(magic, start, end)) >= 0 and start + _CONTAINER.size <= end:
        _, _, header, size = _CONTAINER.unpack_from(data, start)
        inner, after = start + header, start + header + size
        if header < _CONTAINER.size or after > end:
            raise _DamagedError
        while inner + _ENTRY.size <= after:
            kind, _, entry_header, length, _, _, _, _, number, _, _, flags = _ENTRY.unpack_from(data, inner)
            if entry_header < _ENTRY.size:
                raise _DamagedError
            if kind in (_PTX, _CUBIN):
                variant = "a" if flags & _ONLY_THIS else "f" if flags & _FAMILY else ""
                yield f"{'compute' if kind == _PTX else 'sm'}_{number}{variant}"
            inner += entry_header + length
        start = max(after, start + _CONTAINER.size)


def _hip(data: mmap.mmap | bytes, start: int, end: int) -> Iterator[str]:
    begin = start
    while start + 8 <= end:
        if data[start : start + len(_BUNDLE)] == _BUNDLE:
            targets, length = _targets(data[start : min(end, start + _TABLE_BYTES)])
        elif data[start : start + 4] == _COMPRESSED:
            head, length = _inflated(data, start, end)
            targets, _ = _targets(head)
        else:
            start += _BUNDLE_ALIGNMENT - (start - begin) % _BUNDLE_ALIGNMENT
            continue
        yield from targets
        start += max(length, 1)
        start += -(start - begin) % _BUNDLE_ALIGNMENT


def _targets(table: bytes) -> tuple[list[str], int]:
    """The GPU architectures that a bundle's table names, and how long the bundle is."""
    if table[: len(_BUNDLE)] != _BUNDLE:
        raise _DamagedError
    (count,) = struct.unpack_from("<Q", table, len(_BUNDLE))
    if count > _MOST_TARGETS:
        raise _DamagedError
    place, length, found = len(_BUNDLE) + 8, 0, []
    for _ in range(count):
        offset, size, name_length = _BUNDLE_ENTRY.unpack_from(table, place)
        place += _BUNDLE_ENTRY.size
        if name_length > _LONGEST_TARGET or place + name_length > len(table):
            raise _DamagedError
        target = table[place : place + name_length]
        place += name_length
        length = max(length, offset + size)
        if not target.startswith(b"host") and (match := _TARGET.search(target)):
            found.append(match[1].decode())
    return found, max(length, place)


def _inflated(data: mmap.mmap | bytes, start: int, end: int) -> tuple[bytes, int]:
    """The beginning of a compressed bundle, and how long it is in the file."""
    version, method = struct.unpack_from("<HH", data, start + 4)
    if version == 1:
        header, size = 20, 0
    elif version == 2:
        header, size = 24, struct.unpack_from("<I", data, start + 8)[0]
    elif version == 3:
        header, size = 32, struct.unpack_from("<Q", data, start + 8)[0]
    else:
        raise _DamagedError
    if start + size > end:
        raise _DamagedError
    stop = min(end, start + size if size else end, start + header + 4 * _TABLE_BYTES)
    packed = data[start + header : stop]
    if method == 0:
        inflater = zlib.decompressobj()
        try:
            head = inflater.decompress(packed, _TABLE_BYTES)
        except zlib.error as error:
            raise _DamagedError from error
    else:
        head = _zstd_head(packed)
    if size:
        return head, size
    # Version 1 does not say how long it is: the next one begins with the next magic at a multiple of 4096.
    following = start + _BUNDLE_ALIGNMENT
    while following < end and data[following : following + 4] not in (_COMPRESSED, _BUNDLE[:4]):
        following += _BUNDLE_ALIGNMENT
    return head, min(following, end) - start


def _zstd_head(packed: bytes) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            return reader.read(_TABLE_BYTES)
    except zstandard.ZstdError as error:
        raise _DamagedError from error
