"""What a registry answered, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from assembler.oci.digest import Digest


class ManifestDocument(NamedTuple):
    """A manifest or index as it lies in the registry: `digest` is that of `data`, computed by us."""

    media_type: str
    data: bytes
    digest: Digest


@dataclass(frozen=True, slots=True)
class MountAnswer:
    """True when the blob is mounted; else `session` is an upload that the registry opened instead (202)."""

    mounted: bool
    session: str | None = None

    def __bool__(self) -> bool:
        return self.mounted
