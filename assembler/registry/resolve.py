"""What a base reference means now: from tag to digest to one platform's manifest and config. Never a layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice

from assembler.errors import RegistryError, UntrustedInputError
from assembler.manifest.problems import nearest
from assembler.oci.bases import parse_config, parse_manifest, pick_platform
from assembler.oci.digest import Digest
from assembler.oci.image import ImageConfig, ImageIndex, ImageManifest
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.refusal import RefusedError
from assembler.registry.tags import list_tags

_MOST_TAGS = 10
_MOST_ASKED = 1000
_TAG = re.compile(r"(?!sha256-[0-9a-f]{64})[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


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
    try:
        found = client.get_manifest(reference)
    except RefusedError as error:
        raise _explained(client, reference, error) from None
    document = parse_manifest(found.media_type, found.data, place)
    index_digest = index = None
    if isinstance(document, ImageIndex):
        index_digest, index = found.digest, document
        chosen = pick_platform(document, platform, place)
        found = client.get_manifest(reference.at(chosen.digest))
        document = parse_manifest(found.media_type, found.data, place)
        if isinstance(document, ImageIndex):
            shown = f"`skopeo inspect --raw docker://{reference.at(found.digest)}`"
            hint = f"name an image of the inner index by its digest: {shown} shows them"
            raise UntrustedInputError("expected an image, got an index in an index", place=place, hint=hint)
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


def _explained(client: Client, reference: Reference, error: RefusedError) -> RefusedError:
    """A refusal to show a base, in the words of somebody who looks for one."""
    said = " ".join(filter(None, (str(error.status), error.code)))
    fact, hint = error.fact, error.hint
    if error.status == 404:
        tags = _tags(client, reference)
        if tags == []:
            fact = f"the registry has no repository `{reference.repository}`, or nothing in it has a tag ({said})"
            hint = "look at its name"
        else:
            missing = "this digest" if reference.digest else f"the tag `{reference.tag or 'latest'}`"
            fact = f"the repository has no image with {missing} ({said})"
            hint = _near(reference, tags or []) or "look at its name, tag and digest"
    elif error.status in (401, 403):
        also = "some registries answer so, too, where there is no such repository"
        hint = f"{error.hint}; {also}" if error.hint else also
    return RefusedError(fact, status=error.status, code=error.code, place=error.place, hint=hint)


def _near(reference: Reference, tags: list[str]) -> str | None:
    """The tag that may have been meant, or some that there are."""
    near = nearest(reference.tag or "latest", tags) if not reference.digest else None
    if near:
        return f"did you mean `{reference.tagged(near)}`?"
    more = ", …" if len(tags) > _MOST_TAGS else ""
    return f"its tags: {', '.join(f'`{tag}`' for tag in tags[:_MOST_TAGS])}{more}" if tags else None


def _tags(client: Client, reference: Reference) -> list[str] | None:
    """The first tags of a repository, without those that list referrers; None where they cannot be known."""
    try:
        found = list(islice(list_tags(client, reference), _MOST_ASKED))
    except RegistryError:
        return None
    return sorted(tag for tag in found if _TAG.fullmatch(tag))
