"""Descriptors (image-spec descriptor.md) and the annotations that we write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from assembler.oci import media_types
from assembler.oci.digest import Digest
from assembler.oci.platform import Platform

REF_NAME: Final = "org.opencontainers.image.ref.name"
BASE_NAME: Final = "org.opencontainers.image.base.name"
BASE_DIGEST: Final = "org.opencontainers.image.base.digest"
ZSTD: Final = "io.github.containers.compression.zstd"
"""On the entry of an index: this image is the zstd twin of another. The value is `true` (containers/image)."""
TITLE: Final = "org.opencontainers.image.title"
KEY: Final = "dev.assemble.key"
RUN: Final = "dev.assemble.run"
"""How an image wants to be run, as JSON: the manifest's `run:`, and whose GPUs it is for (`vendor`)."""
COMPRESSOR: Final = "dev.assemble.compressor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A typed, sized, hashed pointer to a blob. `extra` keeps fields of the specification that we only pass on."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object) -> Descriptor:
        """Read a descriptor from a parsed document; ValueError names the field that is wrong."""
        if not isinstance(value, dict):
            raise ValueError("expected a descriptor object")
        size = value.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"descriptor size: expected a number of bytes, got `{size}`")
        media_type = value.get("mediaType")
        if not isinstance(media_type, str):
            raise ValueError("descriptor mediaType: expected text")
        platform = value.get("platform")
        known = {"mediaType", "digest", "size", "annotations", "platform"}
        return cls(
            media_type=media_type,
            digest=Digest.parse(value.get("digest")),
            size=size,
            annotations={str(k): str(v) for k, v in (value.get("annotations") or {}).items()},
            platform=Platform.from_json(platform) if isinstance(platform, dict) else None,
            extra={k: v for k, v in value.items() if k not in known},
        )

    def to_json(self) -> dict[str, Any]:
        """The document form; empty fields are left out."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.platform:
            value["platform"] = self.platform.to_json()
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return {**value, **self.extra}

    def annotated(self, annotations: Mapping[str, str]) -> Descriptor:
        """The same descriptor with these annotations added."""
        return replace(self, annotations={**self.annotations, **annotations})


EMPTY_JSON: Final = b"{}"
"""The content of the empty descriptor's blob."""
EMPTY: Final = Descriptor(media_type=media_types.EMPTY, digest=Digest.of(EMPTY_JSON), size=len(EMPTY_JSON))
"""The config of an artifact that has none (image-spec manifest.md, "Guidance for an Empty Descriptor")."""
