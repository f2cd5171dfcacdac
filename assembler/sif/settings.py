"""How a SIF, or a squashfs, is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Compressor: TypeAlias = Literal["gzip", "zstd", "lz4", "xz"]

COMPRESSORS: Final[tuple[Compressor, ...]] = ("gzip", "zstd", "lz4", "xz")
"""gzip comes first and is the default: every kernel since 2.6.29 mounts it, and every squashfuse reads it. zstd
needs Linux 4.14 and a squashfuse that was built with it, which hosts of clusters often do not have.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SifSettings:
    """`fix_permissions` gives owners the right to read and write all, as Apptainer's `--fix-perms` does.

    `epoch` is the time of what has none of its own, in seconds since 1970.
    """

    compressor: Compressor = "gzip"
    fix_permissions: bool = False
    epoch: int = 0
