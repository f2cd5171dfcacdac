"""Media types of the OCI image specification, and their Docker twins (image-spec media-types.md)."""

from __future__ import annotations

from typing import Final

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
LAYERS: Final = (LAYER, LAYER_GZIP, LAYER_ZSTD)
EMPTY: Final = "application/vnd.oci.empty.v1+json"

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA_1: Final = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)

_OCI_TWIN: Final = {
    DOCKER_MANIFEST: MANIFEST,
    DOCKER_INDEX: INDEX,
    "application/vnd.docker.container.image.v1+json": CONFIG,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}


def to_oci(media_type: str) -> str:
    """The OCI twin of a Docker media type; any other type as it is.

    Bytes and digests stay; only the word changes. A Docker manifest with zstd layers is refused by strict
    clients, so an image of ours is OCI throughout, whatever its base was.
    """
    return _OCI_TWIN.get(media_type, media_type)


def is_manifest(media_type: str) -> bool:
    """Is this an image manifest, of either family?"""
    return to_oci(media_type) == MANIFEST


def is_index(media_type: str) -> bool:
    """Is this an image index or a Docker manifest list?"""
    return to_oci(media_type) == INDEX


def is_layer(media_type: str) -> bool:
    """Is this a tar layer that can be stacked?"""
    return to_oci(media_type).startswith("application/vnd.oci.image.layer.")
