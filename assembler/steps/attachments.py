"""Files that are pushed with an image as its referrers: `--attach [TYPE=]FILE`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from assembler.errors import RequestError, refused
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest, DigestingWriter
from assembler.oci.layout import CHUNK, Store
from assembler.oci.reference import Reference
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.registry.referrers import Artifact, PushedReferrer
    from assembler.steps.session import Session

# The first that the file's name ends with; IANA's names where there are.
TYPES: Final[Mapping[str, str]] = {
    ".spdx.json": "application/spdx+json",
    ".spdx": "text/spdx",
    ".cdx.json": "application/vnd.cyclonedx+json",
    "bom.json": "application/vnd.cyclonedx+json",
    ".cdx.xml": "application/vnd.cyclonedx+xml",
    "bom.xml": "application/vnd.cyclonedx+xml",
    ".intoto.jsonl": "application/vnd.in-toto+json",
    ".intoto.json": "application/vnd.in-toto+json",
    ".sarif.json": "application/sarif+json",
    ".sarif": "application/sarif+json",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".xml": "application/xml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "application/toml",
    ".csv": "text/csv",
    ".html": "text/html",
    ".md": "text/markdown",
    ".txt": "text/plain",
    ".log": "text/plain",
    ".pdf": "application/pdf",
    ".gz": "application/gzip",
    ".zst": "application/zstd",
    ".zip": "application/zip",
}
# RFC 6838, with IANA's top-level names, so that a path with a `/` and a `=` is none.
_TYPE = re.compile(
    r"(?:application|audio|chemical|example|font|haptics|image|message|model|multipart|text|video)"
    r"/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file and what it is. Whoever pulls it gets it under the file's name."""

    path: Path
    media_type: str


def parse_attachments(texts: Sequence[str], push: Sequence[str]) -> tuple[Attachment, ...]:
    """Read `[TYPE=]FILE`; RequestError names what cannot be attached."""
    if texts and not push:
        raise RequestError(
            "files are attached to an image in a registry", place="--attach", hint="add `--push REF`"
        )
    return tuple(_attachment(text) for text in texts)


def _attachment(text: str) -> Attachment:
    place = f"--attach {text}"
    before, equals, after = text.partition("=")
    has_type = bool(equals and _TYPE.fullmatch(before))
    path = Path(after if has_type else text)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        hint = None
        if equals and not has_type:
            hint = f"`{before}` is no media type such as `application/spdx+json`, so all of it is taken for a path"
        raise RequestError(f"`{path}` cannot be read: {refused(error)}", place=place, hint=hint) from error
    if not stat.S_ISREG(status.st_mode):
        raise RequestError(f"expected a file, `{path}` is something else", place=place)
    if not status.st_size:
        raise RequestError(f"`{path}` is empty", place=place)
    if has_type:
        return Attachment(path=path, media_type=before)
    media_type = next((kind for ending, kind in TYPES.items() if path.name.lower().endswith(ending)), None)
    if media_type is None:
        hint = f"say it: `--attach application/spdx+json={path}`"
        raise RequestError(f"the name `{path.name}` does not tell what is in it", place=place, hint=hint)
    return Attachment(path=path, media_type=media_type)


def attach(
    session: Session, subject: Descriptor, attachments: Sequence[Attachment], targets: Sequence[Reference]
) -> list[PushedReferrer]:
    """Push the files as referrers of `subject` into every target's repository."""
    from assembler.registry.referrers import push_referrers

    artifacts = [_artifact(session.store, subject, attachment) for attachment in attachments]
    everywhere: list[PushedReferrer] = []
    for target in {target.name: target for target in targets}.values():
        names = " ".join(attachment.path.name for attachment in attachments)
        with session.step(f"attach:{target.name}", "attach", f"{names} to {target.name}") as report:
            pushed = push_referrers(session.client, target, artifacts)
            everywhere += pushed
            moved = sum(each.bytes_pushed for each in pushed)
            report.outcome = "pushed" if moved else "present"
            report.detail = f"{size_text(moved)} pushed" if moved else ""
    return everywhere


def _artifact(store: Store, subject: Descriptor, attachment: Attachment) -> Artifact:
    """What is sent is taken from the store: it is what was hashed, whatever happens to the file meanwhile."""
    from assembler.registry.referrers import file_artifact

    try:
        digest, size = _stored(store, attachment.path)
    except OSError as error:
        fact = f"`{attachment.path}` cannot be read: {refused(error)}"
        raise RequestError(fact, place="--attach") from error
    title = attachment.path.name
    return file_artifact(subject, attachment.media_type, title, digest, size, lambda: store.open(digest))


def _stored(store: Store, path: Path) -> tuple[Digest, int]:
    with path.open("rb") as file, store.writer() as blob:
        writer = DigestingWriter(blob)
        while chunk := file.read(CHUNK):
            writer.write(chunk)
        blob.commit(writer.digest)
    return writer.digest, writer.size
