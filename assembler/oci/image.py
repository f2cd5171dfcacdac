"""Images as values: config, layers, and the one operation that we do on them, stacking.

A base layer cannot be opened: `BaseLayer` has no way to its bytes, only the reference where they lie. "The base
is a reference, never a download" is therefore held by the types. Image-spec config.md and manifest.md.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest, canonical_json
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One line of an image's history. Empty layers have a line but no layer."""

    created: str | None = None
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> History:
        """Read one entry of `history`."""
        known = {"created", "created_by", "comment", "empty_layer"}
        return cls(
            created=value.get("created"),
            created_by=str(value.get("created_by") or ""),
            comment=str(value.get("comment") or ""),
            empty_layer=bool(value.get("empty_layer", False)),
            extra={k: v for k, v in value.items() if k not in known},
        )

    def to_json(self) -> dict[str, Any]:
        """The document form; empty fields are left out."""
        fields = {
            "created": self.created,
            "created_by": self.created_by,
            "comment": self.comment,
            "empty_layer": self.empty_layer,
        }
        return {**{k: v for k, v in fields.items() if v}, **self.extra}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLayer:
    """A layer of a base: known by descriptor and diff ID, found at `origin`, never opened.

    `origin` is a registry reference, or None when the blob is in our own store.
    """

    descriptor: Descriptor
    diff_id: Digest
    origin: Reference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobLayer:
    """A layer that we packed. `created_by` is its line of history.

    Its blob is in the store, unless it was found in a shared cache: then `origin` is where.
    """

    descriptor: Descriptor
    diff_id: Digest
    created_by: str = ""
    origin: Reference | None = None


Layer: TypeAlias = BaseLayer | BlobLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """An image config. Runtime settings live in `config` under the specification's own names.

    `rest` keeps top-level fields that we do not interpret (author, docker_version, …).
    """

    platform: Platform
    config: Mapping[str, Any] = field(default_factory=dict)
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[History, ...] = ()
    created: str | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_bytes(cls, data: bytes) -> ImageConfig:
        """Read a config blob; ValueError says what is wrong."""
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("expected an image config object")
        rootfs = value.get("rootfs") or {}
        known = {"architecture", "os", "variant", "config", "rootfs", "history", "created"}
        return cls(
            platform=Platform.from_json(value),
            config=value.get("config") or {},
            diff_ids=tuple(Digest.parse(diff_id) for diff_id in rootfs.get("diff_ids") or ()),
            history=tuple(History.from_json(entry) for entry in value.get("history") or ()),
            created=value.get("created"),
            rest={k: v for k, v in value.items() if k not in known},
        )

    def to_bytes(self) -> bytes:
        """Canonical bytes; these are hashed and sent as they are."""
        value: dict[str, Any] = {
            **self.rest,
            **self.platform.to_json(),
            "config": dict(self.config),
            "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in self.diff_ids]},
            "history": [entry.to_json() for entry in self.history],
        }
        if self.created:
            value["created"] = self.created
        return canonical_json(value)

    @property
    def environment(self) -> dict[str, str]:
        """`Env` as a mapping, in order."""
        return dict(entry.partition("=")[::2] for entry in self.config.get("Env") or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageManifest:
    """An image manifest: the OCI document. `raw` is what `to_bytes` gives for one that was read."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = media_types.MANIFEST
    artifact_type: str | None = None
    subject: Descriptor | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> ImageManifest:
        """Read an image manifest, Docker's form included; ValueError says what is wrong."""
        value = json.loads(data)
        if not isinstance(value, dict) or value.get("schemaVersion") != 2 or "config" not in value:
            raise ValueError("expected an image manifest of schema version 2")
        subject = value.get("subject")
        return cls(
            config=Descriptor.from_json(value["config"]),
            layers=tuple(Descriptor.from_json(layer) for layer in value.get("layers") or ()),
            annotations=value.get("annotations") or {},
            media_type=value.get("mediaType") or media_types.MANIFEST,
            artifact_type=value.get("artifactType"),
            subject=Descriptor.from_json(subject) if subject else None,
        )

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        if self.subject:
            value["subject"] = self.subject.to_json()
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return canonical_json(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageIndex:
    """An image index: one descriptor for each platform (or compression)."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = media_types.INDEX

    @classmethod
    def from_bytes(cls, data: bytes) -> ImageIndex:
        """Read an index or a Docker manifest list; ValueError says what is wrong."""
        value = json.loads(data)
        if not isinstance(value, dict) or "manifests" not in value:
            raise ValueError("expected an image index")
        return cls(
            manifests=tuple(Descriptor.from_json(entry) for entry in value["manifests"] or ()),
            annotations=value.get("annotations") or {},
            media_type=value.get("mediaType") or media_types.INDEX,
        )

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [entry.to_json() for entry in self.manifests],
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return canonical_json(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A config and its layers, lowest first. `annotations` are the image manifest's."""

    config: ImageConfig
    layers: tuple[Layer, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def scratch(cls, platform: Platform) -> Image:
        """The image with nothing in it."""
        return cls(config=ImageConfig(platform=platform))

    @classmethod
    def from_base(cls, manifest: ImageManifest, config: ImageConfig, origin: Reference | None) -> Image:
        """A base as found at `origin`; ValueError when config and manifest disagree about the layers."""
        if len(config.diff_ids) != len(manifest.layers):
            raise ValueError(
                f"the config lists {len(config.diff_ids)} diff IDs, the manifest {len(manifest.layers)} layers"
            )
        layers = tuple(
            BaseLayer(
                descriptor=replace(layer, media_type=media_types.to_oci(layer.media_type)),
                diff_id=diff_id,
                origin=origin,
            )
            for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        )
        return cls(config=config, layers=layers)

    def manifest(self) -> tuple[ImageManifest, bytes]:
        """The image manifest and the config bytes that it names."""
        config_bytes = self.config.to_bytes()
        config = Descriptor(media_type=media_types.CONFIG, digest=Digest.of(config_bytes), size=len(config_bytes))
        layers = tuple(layer.descriptor for layer in self.layers)
        return ImageManifest(config=config, layers=layers, annotations=self.annotations), config_bytes


def timestamp(epoch: int) -> str:
    """Seconds since 1970 as the specification's RFC 3339 time."""
    return datetime.datetime.fromtimestamp(epoch, tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def append(image: Image, layers: Sequence[BlobLayer], *, epoch: int = 0) -> Image:
    """Stack `layers` on `image`, lowest first, and return the new image.

    Base layers keep their digests and are never opened. History gains one entry per layer, stamped with
    `epoch`, so equal inputs give equal bytes. A base without any history, which the specification allows, gets an
    entry for each of its layers, since a history that tells of some layers only is told of the wrong ones.
    """
    stamp = timestamp(epoch)
    below = image.config.history
    if layers and not below:
        below = tuple(History(comment="layer of the base, which has no history") for _ in image.config.diff_ids)
    config = replace(
        image.config,
        created=stamp,
        diff_ids=image.config.diff_ids + tuple(layer.diff_id for layer in layers),
        history=below
        + tuple(History(created=stamp, created_by=layer.created_by, comment="assemble") for layer in layers),
    )
    return replace(image, config=config, layers=(*image.layers, *layers))


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[Digest, ...]:
    """Chain IDs by the recurrence of config.md: the first diff ID, then sha256 of "parent diff_id"."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        if chain:
            joined = f"{chain[-1]} {diff_id}".encode()
            chain.append(Digest("sha256:" + hashlib.sha256(joined).hexdigest()))
        else:
            chain.append(diff_id)
    return tuple(chain)
