"""Where an image goes: registries by reference, and layouts and archives on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from assembler.errors import NodeError, RequestError, refused
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest, Readable
from assembler.oci.image import ImageIndex
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.sif.settings import SifSettings
from assembler.steps import attachments
from assembler.steps.attachments import Attachment
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.registry.push import PushResult
    from assembler.registry.referrers import PushedReferrer
    from assembler.steps.session import Session
    from assembler.steps.stacking import BuiltImage

OUTPUTS = ("oci", "oci-archive", "sif", "sqsh")
_ONE_FILE_SYSTEM = ("sif", "sqsh")
_SKOPEO = "not there yet; `skopeo copy oci-archive:FILE {}` makes it of an archive"
_LATER = {
    "docker-archive": _SKOPEO.format("docker-archive:PATH"),
    "containers-storage": _SKOPEO.format("containers-storage:NAME"),
    "docker-daemon": _SKOPEO.format("docker-daemon:NAME:TAG"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Parsed targets: references to push to, what is attached there, and (kind, path) of outputs.

    `texts` are the outputs as given.
    """

    push: tuple[Reference, ...]
    outputs: tuple[tuple[str, Path], ...]
    texts: tuple[str, ...]
    attach: tuple[Attachment, ...] = ()
    sif: SifSettings = field(default_factory=SifSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The digest that was published (of an index when there are several platforms), what moved, and what was
    attached.
    """

    digest: Digest
    bytes_pushed: int = 0
    bytes_pulled: int = 0
    referrers: tuple[Reference, ...] = ()


def parse_targets(
    push: Sequence[str],
    outputs: Sequence[str],
    manifests: int,
    attach: Sequence[str] = (),
    sif: SifSettings | None = None,
) -> Targets:
    """Read what was asked for; RequestError names what cannot be."""
    if manifests > 1 and (push or outputs):
        raise RequestError("`--push` and `--output` want exactly one manifest")
    references = []
    for text in push:
        try:
            reference = Reference.parse(text)
        except ValueError as error:
            hint = "leave the scheme out" if "://" in text else "such as `registry.example.com/team/image:1`"
            raise RequestError(str(error), place="--push", hint=hint) from error
        if reference.digest:
            raise RequestError("expected a tag to push to, got a digest", place=f"--push {text}")
        references.append(reference if reference.tag else reference.tagged("latest"))
    parsed = []
    for text in outputs:
        kind, colon, path = text.partition(":")
        if not colon or kind not in OUTPUTS or not path:
            *names, last = (f"`{name}:PATH`" for name in OUTPUTS)
            expected = f"{', '.join(names)} or {last}"
            raise RequestError(f"expected {expected}, got `{text}`", place="--output", hint=_LATER.get(kind))
        parsed.append((kind, Path(path)))
    return Targets(
        push=tuple(references),
        outputs=tuple(parsed),
        texts=tuple(outputs),
        attach=attachments.parse_attachments(attach, push),
        sif=sif or SifSettings(),
    )


def check_targets(session: Session, targets: Targets) -> None:
    """Look at directories. Credentials are tried beside the first work, see `Session.ready`."""
    for kind, path in targets.outputs:
        _check_output(kind, path)
    if any(kind in _ONE_FILE_SYSTEM for kind, _ in targets.outputs):
        from assembler.sif.squashfs import find_tool

        find_tool()
    if targets.push:
        session.start_sending(targets.push)


def _check_output(kind: str, path: Path) -> None:
    place, parent = f"--output {kind}:{path}", path.absolute().parent
    if not parent.is_dir():
        raise RequestError(f"the directory `{path.parent}` does not exist", place=place)
    if kind == "oci" and path.exists():
        if not path.is_dir():
            raise RequestError("expected a directory, or nothing yet; there is a file", place=place)
        if not (path / "oci-layout").is_file() and any(path.iterdir()):
            fact = "expected an OCI layout, an empty directory, or nothing yet; there is another directory"
            raise RequestError(fact, place=place, hint="name another one")
        parent = path
    if kind != "oci" and path.is_dir():
        raise RequestError("expected a file, or nothing yet; there is a directory", place=place)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise NodeError(f"we may not write in `{parent}`", place=place)


def check_platforms(targets: Targets, platforms: Sequence[Platform]) -> None:
    """RequestError when a file for one platform is wanted of several."""
    for kind, path in targets.outputs:
        if kind in _ONE_FILE_SYSTEM and len(platforms) > 1:
            names = ", ".join(f"`{platform}`" for platform in platforms)
            fact = f"a {kind} file is for one platform, there are {names}"
            raise RequestError(fact, place=f"--output {kind}:{path}", hint="name one: `--platform OS/ARCH`")


def publish(session: Session, targets: Targets, built: Sequence[BuiltImage]) -> Published:
    """Name the images in the store, push and write them; several of them as one index.

    An index has all its gzip images before their zstd twins: readers take the first that fits the platform.
    """
    unique: dict[Digest, BuiltImage] = {}
    for image in sorted(built, key=lambda image: image.is_twin):
        unique.setdefault(image.descriptor.digest, image)  # without a layer of its own an image is its twin
    built = list(unique.values())
    top = _top(session, built)
    digest = top.digest
    current = session.store.find(built[0].name)
    if current is None or current.digest != digest:
        session.store.tag(built[0].name, top)
    pushed = pulled = 0
    referrers: list[PushedReferrer] = []
    if targets.push:
        session.ready()
        with session.step("push", "push", " ".join(map(str, targets.push))) as report:
            result = _push(session, targets, built)
            digest = result.digest
            pushed, pulled = result.bytes_pushed + result.bytes_streamed, result.bytes_streamed
            report.outcome = "pushed" if pushed or result.bytes_mounted else "present"
            moved = [(pushed, "pushed"), (result.bytes_mounted, "mounted"), (result.bytes_present, "there")]
            report.detail = ", ".join(f"{size_text(size)} {way}" for size, way in moved if size)
    if targets.attach:
        referrers = attachments.attach(session, top, targets.attach, targets.push)
        pushed += sum(referrer.bytes_pushed for referrer in referrers)
    for kind, path in targets.outputs:
        if kind in _ONE_FILE_SYSTEM:
            from assembler.steps.sif import write_built

            write_built(session, "sif" if kind == "sif" else "sqsh", path, built[0], targets.sif)
        else:
            _write(session, kind, path, digest, built)
    return Published(
        digest=digest,
        bytes_pushed=pushed,
        bytes_pulled=pulled,
        referrers=tuple(referrer.reference for referrer in referrers),
    )


def _push(session: Session, targets: Targets, built: Sequence[BuiltImage]) -> PushResult:
    from assembler.registry.push import push, push_index

    images = [image.image for image in built]
    uplink = session.sending.uplink if session.sending else None
    if len(images) == 1:
        return push(session.client, images[0], session.store, targets.push, emit=session.emit, uplink=uplink)
    return push_index(
        session.client,
        images,
        session.store,
        targets.push,
        emit=session.emit,
        descriptors=[image.descriptor for image in built],
        uplink=uplink,
    )


def _top(session: Session, built: Sequence[BuiltImage]) -> Descriptor:
    """What is published: the image, or an index of several, in the store."""
    if len(built) == 1:
        return replace(built[0].descriptor, annotations={})
    data = ImageIndex(manifests=tuple(image.descriptor for image in built)).to_bytes()
    return Descriptor(media_type=media_types.INDEX, digest=session.store.put(data), size=len(data))


def _write(session: Session, kind: str, path: Path, digest: Digest, built: Sequence[BuiltImage]) -> None:
    from assembler.oci.outputs import write_archive, write_layout

    origins = {
        layer.descriptor.digest: getattr(layer, "origin", None) for image in built for layer in image.image.layers
    }

    def fetch(descriptor: Descriptor) -> Readable:
        """The bytes of a base layer that is not in the store: an output that is a whole image needs them."""
        origin = origins.get(descriptor.digest)
        if origin is None:
            raise RequestError(f"layer {descriptor.digest} is not in the store", place=str(path))
        return session.client.open_blob(origin, descriptor)

    write = write_layout if kind == "oci" else write_archive
    with session.step(f"output:{path}", "write", f"{kind}:{path}") as report:
        try:
            write(session.store, digest, path, name=built[0].name, fetch=fetch)
        except OSError as error:
            raise NodeError(f"the image cannot be written: {refused(error)}", place=f"{kind}:{path}") from error
        report.outcome = "ok"
