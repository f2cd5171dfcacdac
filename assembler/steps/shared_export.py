"""Writing to a shared cache: what results are made of, and where their blobs come from."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from assembler.oci import media_types
from assembler.oci.descriptor import EMPTY, EMPTY_JSON, Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import ImageManifest
from assembler.oci.reference import Reference
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.registry.client import Client
    from assembler.registry.push import BlobReport
    from assembler.registry.results import StepResult
    from assembler.steps.assembly import Assembly
    from assembler.steps.session import Session

WRITERS: Final = 4
_REFRESH_SECONDS: Final = 86400.0
"""A result that is relied on is made young again when it is older: `assemble gc --shared` goes by age."""

_Blobs: TypeAlias = list[tuple[Descriptor, Reference | None]]
"""Blobs of a result, each with the reference where it lies when it is not in the store."""


class Export:
    """Writing to one cache."""

    def __init__(
        self,
        session: Session,
        client: Client,
        target: Reference,
        stopped: threading.Event,
        pushed: Sequence[Reference] = (),
        found: Mapping[str, StepResult | None] | None = None,
    ) -> None:
        self._session = session
        self._client = client
        self._target = target
        self._stopped = stopped
        self._neighbours = list(pushed)
        self._found = found or {}
        self._reports: list[BlobReport] = []
        self.origins: dict[Digest, Reference] = {}
        """Where layers lie that are not in the store."""
        self._now = datetime.datetime.now(tz=datetime.UTC)

    def summary(self) -> str:
        """What moved."""
        sizes = {
            way: sum(report.size for report in self._reports if report.way == way)
            for way in ("pushed", "streamed", "mounted")
        }
        return ", ".join(f"{size_text(size)} {way}" for way, size in sizes.items() if size) or "nothing moved"

    def write_all(self, assembly: Assembly) -> int:
        """Everything of an assembly and of the bases that are manifests; the number of results that were written.

        The image comes last, so that whoever finds it finds its parts too.
        """
        from assembler.registry.results import age_seconds, find_result

        written = sum(self.write_all(nested) for nested in assembly.nested)
        plan = assembly.plan(exact=False)
        if plan.image.key is None:
            return written
        before = find_result(self._client, self._target, plan.image.key)
        if before is not None and age_seconds(before, self._now) < _REFRESH_SECONDS:
            return written
        keys = [step.key for step in plan.steps if step.key and step.kind not in ("image", "toolchain")]
        with ThreadPoolExecutor(WRITERS, "cache") as pool:
            jobs = [pool.submit(self.write, key, anew=before is not None) for key in dict.fromkeys(keys)]
            written += sum(job.result() for job in jobs)
        return written + self.write(plan.image.key, anew=before is not None)

    def write(self, key: str, *, anew: bool = False) -> bool:
        """Write one result, unless the cache has it. False when there is nothing to write."""
        from assembler.registry.push import push_artifact
        from assembler.registry.results import kind_of, result_manifest

        record, blobs = self._result(key)
        if record is None or kind_of(record) is None:
            return False
        tagged = self._target.tagged(key)
        if not anew and self._client.head_manifest(tagged) is not None:
            return False
        created = self._now.strftime("%Y-%m-%dT%H:%M:%SZ")
        self._reports += push_artifact(
            self._session.client,
            self._session.store,
            tagged,
            result_manifest(key, record, [blob for blob, _ in blobs], created),
            [(EMPTY, None), *blobs],
            data={EMPTY.digest: EMPTY_JSON},
            neighbours=self._neighbours,
            stopped=self._stopped,
        )
        return True

    def _result(self, key: str) -> tuple[Mapping[str, Any] | None, _Blobs]:
        """Record and blobs of a key: from the store, or as another cache has them. No blobs that are nowhere."""
        store = self._session.store
        record = store.record(key)
        if record is None:
            found = self._found.get(key)
            if found is None or found.origin.name == self._target.name:
                return None, []
            return found.record, [(blob, found.origin) for blob in found.blobs]
        if "manifest_descriptor" in record:
            return self._image(record)
        if "bundle" in record:
            size, digest = int(record.get("bytes", 0)), Digest.parse(record["bundle"])
            blobs = [Descriptor(media_type=media_types.LAYER, digest=digest, size=size)]
        elif "descriptor" in record:
            blobs = [Descriptor.from_json(record["descriptor"])]
        else:
            return None, []
        if not all(store.has(blob.digest) for blob in blobs):
            return None, []
        return record, [(blob, None) for blob in blobs]

    def _image(self, record: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, _Blobs]:
        """An image's documents, and its layers as far as they are here or in a repository near the cache."""
        from assembler.registry.results import DOCUMENT

        store = self._session.store
        top = Descriptor.from_json(record["manifest_descriptor"])
        if not store.has(top.digest):
            return None, []
        manifest = ImageManifest.from_bytes(store.read(top.digest))
        if not store.has(manifest.config.digest):
            return None, []
        blobs: _Blobs = [
            (Descriptor(media_type=DOCUMENT, digest=one.digest, size=one.size), None)
            for one in (top, manifest.config)
        ]
        for layer in {layer.digest: layer for layer in manifest.layers}.values():
            if store.has(layer.digest):
                blobs.append((layer, None))
            elif self._is_near(layer):
                blobs.append((layer, self.origins.get(layer.digest)))
        return record, blobs

    def _is_near(self, layer: Descriptor) -> bool:
        """May a layer that is not ours be named by the cache, because it costs nothing to have it there?

        Only then is a base that lies in another registry in the cache, too, for those who push to a third place.
        """
        if self._client.has_blob(self._target, layer.digest) is not None:
            return True
        near = [*self._neighbours, *filter(None, [self.origins.get(layer.digest)])]
        return any(
            bool(self._client.mount(self._target, repository, layer.digest))
            for repository in self._client.neighbours(self._target, near)
        )
