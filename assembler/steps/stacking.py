"""Stacking: base, layers and settings become an image that is verified, stored and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from assembler.errors import VerifyError
from assembler.events import Note
from assembler.oci import media_types
from assembler.oci.descriptor import RUN, ZSTD, Descriptor
from assembler.oci.digest import Digest, canonical_json
from assembler.oci.image import BlobLayer, Image, ImageConfig, ImageManifest
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.oci.verify import verify_image
from assembler.plan.graph import Plan
from assembler.plan.settings import apply_settings, run_facts
from assembler.steps import host_files

if TYPE_CHECKING:
    from assembler.steps.assembly import Assembly


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image of ours in the store. `built` is False when it was there already.

    `descriptor` is its entry in an index.
    """

    name: str
    platform: Platform
    descriptor: Descriptor
    image: Image
    built: bool

    @property
    def is_twin(self) -> bool:
        """Is it the zstd twin of a gzip image, in an index that has both?"""
        return ZSTD in self.descriptor.annotations


def finished(assembly: Assembly, plan: Plan, key: str) -> BuiltImage | None:
    """The image of this key, when its documents and its own blobs are in the store, or a shared cache has it."""
    store, name = assembly.session.store, assembly.loaded.manifest.name
    record = store.record(key)
    descriptor = Descriptor.from_json(record["manifest_descriptor"]) if record else None
    if descriptor and store.has(descriptor.digest):
        image = _read(assembly, plan, descriptor.digest, {})
        if image and all(
            store.has(layer.descriptor.digest) for layer in image.layers if isinstance(layer, BlobLayer)
        ):
            assembly.cached("image", "stack", name, key)
            return _built(assembly, descriptor, image, built=False)
    shared = assembly.session.shared
    result = shared.image(key)
    if result is None:
        return None
    descriptor = Descriptor.from_json(result.record["manifest_descriptor"])
    problems = verify_image(store, descriptor.digest, deep=False)
    image = None
    if not problems:
        origins = {blob.digest: result.origin for blob in result.blobs if not store.has(blob.digest)}
        image = _read(assembly, plan, descriptor.digest, origins)
        problems = _unlike(assembly, plan, image)
    if image is None or problems:
        shared.refuse(key, problems)
        return None
    assembly.cached("image", "stack", name, key, f"from {result.origin.name}")
    return _built(assembly, replace(descriptor, platform=assembly.platform), image, built=False)


def _read(assembly: Assembly, plan: Plan, digest: Digest, origins: Mapping[Digest, Reference]) -> Image | None:
    """An image of ours by its documents in the store; None when it is not one, or a document is missing.

    Layers lie in the store, where `origins` says, or with the base.
    """
    store = assembly.session.store
    document = ImageManifest.from_bytes(store.read(digest))
    steps = plan.layer_steps()
    split = len(document.layers) - len(steps)
    if split < 0 or not store.has(document.config.digest):
        return None
    config = ImageConfig.from_bytes(store.read(document.config.digest))
    base = Image.from_base(document, config, None)
    below = tuple(
        replace(layer, origin=origins.get(layer.descriptor.digest, origin))
        for layer, origin in zip_longest(base.layers[:split], assembly.runtime.origins()[:split])
    )
    ours = tuple(
        BlobLayer(
            descriptor=layer.descriptor,
            diff_id=layer.diff_id,
            created_by=step.name,
            origin=origins.get(layer.descriptor.digest),
        )
        for layer, step in zip(base.layers[split:], steps, strict=True)
    )
    return replace(base, layers=below + ours, annotations=document.annotations)


def _unlike(assembly: Assembly, plan: Plan, image: Image | None) -> list[str]:
    """What is wrong with an image that a cache has, as far as it can be known without making it."""
    if image is None:
        return ["its documents are not those of such an image"]
    store, problems = assembly.session.store, []
    trees = host_files.tree_facts(assembly, exact=False)
    layers = image.layers[len(image.layers) - len(plan.layer_steps()) :]
    for layer, step in zip(layers, plan.layer_steps(), strict=True):
        if layer.origin is None and not store.has(layer.descriptor.digest):
            problems.append(f"the layer {layer.descriptor.digest} of `{step.name}` is in no place that we know")
        if trees.get(step.layer or 0) not in (None, layer.diff_id):
            problems.append(f"the layer {layer.descriptor.digest} is not that of the files of `{step.name}`")
    return problems


def stack(assembly: Assembly, plan: Plan, key: str) -> BuiltImage:
    """Stack the layers, apply the settings, store and verify the image, and remember it under its key."""
    session, manifest = assembly.session, assembly.loaded.manifest
    with session.step("image", "stack", manifest.name, key) as report:
        image = assembly.stack(plan)
        image = replace(
            image,
            config=apply_settings(image.config, manifest.image),
            annotations={**assembly.runtime.annotations, **_run_annotation(assembly)},
        )
        document, config_bytes = image.manifest()
        data = document.to_bytes()
        session.store.put(config_bytes)
        digest = session.store.put(data)
        count = len(plan.layer_steps())
        report.detail = f"{len(image.layers) - count} base + {count} layers, {assembly.compression}"
    with session.step("verify", "verify", manifest.name) as report:
        own = [layer.descriptor.digest for layer in image.layers if session.store.has(layer.descriptor.digest)]
        problems = verify_image(session.store, digest, deep=False, hashed=own)
        if problems:
            raise VerifyError("the image is not what was meant", place=manifest.name, detail=problems)
        report.outcome, report.detail = "ok", f"{len(image.layers)} layers"
    descriptor = Descriptor(
        media_type=media_types.MANIFEST, digest=digest, size=len(data), platform=assembly.platform
    )
    session.store.put_record(
        key,
        {
            "manifest": str(digest),
            "manifest_descriptor": descriptor.to_json(),
            "layers": [str(layer.descriptor.digest) for layer in image.layers if isinstance(layer, BlobLayer)],
            "steps": sorted({step.key for step in plan.steps if step.key and step.key != key}),
        },
    )
    if not assembly.is_base:
        _tell_unreadable(assembly, image)
    return _built(assembly, descriptor, image, built=True)


def _built(assembly: Assembly, descriptor: Descriptor, image: Image, *, built: bool) -> BuiltImage:
    if assembly.loaded.manifest.compression == "both" and assembly.compression == "zstd":
        descriptor = descriptor.annotated({ZSTD: "true"})
    name = assembly.loaded.manifest.name
    return BuiltImage(name=name, platform=assembly.platform, descriptor=descriptor, image=image, built=built)


def _tell_unreadable(assembly: Assembly, image: Image) -> None:
    """Whoever asks for gzip has readers that cannot read zstd; layers of a base are what they are."""
    if assembly.compression != "gzip":
        return
    found = sum(layer.descriptor.media_type == media_types.LAYER_ZSTD for layer in image.layers)
    if found:
        text = f"the base has zstd layers ({found}): tools that read gzip alone cannot read this image"
        assembly.session.emit(Note(text=text))


def _run_annotation(assembly: Assembly) -> dict[str, str]:
    """How the image wants to be run; a base is not run."""
    facts = run_facts(assembly.loaded.manifest)
    return {RUN: canonical_json(facts).decode()} if facts else {}
