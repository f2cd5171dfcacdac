"""The SIF container: a global header, a table of descriptors, data objects, and the file system.

Written after the facts of github.com/apptainer/sif, pkg/sif (specification version 01); numbers are little-endian
and nothing is padded. Objects other than partitions follow each other without gaps, a partition begins at a page.
Everything is known before the file system is made but its size, so that the squashfs can be written to its place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LAUNCH: Final = b"#!/usr/bin/env run-singularity\n"
"""The kernel runs a SIF with this."""
PAGE: Final = 4096
"""Where partitions may begin, and where the table of descriptors does."""

DEFINITION: Final = 0x4001
PARTITION: Final = 0x4004
JSON: Final = 0x4006

ARCHITECTURES: Final = {
    name: b"%02d\0" % number
    for number, name in enumerate(
        (
            *("386", "amd64", "arm", "arm64", "ppc64", "ppc64le", "mips", "mipsle"),
            *("mips64", "mips64le", "s390x", "riscv64", "loong64"),
        ),
        1,
    )
}
"""Go's names of architectures, and their codes."""

_HEADER: Final = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR: Final = struct.Struct("<i?3I7q128s384s")
_EXTRA: Final = struct.Struct("<ii3s")
_CAPACITY: Final = 48
_DATA: Final = PAGE + _CAPACITY * _DESCRIPTOR.size
_GROUP: Final = 0xF0000001
_SQUASHFS: Final = 1
_PRIMARY_SYSTEM: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DataObject:
    """A small object beside the file system; `kind` is a data type of the specification."""

    kind: int
    data: bytes
    name: str = ""


def partition_offset(objects: Sequence[DataObject]) -> int:
    """Where the file system begins behind these objects, in bytes."""
    end = _DATA + sum(len(item.data) for item in objects)
    return end + -end % PAGE


def front(
    objects: Sequence[DataObject], partition_size: int, *, architecture: str, identity: bytes, epoch: int = 0
) -> bytes:
    """Everything before the file system, `partition_offset` bytes long.

    `architecture` is Go's name (KeyError when SIF has no code for it), `identity` the 16 bytes of the UUID,
    `epoch` the time of all, in seconds since 1970.
    """
    code = ARCHITECTURES[architecture]
    start = partition_offset(objects)
    table, data = b"", b""
    for number, item in enumerate(objects, 1):
        size = len(item.data)
        table += _descriptor(number, item.kind, _DATA + len(data), size, size, epoch, item.name)
        data += item.data
    extra = _EXTRA.pack(_SQUASHFS, _PRIMARY_SYSTEM, code)
    padded = partition_size + start - _DATA - len(data)
    table += _descriptor(len(objects) + 1, PARTITION, start, partition_size, padded, epoch, "", extra)
    header = _HEADER.pack(
        *(LAUNCH, b"SIF_MAGIC\0", b"01\0", code, identity, epoch, epoch),
        *(_CAPACITY - len(objects) - 1, _CAPACITY, PAGE, _CAPACITY * _DESCRIPTOR.size),
        *(_DATA, start + partition_size - _DATA),
    )
    return (header.ljust(PAGE, b"\0") + table.ljust(_DATA - PAGE, b"\0") + data).ljust(start, b"\0")


def _descriptor(
    number: int, kind: int, offset: int, size: int, padded: int, epoch: int, name: str, extra: bytes = b""
) -> bytes:
    used, link, owner = True, 0, 0
    return _DESCRIPTOR.pack(
        *(kind, used, number, _GROUP, link, offset, size, padded, epoch, epoch, owner, owner),
        *(name.encode(), extra),
    )
