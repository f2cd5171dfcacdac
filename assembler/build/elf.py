"""What libraries an ELF file needs and where it looks for them, read without trusting a number in it.

System V ABI, "Object Files" and "Dynamic Linking". 64-bit little-endian only, which is every machine that we build
for; other files have no answer. Numbers that lead outside the file give None too: such a file is not loadable.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, TypeAlias

Kind: TypeAlias = Literal["relocatable", "executable", "shared"]

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM: Final = struct.Struct("<IIQQQQQQ")
_DYNAMIC: Final = struct.Struct("<qQ")
_KINDS: Final[dict[int, Kind]] = {1: "relocatable", 2: "executable", 3: "shared"}
_PT_LOAD: Final = 1
_PT_DYNAMIC: Final = 2
_DT_NEEDED: Final = 1
_DT_STRTAB: Final = 5
_DT_STRSZ: Final = 10
_DT_RPATH: Final = 15
_DT_RUNPATH: Final = 29
_MOST_SEGMENTS: Final = 1024
_MOST_DYNAMIC_BYTES: Final = 1 << 20
_LONGEST_STRING: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Elf:
    """An ELF file: its kind, the libraries it needs, and the directories of its RPATH and RUNPATH, as written."""

    kind: Kind
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


class _ImpossibleError(ValueError):
    """A number leads outside the file, or past every reasonable size."""


def read_elf(path: Path) -> Elf | None:
    """What an ELF file says; None for any other file, and for one with impossible numbers. Follows no link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        try:
            return _read(file, status.st_size) if stat.S_ISREG(status.st_mode) else None
        except _ImpossibleError:
            return None


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
    segments = list(_PROGRAM.iter_unpack(_part(file, size, offset, entry_size * count)))
    dynamic = next((segment for segment in segments if segment[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return Elf(_KINDS[kind])
    length = dynamic[5] - dynamic[5] % _DYNAMIC.size
    if length > _MOST_DYNAMIC_BYTES:
        return None
    needed: list[int] = []
    found: dict[int, int] = {}
    for tag, value in _DYNAMIC.iter_unpack(_part(file, size, dynamic[2], length)):
        if tag == 0:
            break
        if tag == _DT_NEEDED:
            needed.append(value)
        found.setdefault(tag, value)
    strings = _Strings(file, size, _offset_of(segments, found.get(_DT_STRTAB, 0)), found.get(_DT_STRSZ, 0))
    return Elf(
        _KINDS[kind],
        needed=tuple(strings.at(index) for index in needed),
        rpath=_directories(strings, found.get(_DT_RPATH)),
        runpath=_directories(strings, found.get(_DT_RUNPATH)),
    )


def _part(file: IO[bytes], size: int, offset: int, length: int) -> bytes:
    if offset + length > size:
        raise _ImpossibleError
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise _ImpossibleError
    return data


def _offset_of(segments: list[tuple[int, ...]], address: int) -> int | None:
    """Where in the file an address of memory is."""
    for kind, _, offset, start, _, file_size, *_ in segments:
        if kind == _PT_LOAD and start <= address < start + file_size:
            return offset + address - start
    return None


@dataclass(frozen=True, slots=True)
class _Strings:
    """The string table of the dynamic linker, of `length` bytes at `offset`; big libraries have many MiB of it."""

    file: IO[bytes]
    file_size: int
    offset: int | None
    length: int

    def at(self, index: int) -> str:
        if self.offset is None or index >= self.length or self.offset + self.length > self.file_size:
            raise _ImpossibleError
        most = min(self.length - index, _LONGEST_STRING)
        text, end, _ = _part(self.file, self.file_size, self.offset + index, most).partition(b"\0")
        if not end:
            raise _ImpossibleError
        return text.decode(errors="surrogateescape")


def _directories(strings: _Strings, index: int | None) -> tuple[str, ...]:
    """The colon-separated list at an index of the string table. An empty entry is the current directory."""
    text = "" if index is None else strings.at(index)
    return tuple(text.split(":")) if text else ()
