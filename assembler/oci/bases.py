"""Bases: choosing a platform's image, and refusing one that cannot be stacked on.

The checks are the same wherever a base lies. `load_layout` reads one from an OCI image layout on disk
(image-spec image-layout.md); bases in registries are read by `assembler.registry.resolve`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

from assembler.errors import ManifestError, RequestError, UntrustedInputError
from assembler.oci import media_types
from assembler.oci.descriptor import REF_NAME, Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import ImageConfig, ImageIndex, ImageManifest
from assembler.oci.platform import Platform

Opener: TypeAlias = Callable[[str], IO[bytes]]

DOCUMENT_LIMIT = 16 << 20
_DEEPEST_INDEX = 2
LYING_HINT = "no tool can run it: have it built and pushed anew"
_MALFORMED = (ValueError, TypeError, AttributeError, RecursionError)
_OTHER_PLATFORM = "`platforms` of the manifest, or `--platform`, says what is wanted; else take another base"
_BROKEN = "the image is broken, or there is something else: look with `skopeo inspect --raw`, push it again"


class MissingPlatformError(ManifestError):
    """The base is an index, and the wanted platform is not in it."""


class WrongPlatformError(ManifestError):
    """The base is one image, of another platform."""


class OldSchemaError(ManifestError):
    """The base is a Docker schema 1 manifest: it has no config, so nothing can be stacked on it."""


class NoImageError(ManifestError):
    """The base is something else than a container image: a chart, a signature, a model."""


class LyingConfigError(UntrustedInputError):
    """Manifest and config of the base contradict each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutBase:
    """A base in a layout. The bytes are its documents as they lie there; `index` is what it was chosen from."""

    manifest: ImageManifest
    config: ImageConfig
    manifest_bytes: bytes
    config_bytes: bytes
    index: ImageIndex | None = None


def pick_platform(index: ImageIndex, platform: Platform, place: str) -> Descriptor:
    """The first image of the index for this platform, as the specification wants; MissingPlatformError if none."""
    offered = [entry for entry in index.manifests if entry.platform and entry.platform.os != "unknown"]
    for entry in offered:
        if entry.platform and entry.platform.matches(platform):
            return entry
    if not offered:
        fact = f"expected an image for `{platform}`, no entry of the index names a platform"
        raise MissingPlatformError(fact, place=place, hint="name the image itself, by its own tag or digest")
    names = ", ".join(sorted({f"`{entry.platform}`" for entry in offered}))
    fact = f"expected an image for `{platform}`, the index offers {names}"
    raise MissingPlatformError(fact, place=place, hint=_OTHER_PLATFORM)


def parse_manifest(media_type: str, data: bytes, place: str) -> ImageManifest | ImageIndex:
    """The document of a base, of the type that it names or else `media_type`. No base: its own error."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UntrustedInputError(f"expected an image manifest: {error}", place=place, hint=_BROKEN) from None
    if not isinstance(value, dict):
        raise UntrustedInputError("expected an image manifest object", place=place, hint=_BROKEN)
    kind = str(value.get("mediaType") or media_type)
    if value.get("schemaVersion") == 1 or kind in media_types.DOCKER_SCHEMA_1:
        hint = "push the image again with a tool made after 2017: `skopeo copy --format oci`"
        raise OldSchemaError("expected schema version 2, this is a Docker schema 1 image", place=place, hint=hint)
    try:
        if media_types.is_index(kind) or ("manifests" in value and "config" not in value):
            return ImageIndex.from_bytes(data)
        return ImageManifest.from_bytes(data)
    except _MALFORMED as error:
        raise UntrustedInputError(f"image manifest: {error}", place=place, hint=_BROKEN) from None


def parse_config(manifest: ImageManifest, data: bytes, platform: Platform, place: str) -> ImageConfig:
    """The config of a base, checked against its manifest and the wanted platform."""
    if media_types.to_oci(manifest.config.media_type) != media_types.CONFIG:
        fact = f"expected a container image, its config is of type `{manifest.config.media_type}`"
        raise NoImageError(fact, place=place, hint="charts, signatures and models can be no base")
    try:
        config = ImageConfig.from_bytes(data)
    except _MALFORMED as error:
        raise UntrustedInputError(f"image config: {error}", place=place, hint=_BROKEN) from None
    if not config.platform.matches(platform):
        fact = f"expected an image for `{platform}`, got `{config.platform}`"
        raise WrongPlatformError(fact, place=place, hint=_OTHER_PLATFORM)
    problem = layer_problem(manifest, config)
    if problem:
        raise LyingConfigError(problem, place=place, hint=LYING_HINT)
    return config


def layer_problem(manifest: ImageManifest, config: ImageConfig) -> str | None:
    """How manifest and config contradict each other about the layers, or None."""
    layers, diff_ids = len(manifest.layers), len(config.diff_ids)
    if layers != diff_ids:
        return f"the config lists {diff_ids} diff IDs, the manifest {layers} layers"
    for layer in manifest.layers:
        if not media_types.is_layer(layer.media_type):
            return f"layer {layer.digest} is of type `{layer.media_type}`, which is no layer"
    lines = sum(not entry.empty_layer for entry in config.history)
    if config.history and lines != diff_ids:
        return f"the history tells of {lines} layers, there are {diff_ids}"
    return None


def load_layout(path: Path, name: str | None, platform: Platform) -> LayoutBase:
    """A base from an OCI image layout. `name` is a tag, a digest, or None when the layout has one image only.

    RequestError when there is no such layout or image, and the errors of this module. Both documents are
    verified by digest; layers are not opened.
    """
    place = f"oci:{path}" + (f":{name}" if name else "")
    return load_layout_from(lambda file: (path / file).open("rb"), name, platform, place)


def load_layout_from(opened: Opener, name: str | None, platform: Platform, place: str) -> LayoutBase:
    """`load_layout` for a layout wherever its files are: `opened` opens one by its path in the layout, or fails
    with OSError. `place` is for errors.
    """
    try:
        with opened("index.json") as file:
            index = ImageIndex.from_bytes(file.read(DOCUMENT_LIMIT))
    except OSError:
        raise RequestError(
            "expected an OCI image layout, there is no readable `index.json`", place=place
        ) from None
    except _MALFORMED as error:
        raise UntrustedInputError(f"index.json: {error}", place=place) from None
    data = _blob(opened, chosen := _named(index, name, platform, place), place)
    document = parse_manifest(chosen.media_type, data, place)
    origin = None
    for _ in range(_DEEPEST_INDEX):
        if isinstance(document, ImageManifest):
            break
        origin = document
        data = _blob(opened, chosen := pick_platform(document, platform, place), place)
        document = parse_manifest(chosen.media_type, data, place)
    if isinstance(document, ImageIndex):
        raise UntrustedInputError("expected an image, got an index in an index in an index", place=place)
    config_bytes = _blob(opened, document.config, place)
    config = parse_config(document, config_bytes, platform, place)
    return LayoutBase(
        manifest=document, config=config, manifest_bytes=data, config_bytes=config_bytes, index=origin
    )


def _named(index: ImageIndex, name: str | None, platform: Platform, place: str) -> Descriptor:
    """The entry of `index.json` that is meant. Several entries without a name are one image for each platform."""
    entries = index.manifests
    if name is not None:
        entries = tuple(e for e in entries if name in (e.annotations.get(REF_NAME), e.digest))
    if len(entries) == 1:
        return entries[0]
    if entries and all(entry.platform for entry in entries):
        return pick_platform(ImageIndex(manifests=entries), platform, place)
    names = ", ".join(f"`{e.annotations.get(REF_NAME) or e.digest}`" for e in index.manifests[:10]) or "nothing"
    raise RequestError(
        f"expected one image, the layout holds {names}", place=place, hint="name one: `oci:DIR:TAG`"
    )


def _blob(opened: Opener, descriptor: Descriptor, place: str) -> bytes:
    if descriptor.size > DOCUMENT_LIMIT:
        raise UntrustedInputError(f"a document of {descriptor.size} bytes is too large", place=place)
    try:
        with opened(f"blobs/sha256/{descriptor.digest.hex}") as file:
            data = file.read(descriptor.size + 1)
    except OSError:
        raise UntrustedInputError(f"expected blob {descriptor.digest}, it is not there", place=place) from None
    if Digest.of(data) != descriptor.digest:
        raise UntrustedInputError(f"expected {descriptor.digest}, the bytes give {Digest.of(data)}", place=place)
    return data
