"""What a base reference means now: from tag to digest to one platform's manifest and config. Never a layer."""

from __future__ import annotations

from dataclasses import dataclass

from assembler.errors import UntrustedInputError
from assembler.oci.bases import parse_config, parse_manifest, pick_platform
from assembler.oci.digest import Digest
from assembler.oci.image import ImageConfig, ImageIndex, ImageManifest
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.registry.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedBase:
    """A base in a registry: `reference` is its image manifest by digest, `index` what the tag named.

    The bytes are the documents as they lie there, so that they can be kept under their own digests.
    """

    reference: Reference
    index_digest: Digest | None
    index: ImageIndex | None
    manifest: ImageManifest
    config: ImageConfig
    manifest_bytes: bytes
    config_bytes: bytes


def resolve_base(client: Client, reference: Reference, platform: Platform) -> ResolvedBase:
    """Ask the registry, and check that the answer can be stacked on.

    Raises RegistryError when it cannot be read, and the errors of `assembler.oci.bases` when it is no base for
    this platform: MissingPlatformError, WrongPlatformError, OldSchemaError, NoImageError, LyingConfigError.
    """
    place = str(reference)
    found = client.get_manifest(reference)
    document = parse_manifest(found.media_type, found.data, place)
    index_digest = index = None
    if isinstance(document, ImageIndex):
        index_digest, index = found.digest, document
        chosen = pick_platform(document, platform, place)
        found = client.get_manifest(reference.at(chosen.digest))
        document = parse_manifest(found.media_type, found.data, place)
        if isinstance(document, ImageIndex):
            raise UntrustedInputError("expected an image, got an index in an index", place=place)
    config_bytes = client.get_blob(reference, document.config)
    return ResolvedBase(
        reference=reference.at(found.digest),
        index_digest=index_digest,
        index=index,
        manifest=document,
        config=parse_config(document, config_bytes, platform, place),
        manifest_bytes=found.data,
        config_bytes=config_bytes,
    )
