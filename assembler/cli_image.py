"""The verb `inspect`: find the image in the store, in a layout or in a registry, and show it."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from assembler.cli_inspect import files_text, inspect, inspect_text, layer_files, stored_layer_files
from assembler.errors import AssembleError, RegistryError, RequestError
from assembler.manifest.problems import alternatives
from assembler.oci.descriptor import REF_NAME
from assembler.oci.digest import Digest
from assembler.oci.image import ImageConfig, ImageIndex, ImageManifest
from assembler.oci.layout import Store
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from assembler.cli_inspect import LayerFile
    from assembler.oci.descriptor import Descriptor
    from assembler.registry.client import Client
    from assembler.registry.resolve import ResolvedBase


class _Found:
    """An image wherever it is, and a way to list the files of one of its layers."""

    def __init__(
        self,
        digest: Digest,
        manifest: ImageManifest,
        config: ImageConfig,
        files: Callable[[Descriptor], Iterator[LayerFile]],
        store: Store | None = None,
        index: ImageIndex | None = None,
        referrers: Sequence[Descriptor] | None = None,
    ) -> None:
        self.digest = digest
        self.manifest = manifest
        self.config = config
        self.files = files
        self.store = store
        self.index = index
        self.referrers = referrers


def inspect_command(arguments: Namespace, cache: Path) -> int:
    """Print the image as text or JSON."""
    platform = _platform(arguments.platform)
    found = find_image(arguments.image, platform, cache, tuple(arguments.insecure))
    value = inspect(
        found.manifest,
        found.config,
        name=arguments.image,
        digest=found.digest,
        store=found.store,
        index=found.index,
        referrers=found.referrers,
    )
    if arguments.files:
        for entry, layer in zip(value["layers"], found.manifest.layers, strict=True):
            if entry["origin"] == "ours" or entry["stored"]:
                entry["files"] = [file.to_json() for file in found.files(layer)] if arguments.json else None
    if arguments.json:
        print(json.dumps(value, indent=2))
        return 0
    print(inspect_text(value))
    if arguments.files:
        for entry, layer in zip(value["layers"], found.manifest.layers, strict=True):
            if "files" in entry:
                print(f"\nlayer {entry['index']}: {entry['created_by']}")
                for line in files_text(found.files(layer)):
                    print(line)
    return 0


def _platform(text: str | None) -> Platform:
    try:
        return Platform.parse(text) if text else Platform.host()
    except ValueError as error:
        raise RequestError(str(error), place="--platform") from error


def find_image(text: str, platform: Platform, cache: Path, insecure: tuple[str, ...]) -> _Found:
    store = Store(cache / "store")
    if text.startswith("oci:"):
        path, _, name = text.removeprefix("oci:").partition(":")
        return _in_layout(Path(path), name or None, platform)
    name, _, asked = text.partition("@")
    if "/" not in name and (store.root / "index.json").exists():
        descriptor = store.find(name)
        if descriptor is not None:
            return _in_store(store, _digest(asked, text) if asked else descriptor.digest, platform, text)
    return _in_registry(text, platform, insecure, store)


def _digest(asked: str, text: str) -> Digest:
    try:
        return Digest.parse(asked)
    except ValueError as error:
        raise RequestError(str(error), place=text) from error


def _in_store(store: Store, digest: Digest, platform: Platform, text: str) -> _Found:
    from assembler.oci.bases import parse_manifest, pick_platform

    try:
        data = store.read(digest)
    except FileNotFoundError:
        raise RequestError("no such image in the store", place=text) from None
    document = parse_manifest("", data, f"blob {digest}")
    index = None
    if isinstance(document, ImageIndex):
        index = document
        digest = pick_platform(document, platform, str(digest)).digest
        document = ImageManifest.from_bytes(store.read(digest))
    config = ImageConfig.from_bytes(store.read(document.config.digest))
    return _Found(digest, document, config, lambda layer: stored_layer_files(store, layer), store, index)


def _in_layout(path: Path, name: str | None, platform: Platform) -> _Found:
    from assembler.oci.bases import load_layout

    found = load_layout(path, name, platform)
    layout = Store(path)
    digest = Digest.of(found.manifest_bytes)
    return _Found(
        digest, found.manifest, found.config, lambda layer: stored_layer_files(layout, layer), layout, found.index
    )


def _stored_names(text: str, store: Store) -> str | None:
    """The hint for a plain word, which may be meant as a name of the store."""
    if "/" in text or ":" in text or not (store.root / "index.json").exists():
        return None
    names = sorted({str(entry.annotations.get(REF_NAME)) for entry in store.index().manifests} - {"None"})
    return alternatives(text, names, title="images in the store", none="the store has no image")


def _in_registry(text: str, platform: Platform, insecure: tuple[str, ...], store: Store) -> _Found:
    from assembler.registry.client import Client
    from assembler.registry.resolve import resolve_base
    from assembler.registry.short_names import full_name

    try:
        reference = Reference.parse(full_name(text))
    except ValueError as error:
        raise RequestError(
            str(error), place=text, hint="give a name from the store, oci:DIR, or a registry reference"
        ) from error
    client = Client(insecure=insecure)
    named = reference.tag or reference.digest
    try:
        found = resolve_base(client, reference if named else reference.tagged("latest"), platform)
    except AssembleError as error:
        error.hint = _stored_names(text, store) or error.hint
        raise

    def files(layer: Descriptor) -> Iterator[LayerFile]:
        with client.open_blob(found.reference, layer) as stream:
            yield from layer_files(stream)

    return _Found(
        Digest.parse(found.reference.digest),
        found.manifest,
        found.config,
        files,
        index=found.index,
        referrers=_referrers(client, found),
    )


def _referrers(client: Client, found: ResolvedBase) -> list[Descriptor] | None:
    """What is attached to the image, and to the index that it was chosen from; None when that cannot be known."""
    from assembler.registry.referrers import list_referrers

    subjects = [found.reference.at(found.index_digest)] if found.index_digest else []
    subjects.append(found.reference)
    try:
        return [referrer for subject in subjects for referrer in list_referrers(client, subject)]
    except RegistryError:  # the image was read, and that is what was asked for
        return None
