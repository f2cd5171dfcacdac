"""Images in buildah's storage: a base or a stack, whose blobs are brought into the store first.

Base bytes are read here and nowhere else in a build: something is about to run in that base. They come through
the store, so that they are verified, resumable and shared with whatever else needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from assembler.errors import LockError
from assembler.events import StepProgress
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import Image
from assembler.oci.reference import Reference
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.steps.bases import BaseHandle
    from assembler.steps.session import Session


def base_image(session: Session, base: BaseHandle) -> str:
    """The name of a base in buildah's storage."""
    return image_for(session, base.image())


def image_for(session: Session, image: Image) -> str:
    """The name of an image in buildah's storage, imported from the store when it is not there yet."""
    manifest, config_bytes = image.manifest()
    data = manifest.to_bytes()
    digest = Digest.of(data)
    name = f"localhost/assemble/image:{digest.hex[:40]}"
    if session.buildah.has_image(name):
        return name
    fetch_layers(session, image)
    session.store.put(config_bytes)
    session.store.put(data)
    session.buildah.import_image(session.store, digest, name)
    return name


def fetch_layers(session: Session, image: Image) -> None:
    """Bring the layers of an image that are not in the store there, from where the base was found."""
    for _ in layer_paths(session, image):
        pass


def layer_paths(session: Session, image: Image) -> Iterator[Path]:
    """The blobs of an image's layers in the store, lowest first; each is brought there when it is its turn."""
    for layer in image.layers:
        if session.store.has(layer.descriptor.digest):
            yield session.store.blob_path(layer.descriptor.digest)
            continue
        if layer.origin is None:
            raise LockError(f"layer {layer.descriptor.digest} is in no place that we know", hint="build again")
        if session.options.offline:
            raise LockError(f"layer {layer.descriptor.digest} of the base is not in the store", place="--offline")
        fetch_blob(session, layer.origin, layer.descriptor)
        yield session.store.blob_path(layer.descriptor.digest)


def fetch_blob(session: Session, origin: Reference, descriptor: Descriptor) -> None:
    """Bring a blob from a registry into the store, verified."""
    identifier = f"fetch:{descriptor.digest.short}"
    with session.step(identifier, "fetch", f"{origin.name}@{descriptor.digest.short}") as report:
        with session.client.open_blob(origin, descriptor) as stream, session.store.writer() as blob:
            done = 0
            while chunk := stream.read(1 << 20):
                blob.write(chunk)
                done += len(chunk)
                session.emit(StepProgress(step=identifier, done_bytes=done, total_bytes=descriptor.size))
            blob.commit(descriptor.digest)
        report.outcome, report.detail = "pulled", size_text(descriptor.size)
