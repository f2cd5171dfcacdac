"""Results of steps in a registry, by key: the format of the shared cache.

A result is one small artifact (image-spec manifest.md, "Guidelines for Artifact Usage") in a repository made for
them: its tag is the step's key, its config the empty descriptor, its layers are the blobs that the step gave, and
one annotation has the record that the store keeps of such a step. So a registry keeps a result's blobs for as long
as its tag and mounts them elsewhere without moving them; and writers need no lock: equal keys mean equal results,
blobs come before the manifest, and a tag is set in one request.

What is read is not trusted further than the registry's writers are: it must be the result of the key that was
asked for, and name each of its blobs with the same digest and size in manifest and record. Blobs are verified by
digest as everywhere.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal

from assembler.errors import UntrustedInputError
from assembler.oci import media_types
from assembler.oci.descriptor import EMPTY, KEY, Descriptor
from assembler.oci.digest import Digest, canonical_json
from assembler.oci.image import ImageManifest
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.refusal import RefusedError
from assembler.registry.tags import list_tags

ARTIFACT_TYPE: Final = "application/vnd.assemble.result.v1+json"
DOCUMENT: Final = "application/vnd.assemble.document.v1+json"
"""The manifest and the config of an image that is a result. Not under their own types: registries would want them
to be manifests of this repository.
"""
RECORD: Final = "dev.assemble.record"
CREATED: Final = "org.opencontainers.image.created"

_KEY: Final = re.compile("[0-9a-f]{64}")
_QUESTIONS: Final = 8

Kind = Literal["layer", "compile", "image"]
_FIELDS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "layer": ("descriptor", "diff_id", "uncompressed_bytes", "files"),
    "compile": ("bundle", "bytes", "files"),
    "image": ("manifest", "manifest_descriptor"),
}
"""What is told of a record; the rest of it (what a step was made of) matters to the store that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step of this key gave: the store's record of it, its blobs, and the repository where they are."""

    key: str
    kind: Kind
    record: Mapping[str, Any]
    blobs: tuple[Descriptor, ...]
    origin: Reference
    created: str = ""

    def blob(self, digest: Digest) -> Descriptor | None:
        """The blob of this digest, if it is one of the result's."""
        return next((blob for blob in self.blobs if blob.digest == digest), None)


def kind_of(record: Mapping[str, Any]) -> Kind | None:
    """What kind of result the store has a record of; None for one that means nothing elsewhere."""
    return next((kind for kind, fields in _FIELDS.items() if all(field in record for field in fields)), None)


def result_manifest(key: str, record: Mapping[str, Any], blobs: Sequence[Descriptor], created: str) -> bytes:
    """The artifact's manifest. `created` is the time (RFC 3339) from which its age counts."""
    kind = kind_of(record)
    if kind is None:
        raise ValueError(f"the record of {key} is no result of a step")
    told = {name: record[name] for name in _FIELDS[kind]}
    manifest = ImageManifest(
        config=EMPTY,
        layers=tuple(blobs),
        artifact_type=ARTIFACT_TYPE,
        annotations={KEY: key, RECORD: canonical_json(told).decode(), CREATED: created},
    )
    return manifest.to_bytes()


def read_result(data: bytes, key: str, repository: Reference) -> StepResult:
    """Read the artifact that a repository has for a key. UntrustedInputError when it is something else."""
    try:
        manifest = ImageManifest.from_bytes(data)
        record = json.loads(manifest.annotations.get(RECORD, ""))
        kind = kind_of(record) if isinstance(record, dict) else None
        if manifest.artifact_type != ARTIFACT_TYPE or kind is None:
            raise ValueError("it is no result of a step")
        if manifest.annotations.get(KEY) != key:
            raise ValueError(f"it says that it is the result of `{manifest.annotations.get(KEY)}`")
        result = StepResult(
            key=key,
            kind=kind,
            record={name: record[name] for name in _FIELDS[kind]},
            blobs=manifest.layers,
            origin=repository.at(Digest.of(data)),
            created=manifest.annotations.get(CREATED, ""),
        )
        _check(result)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fact = f"expected the result of the step {key[:12]}: {error}"
        raise UntrustedInputError(fact, place=repository.name) from None
    return result


def _check(result: StepResult) -> None:
    """ValueError when record and blobs do not tell of the same."""
    record = result.record
    if result.kind == "layer":
        layer = Descriptor.from_json(record["descriptor"])
        Digest.parse(record["diff_id"])
        _number(record["uncompressed_bytes"])
        _number(record["files"])
        if layer.media_type not in media_types.LAYERS:
            raise ValueError(f"`{layer.media_type}` is no layer")
        _same(result, layer.digest, layer.size)
    elif result.kind == "compile":
        _number(record["files"])
        _same(result, Digest.parse(record["bundle"]), _number(record["bytes"]))
    else:
        manifest = Descriptor.from_json(record["manifest_descriptor"])
        if manifest.digest != record["manifest"]:
            raise ValueError("it names two manifests")
        _same(result, manifest.digest, manifest.size)


def _same(result: StepResult, digest: Digest, size: int) -> None:
    blob = result.blob(digest)
    if blob is None or blob.size != size:
        raise ValueError(f"its blobs lack {digest} with {size} bytes")


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected a number, got `{value}`")
    return value


def find_result(client: Client, repository: Reference, key: str) -> StepResult | None:
    """What a repository has for a key; None when it has nothing, or is not there yet.

    RegistryError when it cannot be asked, UntrustedInputError when it has something else there.
    """
    try:
        document = client.get_manifest(repository.tagged(key))
    except RefusedError as error:
        if error.status == 404:
            return None
        raise
    return read_result(document.data, key, repository)


def age_seconds(result: StepResult, now: datetime.datetime) -> float:
    """How long ago a result was written; endless when it does not say."""
    try:
        return (now - datetime.datetime.fromisoformat(result.created)).total_seconds()
    except (ValueError, TypeError):
        return math.inf


def expired(client: Client, repository: Reference, *, keep_seconds: float) -> tuple[int, list[StepResult]]:
    """How many results of a repository are younger than that, and those that are not. Other tags do not count."""
    now = datetime.datetime.now(tz=datetime.UTC)
    keys = [tag for tag in list_tags(client, repository) if _KEY.fullmatch(tag)]
    with ThreadPoolExecutor(_QUESTIONS, "look") as pool:
        found = list(pool.map(lambda key: _if_ours(client, repository, key), keys))
    results = [result for result in found if result]
    old = [result for result in results if age_seconds(result, now) >= keep_seconds]
    return len(results) - len(old), old


def _if_ours(client: Client, repository: Reference, key: str) -> StepResult | None:
    try:
        return find_result(client, repository, key)
    except UntrustedInputError:
        return None
