"""Referrers: manifests that name an image as their `subject`, as an SBOM or a test report attached to it does.

Image-spec manifest.md ("Guidelines for artifact usage") and distribution-spec 1.1 ("Pushing manifests with
subject", "Listing referrers", "Referrers tag schema"). A registry that keeps count of referrers says so with
`OCI-Subject` when it is given one. For the others whoever pushes keeps an index under the tag `sha256-…` of the
subject's digest. Nobody can lock that index: it is read again after it was written, and extended anew where
another writer was in between.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from assembler.errors import RegistryError
from assembler.oci import media_types
from assembler.oci.descriptor import EMPTY, EMPTY_JSON, TITLE, Descriptor
from assembler.oci.digest import Digest, Readable, canonical_json
from assembler.oci.image import ImageManifest
from assembler.oci.reference import Reference
from assembler.registry.authentication import pull, push
from assembler.registry.client import MANIFEST_LIMIT, Client
from assembler.registry.connection import Body
from assembler.registry.receiving import bounded_body, discard
from assembler.registry.refusal import RefusedError

# What registries that do not know the path answer: the specification says 404, routers of old ones say others.
_UNKNOWN_PATH: Final = (400, 404, 405, 501)
_MOST_PAGES: Final = 100
_TRIES: Final = 12
_PAUSE_SECONDS: Final = 0.1

Open = Callable[[], Readable]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Something to be attached: its manifest, and how each of its layers is opened."""

    manifest: ImageManifest
    open: Mapping[Digest, Open]

    @property
    def subject(self) -> Descriptor:
        """What it is attached to."""
        if self.manifest.subject is None:
            raise ValueError("expected a manifest with a subject")
        return self.manifest.subject

    def descriptor(self) -> Descriptor:
        """Its entry in a list of referrers: the type and the annotations of the manifest are repeated there."""
        data = self.manifest.to_bytes()
        return Descriptor(
            media_type=self.manifest.media_type,
            digest=Digest.of(data),
            size=len(data),
            annotations=self.manifest.annotations,
            extra={"artifactType": self.manifest.artifact_type},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedReferrer:
    """A referrer as it is in a registry now. `bytes_pushed` does not count its manifest."""

    reference: Reference
    bytes_pushed: int


def artifact_manifest(
    subject: Descriptor,
    artifact_type: str,
    layers: Sequence[Descriptor],
    annotations: Mapping[str, str] | None = None,
) -> ImageManifest:
    """The manifest of an artifact about `subject`, without a config. Equal arguments give equal bytes."""
    return ImageManifest(
        config=EMPTY,
        layers=tuple(layers),
        annotations=annotations or {},
        artifact_type=artifact_type,
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
    )


def file_artifact(
    subject: Descriptor, media_type: str, title: str, digest: Digest, size: int, open_file: Open
) -> Artifact:
    """One file about `subject`; whoever pulls it gets a file of the name `title`, as oras does."""
    layer = Descriptor(media_type=media_type, digest=digest, size=size, annotations={TITLE: title})
    manifest = artifact_manifest(subject, media_type, [layer], {TITLE: title})
    return Artifact(manifest=manifest, open={digest: open_file})


def fallback_tag(subject: Digest) -> str:
    """The tag under which the referrers of a subject are listed where the registry does not do it."""
    return f"sha256-{subject.hex}"


def push_referrers(
    client: Client,
    target: Reference,
    artifacts: Sequence[Artifact],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> list[PushedReferrer]:
    """Attach artifacts in the target's repository; what is there already is left as it is.

    Their subjects should be there. Raises RegistryError when the registry refuses, or when other writers of the
    fallback tag are in the way for too long.
    """
    pushed = []
    unlisted: dict[Digest, list[Descriptor]] = {}
    for artifact in artifacts:
        moved = _bring(client, target, EMPTY, lambda: _bytes(EMPTY_JSON))
        for layer in artifact.manifest.layers:
            moved += _bring(client, target, layer, artifact.open[layer.digest])
        entry = artifact.descriptor()
        if not _put(client, target, artifact):
            unlisted.setdefault(artifact.subject.digest, []).append(entry)
        pushed.append(PushedReferrer(reference=target.at(entry.digest), bytes_pushed=moved))
    for subject, entries in unlisted.items():
        _list_under_tag(client, target.tagged(fallback_tag(subject)), entries, sleep)
    return pushed


def list_referrers(client: Client, reference: Reference, artifact_type: str | None = None) -> list[Descriptor]:
    """What is attached to the image (or index) that `reference` names by digest; of one type when that is given.

    `extra["artifactType"]` of each says what it is. RegistryError when the registry refuses.
    """
    if reference.digest is None:
        raise ValueError("expected a reference with a digest")
    entries = _asked(client, reference, reference.digest, artifact_type)
    if entries is None:
        entries = _read_tag(client, reference.tagged(fallback_tag(reference.digest)))["manifests"]
    found = [descriptor for entry in entries if (descriptor := _readable(entry))]
    return [each for each in found if artifact_type in (None, each.extra.get("artifactType"))]


def _bytes(data: bytes) -> Readable:
    import io

    return io.BytesIO(data)


def _bring(client: Client, target: Reference, blob: Descriptor, open_blob: Open) -> int:
    """A blob into the target's repository; the number of bytes that were sent."""
    if client.has_blob(target, blob.digest) is not None:
        return 0
    client.upload(target, blob, open_blob)
    return blob.size


def _put(client: Client, target: Reference, artifact: Artifact) -> bool:
    """Store the manifest. Does the registry list it with its subject by itself?"""
    manifest, data = artifact.manifest, artifact.manifest.to_bytes()
    response = client.request(
        "PUT",
        target,
        f"manifests/{Digest.of(data)}",
        scopes=(push(target.repository),),
        expect=(201, 202),
        headers={"Content-Type": manifest.media_type},
        body=Body.of(data),
    )
    discard(response)
    return str(response.headers.get("OCI-Subject", "")) == artifact.subject.digest


# listing


def _asked(
    client: Client, reference: Reference, subject: Digest, artifact_type: str | None
) -> list[object] | None:
    """What the registry lists, on all pages; None when it does not know of such lists."""
    query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    path: str | None = f"referrers/{subject}{query}"
    entries: list[object] = []
    for _ in range(_MOST_PAGES):
        if path is None:
            return entries
        response = client.request(
            "GET",
            reference,
            path,
            scopes=(pull(reference.repository),),
            expect=(200, *_UNKNOWN_PATH),
            headers={"Accept": media_types.INDEX},
        )
        if response.status_code != 200:
            discard(response)
            return None
        try:
            entries += _entries(json.loads(bounded_body(response, MANIFEST_LIMIT)))
        except (ValueError, RecursionError):  # an answer to any path at all, as of a web page before the registry
            return None
        path = response.links.get("next", {}).get("url")
    raise RegistryError(f"expected at most {_MOST_PAGES} pages of referrers, got more", place=str(reference))


def _entries(value: object) -> list[object]:
    """The entries of an index; ValueError when it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("manifests"), list):
        raise ValueError("expected an image index")
    return list(value["manifests"])


def _readable(entry: object) -> Descriptor | None:
    """An entry that somebody wrote, unless it is none that we can read."""
    try:
        return Descriptor.from_json(entry)
    except (ValueError, AttributeError):
        return None


# the fallback tag


def _list_under_tag(
    client: Client, tag: Reference, entries: Sequence[Descriptor], sleep: Callable[[float], None]
) -> None:
    """Have the index under the tag name these entries, beside those of others."""
    for attempt in range(_TRIES):
        index = _read_tag(client, tag)
        missing = list(_missing(index["manifests"], entries))
        if not missing:
            return
        index["manifests"] += missing
        client.put_manifest(tag, media_types.INDEX, canonical_json(index))
        # Who read before we wrote may still write over it: look again when that has had its time.
        sleep(_PAUSE_SECONDS * (1 + attempt * random.random()))  # noqa: S311  (no secret: who waits how long)
    if list(_missing(_read_tag(client, tag)["manifests"], entries)):
        fact = f"the list of referrers was written by others each of {_TRIES} times"
        raise RegistryError(fact, place=str(tag), hint="push again when they are done")


def _missing(listed: Sequence[object], entries: Sequence[Descriptor]) -> Iterator[dict[str, Any]]:
    known = {entry.get("digest") for entry in listed if isinstance(entry, dict)}
    yield from (entry.to_json() for entry in entries if str(entry.digest) not in known)


def _read_tag(client: Client, tag: Reference) -> dict[str, Any]:
    """The index under a fallback tag as a JSON value, an empty one when there is no such tag yet."""
    try:
        document = client.get_manifest(tag)
    except RefusedError as error:
        if error.status != 404:
            raise
        return {"schemaVersion": 2, "mediaType": media_types.INDEX, "manifests": []}
    try:
        value = json.loads(document.data)
        return {**value, "manifests": _entries(value)}
    except (ValueError, TypeError, RecursionError):
        fact = f"expected an index of referrers, there is a document of type `{document.media_type}`"
        hint = "the tag is in the way of every client that attaches something to this image: remove it"
        raise RegistryError(fact, place=str(tag), hint=hint) from None
