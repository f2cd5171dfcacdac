"""ELF files with GPU code, byte by byte as nvcc and clang lay it out, for what no compiler here makes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import zstandard

NVCC_FLAGS = {"": 0x11, "a": 0x100011, "f": 0x1200011}


def elf(sections: Mapping[str, bytes]) -> bytes:
    """A 64-bit little-endian shared library that has nothing but these sections."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in [*sections, ".shstrtab"])
    body, table = b"", [struct.pack("<IIQQQQIIQQ", *[0] * 10)]
    for name, data in [*sections.items(), (".shstrtab", names)]:
        body += bytes(-len(body) % 4096)
        place = names.index(b"\0" + name.encode() + b"\0") + 1
        table.append(struct.pack("<IIQQQQIIQQ", place, 1, 2, 0, 4096 + len(body), len(data), 0, 0, 1, 0))
        body += data
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(3, 62, 1, 0, 0, 4096 + len(body), 0, 64, 0, 0, 64, len(table), len(table) - 1),
    )
    return head.ljust(4096, b"\0") + body + b"".join(table)


def cuda_container(entries: Sequence[tuple[str, int, str]]) -> bytes:
    """One container of (`sm` or `compute`, number, variant)."""
    body = b""
    for kind, number, variant in entries:
        code = 1 if kind == "compute" else 2
        head = struct.pack(
            "<HHIQIIHHIIIQQQ", code, 0x101, 64, 24, 0, 0, 8, 1, number, 0, 0, NVCC_FLAGS[variant], 0, 0
        )
        body += head + bytes(24)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def hip_bundle(architectures: Sequence[str], *, compressed: str = "") -> bytes:
    """clang's bundle for these, padded to 4096 bytes; `compressed` is `zlib-1`, `zstd-2`, `zstd-3` or nothing."""
    targets = ["host-x86_64-unknown-linux-gnu-", *(f"hipv4-amdgcn-amd-amdhsa--{name}" for name in architectures)]
    size = 32 + sum(24 + len(target) for target in targets)
    offset, head = -(-size // 4096) * 4096, b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<Q", len(targets))
    for number, target in enumerate(targets):
        length = 0 if number == 0 else 5000
        head += struct.pack("<QQQ", offset, length, len(target)) + target.encode()
        offset += -(-length // 4096) * 4096
    data = head.ljust(offset, b"\0")
    method, _, version = compressed.partition("-")
    if method:
        packed = zlib.compress(data) if method == "zlib" else zstandard.ZstdCompressor().compress(data)
        sizes = {"1": "<I", "2": "<II", "3": "<QQ"}[version]
        header = 8 + struct.calcsize(sizes) + 8
        numbers = (len(data),) if version == "1" else (header + len(packed), len(data))
        data = b"CCOB" + struct.pack("<HH", int(version), method == "zstd") + struct.pack(sizes, *numbers)
        data += bytes(8) + packed
    return data + bytes(-len(data) % 4096)
