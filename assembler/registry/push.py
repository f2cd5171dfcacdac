"""Publishing: blobs, then manifests by digest, then tags, so that a push that is cut short is never visible.

Each blob goes the cheapest way that is open: it is there already, perhaps because it was sent while it was packed
(`following`); it is mounted from another repository of the same registry; a base's layer flows from registry to
registry through memory; one of ours is sent from the store.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Literal

from assembler.errors import RegistryError, RequestError, VerifyError
from assembler.events import Emit, StepProgress, ignore
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest, Readable
from assembler.oci.image import Image, ImageIndex
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.following import Following, Uplink
from assembler.registry.limits import check_size

Way = Literal["present", "mounted", "streamed", "pushed"]
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class BlobReport:
    """How a blob came into a repository. `streamed` came from another registry, `pushed` from the store."""

    repository: str
    digest: Digest
    size: int
    way: Way


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What was published: `references` by digest, one for each repository; no `blobs` when nothing was new."""

    digest: Digest
    references: tuple[Reference, ...]
    blobs: tuple[BlobReport, ...] = ()
    unchanged: tuple[Reference, ...] = ()

    def bytes(self, way: Way) -> int:
        """Bytes of all blobs that went this way."""
        return sum(blob.size for blob in self.blobs if blob.way == way)

    @property
    def bytes_pushed(self) -> int:
        """Bytes sent from the store."""
        return self.bytes("pushed")

    @property
    def bytes_mounted(self) -> int:
        """Bytes that were mounted and so did not move."""
        return self.bytes("mounted")

    @property
    def bytes_streamed(self) -> int:
        """Bytes that went from registry to registry."""
        return self.bytes("streamed")

    @property
    def bytes_present(self) -> int:
        """Bytes that were there before."""
        return self.bytes("present")


@dataclass(frozen=True, slots=True)
class _Document:
    """A manifest or index to be stored."""

    media_type: str
    data: bytes
    digest: Digest


@dataclass(frozen=True, slots=True)
class _Blob:
    """A blob to be brought: `origin` is where it lies when it is neither in the store nor in `data`."""

    descriptor: Descriptor
    origin: Reference | None = None
    data: bytes | None = None


@dataclass(slots=True)
class _Meter:
    """Progress of all blobs together, reported as one step."""

    emit: Emit
    step: str
    total: int = 0
    done: dict[tuple[str, Digest], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)

    def report(self, repository: str, digest: Digest, done: int) -> None:
        """`done` bytes of this blob are through."""
        if self.stopped.is_set():
            raise RegistryError("the push was broken off", place=repository)
        with self.lock:
            self.done[repository, digest] = done
            through = sum(self.done.values())
        self.emit(StepProgress(step=self.step, done_bytes=through, total_bytes=self.total))


def push(
    client: Client,
    image: Image,
    store: Store,
    targets: Sequence[Reference],
    *,
    emit: Emit = ignore,
    threads: int = 4,
    step: str = "push",
    uplink: Uplink | None = None,
) -> PushResult:
    """Publish an image under each target. A target that names it already costs one question and nothing else.

    Blobs that `uplink` has brought, or is bringing, are not sent again.
    Raises RequestError for a target whose digest is another image's, RegistryError when a registry refuses,
    VerifyError when a blob is in no store.
    """
    document, blobs = _parts(image)
    return _Push(client, store, _Meter(emit, step), threads, uplink).publish([document], blobs, targets)


def push_index(
    client: Client,
    images: Sequence[Image],
    store: Store,
    targets: Sequence[Reference],
    *,
    emit: Emit = ignore,
    threads: int = 4,
    step: str = "push",
    descriptors: Sequence[Descriptor] | None = None,
    uplink: Uplink | None = None,
) -> PushResult:
    """Publish several platforms as one index. `descriptors` replaces the index's entries (same digests, same
    order) when they carry annotations; otherwise each is made of the image's platform. `uplink` as in `push`.
    """
    parts = [_parts(image) for image in images]
    index = image_index(images) if descriptors is None else ImageIndex(manifests=tuple(descriptors))
    if [entry.digest for entry in index.manifests] != [document.digest for document, _ in parts]:
        raise ValueError("expected one descriptor for each image, in their order")
    data = index.to_bytes()
    documents = [document for document, _ in parts]
    documents.append(_Document(index.media_type, data, Digest.of(data)))
    blobs = [blob for _, blobs_of_one in parts for blob in blobs_of_one]
    return _Push(client, store, _Meter(emit, step), threads, uplink).publish(documents, blobs, targets)


def push_artifact(
    client: Client,
    store: Store,
    target: Reference,
    manifest: bytes,
    blobs: Sequence[tuple[Descriptor, Reference | None]],
    *,
    data: Mapping[Digest, bytes],
    neighbours: Sequence[Reference] = (),
    stopped: threading.Event | None = None,
) -> tuple[BlobReport, ...]:
    """Publish an artifact under the target's tag: its blobs, one after the other, and then its manifest.

    Each blob comes with the reference where it lies when it is neither in the store nor in `data`. `neighbours`
    are other repositories that may have some of them, to be mounted from. `stopped` ends it between two blocks.
    Raises as `push` does.
    """
    meter = _Meter(ignore, "push", stopped=stopped or threading.Event())
    work = _Push(client, store, meter, threads=1)
    reports = tuple(
        work.bring(_Blob(descriptor, origin, data.get(descriptor.digest)), target, neighbours)
        for descriptor, origin in blobs
    )
    client.put_manifest(target, media_types.MANIFEST, manifest)
    return reports


def image_index(images: Iterable[Image]) -> ImageIndex:
    """The index of these images, in their order."""
    entries = []
    for image in images:
        data = image.manifest()[0].to_bytes()
        entries.append(
            Descriptor(
                media_type=media_types.MANIFEST,
                digest=Digest.of(data),
                size=len(data),
                platform=image.config.platform,
            )
        )
    return ImageIndex(manifests=tuple(entries))


def _parts(image: Image) -> tuple[_Document, list[_Blob]]:
    manifest, config_bytes = image.manifest()
    data = manifest.to_bytes()
    blobs = [_Blob(layer.descriptor, layer.origin) for layer in image.layers]
    blobs.append(_Blob(manifest.config, data=config_bytes))
    return _Document(manifest.media_type, data, Digest.of(data)), blobs


@dataclass(frozen=True, slots=True)
class _Push:
    """One push: where bytes come from, and who hears of progress."""

    client: Client
    store: Store
    meter: _Meter
    threads: int
    uplink: Uplink | None = None

    def publish(
        self, documents: Sequence[_Document], blobs: Sequence[_Blob], targets: Sequence[Reference]
    ) -> PushResult:
        """Bring blobs and documents to every target; the last document is what the tags will name."""
        top = documents[-1]
        for target in targets:
            if target.digest not in (None, top.digest):
                raise RequestError(f"expected the image {top.digest}, the target names another", place=str(target))
        unchanged = [target for target in targets if self._is_there(target, top)]
        waiting = [target for target in targets if target not in unchanged]
        filled = {target.name for target in unchanged}
        empty = list({target.name: target for target in waiting if target.name not in filled}.values())
        distinct = list({blob.descriptor.digest: blob for blob in blobs}.values())
        self.meter.total = sum(blob.descriptor.size for blob in distinct) * len(empty)
        for target in empty:
            for blob in distinct:
                check_size(target, blob.descriptor)
        reports: list[BlobReport] = []
        neighbours = list(unchanged)
        for target in empty:
            reports += self._bring_all(distinct, target, neighbours)
            for document in documents:
                self.client.put_manifest(target.at(document.digest), document.media_type, document.data)
            neighbours.append(target)
        for target in waiting:
            if target.tag:
                self.client.put_manifest(target, top.media_type, top.data)
        by_name = {target.name: target.at(top.digest) for target in targets}
        return PushResult(
            digest=top.digest,
            references=tuple(by_name.values()),
            blobs=tuple(reports),
            unchanged=tuple(unchanged),
        )

    def _is_there(self, target: Reference, top: _Document) -> bool:
        """Does the tag name this image already? A target without one is asked by digest."""
        wanted = target.tagged(target.tag) if target.tag else target.at(top.digest)
        found = self.client.head_manifest(wanted)
        return found is not None and found.digest == top.digest

    def _bring_all(
        self, blobs: Sequence[_Blob], target: Reference, neighbours: Sequence[Reference]
    ) -> list[BlobReport]:
        """All blobs into one repository, large ones first. The first failure ends the others."""
        order = sorted(blobs, key=lambda blob: -blob.descriptor.size)
        pool = ThreadPoolExecutor(max_workers=max(1, self.threads), thread_name_prefix="push")
        try:
            futures = [pool.submit(self.bring, blob, target, neighbours) for blob in order]
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            self.meter.stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def bring(self, blob: _Blob, target: Reference, neighbours: Sequence[Reference]) -> BlobReport:
        """One blob into one repository, the cheapest way."""
        descriptor = blob.descriptor

        def through(way: Way) -> BlobReport:
            self.meter.report(target.name, descriptor.digest, descriptor.size)
            return BlobReport(target.name, descriptor.digest, descriptor.size, way)

        following = self.uplink.find(target.name, descriptor.digest) if self.uplink else None
        if following:
            self._await(following, target, descriptor)
            if following.arrival:
                self.client.confirm_blob(target, descriptor)
                return through(following.arrival)
        if self.client.has_blob(target, descriptor.digest) in (0, descriptor.size):  # 0: it does not say
            return through("present")
        session = None
        for repository in self.client.neighbours(target, (blob.origin, *neighbours)):
            answer = self.client.mount(target, repository, descriptor.digest)
            if answer:
                return through("mounted")
            session = answer.session or session
        way, open_blob = self._opener(blob)
        self.client.upload(
            target,
            descriptor,
            open_blob,
            lambda done: self.meter.report(target.name, descriptor.digest, done),
            session=session,
        )
        self.client.confirm_blob(target, descriptor)
        return through(way)

    def _await(self, following: Following, target: Reference, descriptor: Descriptor) -> None:
        """Wait for a blob that is on its way since it was packed, with the rest of the push as witness."""
        while not following.wait(_LOOK_SECONDS):
            self.meter.report(target.name, descriptor.digest, following.sent)

    def _opener(self, blob: _Blob) -> tuple[Way, Callable[[], Readable]]:
        """How to get at a blob's bytes. A base's layer that happens to be in the store is taken from there."""
        descriptor, origin, data = blob.descriptor, blob.origin, blob.data
        if data is not None:
            return "pushed", lambda: io.BytesIO(data)
        if self.store.has(descriptor.digest):
            return "pushed", lambda: self.store.open(descriptor.digest)
        if origin is None:
            raise VerifyError(
                f"expected blob {descriptor.digest}, it is not there", place=f"store {self.store.root}"
            )
        return "streamed", lambda: self.client.open_blob(origin, descriptor)
