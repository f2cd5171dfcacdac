"""Where an ELF file looks for libraries: its RPATH and RUNPATH, read without trusting a number in it.

System V ABI, "Object Files" and "Dynamic Linking". 64-bit little-endian only, which is every machine that we build
for; other files have no answer. Numbers that lead outside the file give None too: such a file is not loadable.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
_DYNAMIC: Final = struct.Struct("<qQ")
_KINDS: Final[dict[int, Literal["relocatable", "executable", "shared"]]] = {
    1: "relocatable",
    2: "executable",
    3: "shared",
}
_PT_LOAD: Final = 1
_PT_DYNAMIC: Final = 2
_DT_STRTAB: Final = 5
_DT_STRSZ: Final = 10
_DT_RPATH: Final = 15
_DT_RUNPATH: Final = 29
_MOST_SEGMENTS: Final = 1024
_MOST_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Elf:
    """An ELF file: its kind, and the directories that its RPATH and RUNPATH name, as written."""

    kind: Literal["relocatable", "executable", "shared"]
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


def read_elf(path: Path) -> Elf | None:
    """What an ELF file says; None for any other file, and for one with impossible numbers. Follows no link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return _read(file, os.fstat(file.fileno()).st_size)


def _read(file: IO[bytes], size: int) -> Elf | None:
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[:7] != b"\x7fELF\x02\x01\x01":
        return None
    _, kind, _, _, _, offset, _, _, _, entry_size, count, *_ = _HEADER.unpack(head)
    if kind not in _KINDS:
        return None
    if kind == 1:
        return Elf("relocatable")
    if entry_size != _PROGRAM.size or count > _MOST_SEGMENTS:
        return None
    table = _part(file, size, offset, entry_size * count)
    if table is None:
        return None
    segments = list(_PROGRAM.iter_unpack(table))
    dynamic = next((s for s in segments if s[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return Elf(_KINDS[kind])
    data = _part(file, size, dynamic[2], dynamic[5] - dynamic[5] % _DYNAMIC.size)
    if data is None:
        return None
    found: dict[int, int] = {}
    for tag, value in _DYNAMIC.iter_unpack(data):
        if tag == 0:
            break
        found.setdefault(tag, value)
    strings = b""
    if found.keys() & {_DT_RPATH, _DT_RUNPATH}:
        place = _offset_of(segments, found.get(_DT_STRTAB, 0))
        read = None if place is None else _part(file, size, place, found.get(_DT_STRSZ, 0))
        if read is None:
            return None
        strings = read
    return Elf(_KINDS[kind], _paths(strings, found.get(_DT_RPATH)), _paths(strings, found.get(_DT_RUNPATH)))


def _part(file: IO[bytes], size: int, offset: int, length: int) -> bytes | None:
    if length > _MOST_BYTES or offset + length > size:
        return None
    file.seek(offset)
    data = file.read(length)
    return data if len(data) == length else None


def _offset_of(segments: list[tuple[int, ...]], address: int) -> int | None:
    """Where in the file an address of memory is."""
    for kind, _, offset, start, _, file_size, *_ in segments:
        if kind == _PT_LOAD and start <= address < start + file_size:
            return offset + address - start
    return None


def _paths(strings: bytes, index: int | None) -> tuple[str, ...]:
    """The colon-separated list at an index of the string table. An empty entry is the current directory."""
    if index is None or index >= len(strings):
        return ()
    text = strings[index:].partition(b"\0")[0].decode(errors="surrogateescape")
    return tuple(text.split(":")) if text else ()
