"""Wheels of any content, sound or not: every byte of the zip can be chosen, and what is not chosen is right."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from assembler.manifest.wheels import LockedWheel

WHEEL: Final = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
NAME: Final = "demo"
VERSION: Final = "1.0"
INFO: Final = f"{NAME}-{VERSION}.dist-info"
DATA: Final = f"{NAME}-{VERSION}.data"
_LARGE: Final = 0xFFFF_FFFF


@dataclass(frozen=True)
class Member:
    """A member of the zip. `local_name`, `crc`, `size` and `packed` are what headers say, where that is a lie.

    `described` puts sizes and checksum after the bytes; `zip64` puts sizes into extra fields; `after` are bytes
    that follow the member.
    """

    name: str
    data: bytes = b""
    mode: int = 0o100644
    deflated: bool = True
    described: bool = False
    zip64: bool = False
    flags: int = 0
    method: int | None = None
    raw: bytes | None = None
    raw_name: bytes | None = None
    local_name: bytes | None = None
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    after: bytes = b""
    listed: bool = True

    def packed_bytes(self) -> bytes:
        """The bytes of the member in the file."""
        if self.raw is not None:
            return self.raw
        if not self.deflated:
            return self.data
        stream = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        return stream.compress(self.data) + stream.flush()


@dataclass(frozen=True)
class RawWheel:
    """A wheel in the making. `record` changes the lines of RECORD before they are written, `end` the file."""

    members: tuple[Member, ...]
    record: Callable[[list[str]], list[str]] = field(default=lambda lines: lines)
    wheel: bytes | None = WHEEL
    info: str = INFO
    end: Callable[[bytes], bytes] = field(default=lambda data: data)
    comment: bytes = b""

    def build(self) -> bytes:
        """The file."""
        members = list(self.members)
        if self.wheel is not None:
            members.append(Member(f"{self.info}/WHEEL", self.wheel))
        members.append(Member(f"{self.info}/METADATA", b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n"))
        lines = [record_line(member.name, member.data) for member in members if not member.name.endswith("/")]
        lines = self.record([*lines, f"{self.info}/RECORD,,"])
        members.append(Member(f"{self.info}/RECORD", "".join(f"{line}\n" for line in lines).encode()))
        return self.end(zipped(members, self.comment))

    def write(self, directory: Path, filename: str = f"{NAME}-{VERSION}-py3-none-any.whl") -> Path:
        """The file, in a directory."""
        path = directory / filename
        path.write_bytes(self.build())
        return path


def wheel(*members: Member, **options: object) -> RawWheel:
    """A wheel with these members and the metadata that it needs."""
    return replace(RawWheel(members), **options)  # type: ignore[arg-type]


def files(contents: Mapping[str, bytes]) -> tuple[Member, ...]:
    """Plain members."""
    return tuple(Member(name, data) for name, data in contents.items())


def record_line(name: str, data: bytes) -> str:
    """A line of RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    quoted = f'"{name}"' if "," in name else name
    return f"{quoted},sha256={digest},{len(data)}"


def locked(path: Path, **fields: object) -> LockedWheel:
    """The file as the lock knows it."""
    data = path.read_bytes()
    name, version, *_ = path.name.split("-")
    known: dict[str, object] = {
        "name": name.replace("_", "-").lower(),
        "version": version,
        "filename": path.name,
        "url": "",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
    }
    return LockedWheel(**{**known, **fields})  # type: ignore[arg-type]


def zipped(members: Sequence[Member], comment: bytes = b"") -> bytes:
    """A zip archive of these members."""
    out = bytearray()
    listed = bytearray()
    count = 0
    for member in members:
        start = len(out) if member.offset is None else member.offset
        out += _local(member)
        if member.listed:
            listed += _central(member, start)
            count += 1
    place = len(out)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(listed), place, len(comment)) + comment
    return bytes(out + listed + end)


def _numbers(member: Member) -> tuple[int, int, int]:
    packed = len(member.packed_bytes()) if member.packed is None else member.packed
    size = len(member.data) if member.size is None else member.size
    return (zlib.crc32(member.data) if member.crc is None else member.crc), packed, size


def _head(member: Member) -> tuple[int, int]:
    flags = member.flags | (8 if member.described else 0) | (0 if member.name.isascii() else 0x800)
    return flags, ((8 if member.deflated else 0) if member.method is None else member.method)


def _local(member: Member) -> bytes:
    crc, packed, size = _numbers(member)
    flags, method = _head(member)
    own = member.name.encode() if member.raw_name is None else member.raw_name
    name = own if member.local_name is None else member.local_name
    extra = struct.pack("<2H2Q", 1, 16, size, packed) if member.zip64 else b""
    after = b""
    if member.described:
        after = b"PK\7\10" + struct.pack("<L2Q" if member.zip64 else "<3L", crc, packed, size)
        crc = packed = size = 0
    elif member.zip64:
        packed = size = _LARGE
    fields = (b"PK\3\4", 45, flags, method, 0, 0x21, crc, packed, size, len(name), len(extra))
    return struct.pack("<4s5H3L2H", *fields) + name + extra + member.packed_bytes() + after + member.after


def _central(member: Member, start: int) -> bytes:
    crc, packed, size = _numbers(member)
    flags, method = _head(member)
    name = member.name.encode() if member.raw_name is None else member.raw_name
    extra = struct.pack("<2H3Q", 1, 24, size, packed, start) if member.zip64 else b""
    if member.zip64:
        packed = size = start = _LARGE
    fields = (b"PK\1\2", 0x0314, 45, flags, method, 0, 0x21, crc, packed, size, len(name), len(extra), 0, 0, 0)
    return struct.pack("<4s6H3L5H2L", *fields, member.mode << 16, start) + name + extra
