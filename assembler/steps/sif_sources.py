"""Where an image that becomes a SIF is found: in the store, a registry, an OCI layout, an OCI archive.

A layer of the store is read there, and one of a layout or an archive where it lies, verified. Layers of a registry
are brought into the store, compressed, which takes about as much disk as the SIF itself and helps whoever wants
the image again. Where the disk has no room for both, they are read from the registry twice instead, past the disk.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from assembler.errors import LockError, RequestError, UntrustedInputError
from assembler.events import Note
from assembler.oci.bases import LayoutBase, load_layout, load_layout_from, parse_manifest, pick_platform
from assembler.oci.descriptor import BASE_DIGEST, BASE_NAME, Descriptor
from assembler.oci.digest import Digest, VerifiedReader
from assembler.oci.image import BaseLayer, Image, ImageConfig, ImageIndex, ImageManifest
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.sif.rootfs import ImageInput, LayerInput
from assembler.steps.materialise import fetch_layers
from assembler.tree.decompress import Stream
from assembler.tree.tar_stream import TarReader
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.steps.session import Session

_MEMBERS_LIMIT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that can be opened again and again."""

    name: str
    size: int
    start: Callable[[], Stream]

    @contextlib.contextmanager
    def open(self) -> Iterator[Stream]:
        """The layer from its beginning."""
        with contextlib.closing(self.start()) as stream:
            yield stream


class _Verified:
    """A part of a file that has to be what its descriptor promises."""

    def __init__(self, file: IO[bytes], descriptor: Descriptor) -> None:
        self._file = file
        self._reader = VerifiedReader(file, descriptor.digest, descriptor.size)

    def read(self, amount: int = -1, /) -> bytes:
        return self._reader.read(amount)

    def close(self) -> None:
        self._file.close()


class _Part(io.RawIOBase):
    """`size` bytes of a file from `start`."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._file = path.open("rb")
        self._file.seek(start)
        self._left = size

    def read(self, amount: int = -1, /) -> bytes:
        wanted = self._left if amount < 0 else min(amount, self._left)
        data = self._file.read(wanted)
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def find_image(session: Session, text: str, platform: Platform, target: Path) -> ImageInput:
    """The image of this text: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, a name of the store, or a reference.

    RequestError when it can be none of these, and the errors of where it is looked for. `target` is where the SIF
    is going to be: its file system may have to take layers too.
    """
    kind, colon, rest = text.partition(":")
    if kind in {"oci", "oci-archive"} and colon:
        path, _, name = rest.partition(":")
        return _in_layout(Path(path), name or None, platform, archive=kind == "oci-archive")
    text = text.removeprefix("docker://")
    name, _, asked = text.partition("@")
    if "/" not in name:
        descriptor = session.store.find(name)
        if descriptor is not None:
            with contextlib.suppress(ValueError):
                return _in_store(session, Digest.parse(asked) if asked else descriptor.digest, platform, target)
    return _in_registry(session, text, platform, target)


def image_input(session: Session, image: Image, identity: Digest, target: Path) -> ImageInput:
    """An image whose layers are in the store or in a registry; the missing ones are fetched if there is room."""
    missing = [layer for layer in image.layers if not session.store.has(layer.descriptor.digest)]
    size = sum(layer.descriptor.size for layer in missing)
    whole = sum(layer.descriptor.size for layer in image.layers)
    needed = size + (whole if _same_disk(session.store.root, target) else 0)
    if not missing or session.options.offline or needed < shutil.disk_usage(session.store.root).free:
        fetch_layers(session, image)
        return ImageInput(
            config=image.config, identity=identity, layers=[_stored(session, x) for x in image.layers]
        )
    fact = f"no room for {size_text(size)} of layers: they are read twice from the registry"
    session.emit(Note(text=fact, level="warning"))
    layers: list[LayerInput] = [
        _remote(session, layer) if layer in missing else _stored(session, layer) for layer in image.layers
    ]
    return ImageInput(config=image.config, identity=identity, layers=layers)


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.absolute().parent.stat().st_dev


def _stored(session: Session, layer: object) -> Layer:
    descriptor: Descriptor = layer.descriptor  # type: ignore[attr-defined]
    path = session.store.blob_path(descriptor.digest)
    return Layer(f"layer {descriptor.digest.short}", descriptor.size, lambda: Stream(path))


def _remote(session: Session, layer: object) -> Layer:
    if not isinstance(layer, BaseLayer) or layer.origin is None:
        raise LockError(f"layer {layer!r} is in no place that we know", hint="build again")
    descriptor, origin = layer.descriptor, layer.origin

    def start() -> Stream:
        return Stream.of(session.client.open_blob(origin, descriptor), descriptor.size)

    return Layer(f"layer {descriptor.digest.short} of {origin.name}", descriptor.size, start)


def _in_registry(session: Session, text: str, platform: Platform, target: Path) -> ImageInput:
    from assembler.registry.resolve import resolve_base

    try:
        reference = Reference.parse(text)
    except ValueError as error:
        hint = "a manifest's file, a name of the store, a reference, oci:DIR or oci-archive:FILE"
        raise RequestError(str(error), place=text, hint=hint) from error
    if session.options.offline:
        raise RequestError("the image is not in the store, and `--offline` forbids to ask a registry", place=text)
    named = reference.tag or reference.digest
    with session.step(f"resolve:{text}", "resolve", str(reference)) as report:
        found = resolve_base(session.client, reference if named else reference.tagged("latest"), platform)
        report.outcome = "ok"
    image = Image.from_base(found.manifest, found.config, found.reference)
    return image_input(session, image, found.manifest.config.digest, target)


def _in_store(session: Session, digest: Digest, platform: Platform, target: Path) -> ImageInput:
    store = session.store
    try:
        document = parse_manifest("", store.read(digest), f"blob {digest}")
        if isinstance(document, ImageIndex):
            document = ImageManifest.from_bytes(store.read(pick_platform(document, platform, str(digest)).digest))
    except FileNotFoundError:
        raise RequestError(f"{digest} is not in the store") from None
    config = ImageConfig.from_bytes(store.read(document.config.digest))
    image = Image.from_base(document, config, _origin(document))
    return image_input(session, image, document.config.digest, target)


def _origin(document: ImageManifest) -> Reference | None:
    """Where layers of a base are that are not in the store: the annotations tell."""
    with contextlib.suppress(ValueError):
        name, digest = document.annotations.get(BASE_NAME), document.annotations.get(BASE_DIGEST)
        return replace(Reference.parse(name), tag=None, digest=Digest.parse(digest)) if name and digest else None
    return None


def _in_layout(path: Path, name: str | None, platform: Platform, *, archive: bool) -> ImageInput:
    found: LayoutBase
    if archive:
        place = f"oci-archive:{path}" + (f":{name}" if name else "")
        members = _members(path, place)

        def opened(file: str) -> IO[bytes]:
            if file not in members:
                raise FileNotFoundError(file)
            return _Part(path, *members[file])  # type: ignore[return-value]

        found = load_layout_from(opened, name, platform, place)
    else:

        def opened(file: str) -> IO[bytes]:
            return (path / file).open("rb")

        found = load_layout(path, name, platform)

    def layer(descriptor: Descriptor) -> Layer:
        def start() -> Stream:
            try:
                file = opened(f"blobs/sha256/{descriptor.digest.hex}")
            except OSError:
                fact = f"expected layer {descriptor.digest}, it is not there"
                raise UntrustedInputError(fact, place=str(path)) from None
            return Stream.of(_Verified(file, descriptor), descriptor.size)

        return Layer(f"layer {descriptor.digest.short} of {path.name}", descriptor.size, start)

    layers = [layer(descriptor) for descriptor in found.manifest.layers]
    return ImageInput(config=found.config, identity=found.manifest.config.digest, layers=layers)


def _members(path: Path, place: str) -> dict[str, tuple[int, int]]:
    """Where the files of an archive begin, and their sizes. It is neither unpacked nor read but for headers."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with Stream(path) as stream:
            if stream.format != "plain":
                fact = f"expected an archive that is not compressed, this one is {stream.format}"
                raise RequestError(fact, place=place, hint="decompress it")
            for member in TarReader(stream):
                if len(found) > _MEMBERS_LIMIT:
                    raise UntrustedInputError(f"expected at most {_MEMBERS_LIMIT} files", place=place)
                if member.kind == "file":
                    found[member.name.decode(errors="replace").removeprefix("./")] = member.offset, member.size
    except OSError as error:
        raise RequestError("there is no such readable file", place=place) from error
    except ValueError as error:
        raise UntrustedInputError(f"expected an OCI archive: {error}", place=place) from error
    return found
