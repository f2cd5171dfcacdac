"""`assemble sif`, and the outputs `sif:` and `sqsh:`: an image found, its layers read twice, one file written.

A SIF is pushed as Apptainer pushes it (internal/pkg/client/oras): an artifact of one layer, the file, with an
empty config of a type of its own.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from assembler.errors import NodeError, RequestError, refused
from assembler.events import Note, StepProgress
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import ImageManifest
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.sif.settings import SifSettings
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.sif.rootfs import ImageInput
    from assembler.sif.write import Kind
    from assembler.steps.session import Session
    from assembler.steps.stacking import BuiltImage

CONFIG_TYPE: Final = "application/vnd.sylabs.sif.config.v1+json"
LAYER_TYPE: Final = "application/vnd.sylabs.sif.layer.v1.sif"
TITLE: Final = "org.opencontainers.image.title"

_LATEST: Final = (1 << 32) - 1
_SHOWN_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SifResult:
    """A SIF that was written. `digest` is that of the file and `references`, by digest, where it was pushed."""

    path: Path
    size: int
    digest: Digest | None = None
    references: tuple[Reference, ...] = ()


def parse_pushes(texts: Sequence[str]) -> tuple[Reference, ...]:
    """References such as `oras://REGISTRY/REPOSITORY:TAG`; RequestError says what is wrong with one."""
    found = []
    for text in texts:
        scheme, mark, rest = text.partition("://")
        if not mark or scheme != "oras":
            hint = "a SIF goes where `apptainer pull oras://…` finds it"
            raise RequestError("expected `oras://REGISTRY/REPOSITORY:TAG`", place=f"--push {text}", hint=hint)
        try:
            reference = Reference.parse(rest)
        except ValueError as error:
            raise RequestError(str(error), place=f"--push {text}") from error
        if reference.digest:
            raise RequestError("expected a tag to push to, got a digest", place=f"--push {text}")
        found.append(reference if reference.tag else reference.tagged("latest"))
    return tuple(found)


def check_target(path: Path, place: str) -> None:
    """RequestError or NodeError when no file can be written there."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise RequestError(f"the directory `{path.parent}` does not exist", place=place)
    if path.is_dir():
        raise RequestError("expected a file, or nothing yet; there is a directory", place=place)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise NodeError(f"we may not write in `{parent}`", place=place)


def convert(
    session: Session,
    text: str,
    platform: Platform,
    target: Path,
    settings: SifSettings,
    pushes: Sequence[Reference] = (),
) -> SifResult:
    """Make a SIF of the image that `text` names (see `find_image`), and push it."""
    from assembler.sif.squashfs import find_tool
    from assembler.steps.sif_sources import find_image

    check_target(target, str(target))
    find_tool()
    check_pushes(session, pushes)
    image = find_image(session, text, platform, target)
    size = write_image(session, "sif", image, target, settings)
    return push_sif(session, target, size, pushes)


def write_built(session: Session, kind: Kind, path: Path, built: BuiltImage, settings: SifSettings) -> int:
    """An image that was assembled, as the output `sif:` or `sqsh:`; its size in bytes."""
    from assembler.steps.sif_sources import image_input

    manifest, _ = built.image.manifest()
    image = image_input(session, built.image, manifest.config.digest, path)
    return write_image(session, kind, image, path, settings)


def write_image(session: Session, kind: Kind, image: ImageInput, target: Path, settings: SifSettings) -> int:
    """Read the layers, say what disk it takes, and write the file; its size in bytes."""
    from assembler.sif.write import check, check_space, prepare, write

    if settings.epoch > _LATEST:
        fact = f"a squashfs has no later time than {_LATEST} seconds since 1970, got {settings.epoch}"
        raise RequestError(fact, place=f"{kind}:{target}")
    if not check(kind, image).heeds_root:
        text = "mksquashfs before 4.6 makes the root directory yours; `squashfs-tools-ng` or a newer one does not"
        session.emit(Note(text=text, level="warning"))
    with session.step(f"merge:{target}", "merge", f"{len(image.layers)} layers") as report:
        prepared = prepare(kind, image, settings)
        report.outcome, report.detail = "ok", size_text(sum(layer.size for layer in image.layers))
    content, left_out = prepared.rootfs.content_bytes, prepared.rootfs.specials
    if left_out:
        session.emit(Note(text=f"{left_out} devices and pipes of the image are left out"))
    identifier, shown = f"output:{target}", 0

    def progress(done: int) -> None:
        nonlocal shown
        if done - shown >= _SHOWN_BYTES:
            shown = done
            session.emit(StepProgress(step=identifier, done_bytes=done, total_bytes=content))

    try:
        free = size_text(check_space(prepared, target))
        session.emit(Note(text=f"{target} takes about {size_text(prepared.estimate)} of disk, {free} are free"))
        with session.step(identifier, "write", f"{kind}:{target}") as report:
            size = write(prepared, target, progress)
            report.outcome, report.detail = "ok", f"{size_text(content)} → {size_text(size)}"
    except OSError as error:
        raise NodeError(f"the file cannot be written: {refused(error)}", place=f"{kind}:{target}") from error
    return size


def check_pushes(session: Session, targets: Sequence[Reference]) -> None:
    """Try the credentials before any work. RegistryError says what is missing."""
    for target in targets:
        session.client.check_push(target)


def push_sif(session: Session, path: Path, size: int, targets: Sequence[Reference]) -> SifResult:
    """Push a SIF under each target; blobs first, the tag last."""
    if not targets:
        return SifResult(path=path, size=size)
    with path.open("rb") as file:
        digest = Digest("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
    layer = Descriptor(media_type=LAYER_TYPE, digest=digest, size=size, annotations={TITLE: path.name})
    config_data = b"{}"
    config = Descriptor(media_type=CONFIG_TYPE, digest=Digest.of(config_data), size=len(config_data))
    data = ImageManifest(config=config, layers=(layer,)).to_bytes()
    references = []
    for target in targets:
        identifier = f"push:{target}"
        with session.step(identifier, "push", f"oras://{target}") as report:
            if session.client.has_blob(target, config.digest) is None:
                session.client.upload(target, config, lambda: io.BytesIO(config_data))
            there = session.client.has_blob(target, digest) is not None
            if not there:
                session.client.upload(
                    target,
                    layer,
                    lambda: path.open("rb"),
                    lambda done, step=identifier: session.emit(  # type: ignore[misc]
                        StepProgress(step=step, done_bytes=done, total_bytes=size)
                    ),
                )
            found = session.client.put_manifest(target, ImageManifest(config=config, layers=()).media_type, data)
            report.outcome = "present" if there else "pushed"
            report.detail = size_text(size)
        references.append(target.at(found))
    return SifResult(path=path, size=size, digest=digest, references=tuple(references))
