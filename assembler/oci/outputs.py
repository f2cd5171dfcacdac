"""Images out of the store: as an OCI image layout (a directory) or as an OCI archive (a tar of such a layout).

Image-spec image-layout.md. Every blob is verified while it is written. Layers of a registry base are not in the
store; `fetch` brings them, straight into the output. Equal images give equal archives, byte by byte.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from assembler.errors import RequestError, UntrustedInputError
from assembler.oci.bases import parse_manifest
from assembler.oci.descriptor import REF_NAME, Descriptor
from assembler.oci.digest import Digest, Readable, VerifiedReader, Writable
from assembler.oci.image import ImageIndex
from assembler.oci.layout import CHUNK, Store, write_atomically

Fetch: TypeAlias = Callable[[Descriptor], Readable]
"""Opens a layer that is not in the store."""

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_RECORD: Final = tarfile.RECORDSIZE


def write_layout(
    store: Store,
    digest: Digest,
    directory: Path,
    *,
    name: str | None = None,
    complete: bool = True,
    fetch: Fetch | None = None,
) -> None:
    """Write an image (or index) of the store as a layout, under `name`.

    An existing layout keeps its other images; a new directory appears whole or not at all. Unless `complete`,
    layers that are not in the store are left out, as the specification allows.
    Raises RequestError when `directory` is something else, or a layer is missing and there is no `fetch`;
    VerifyError when a blob is not what its descriptor says.
    """
    top, blobs = _contents(store, digest, name, complete=complete, fetch=fetch)
    if directory.exists() and any(directory.iterdir()):
        if not (directory / "oci-layout").is_file():
            fact = "expected an OCI image layout, an empty directory or none"
            raise RequestError(fact, place=str(directory), hint="name another directory")
        _fill(directory, store, top, blobs, fetch)
        return
    scratch = Path(tempfile.mkdtemp(dir=directory.absolute().parent, prefix=f".{directory.name}-"))
    try:
        _fill(scratch, store, top, blobs, fetch)
        scratch.chmod(0o755)
        scratch.rename(directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def write_archive(
    store: Store, digest: Digest, file: Path, *, name: str | None = None, fetch: Fetch | None = None
) -> None:
    """Write an image (or index) of the store as an OCI archive, complete, and replace `file` when it is whole.

    Errors as `write_layout`.
    """
    top, blobs = _contents(store, digest, name, complete=True, fetch=fetch)
    descriptor, temporary = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(descriptor, "wb") as output:
            _write_tar(output, store, top, blobs, fetch)
            output.flush()
            os.fchmod(output.fileno(), 0o644)
            os.fsync(output.fileno())
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _contents(
    store: Store, digest: Digest, name: str | None, *, complete: bool, fetch: Fetch | None
) -> tuple[Descriptor, list[Descriptor]]:
    """The entry of `index.json`, and every blob below it once, sorted by digest."""
    blobs: dict[Digest, Descriptor] = {}
    top = _collect(store, digest, blobs)
    missing = [blob for blob in blobs.values() if not store.has(blob.digest)]
    if missing and complete and fetch is None:
        facts = [f"{blob.digest} ({blob.size} bytes)" for blob in missing]
        raise RequestError("expected every layer in the store, some are not", place=str(store.root), detail=facts)
    if not complete:
        blobs = {key: blob for key, blob in blobs.items() if blob not in missing}
    entry = top.annotated({REF_NAME: name}) if name else top
    return entry, sorted(blobs.values(), key=lambda blob: blob.digest)


def _collect(store: Store, digest: Digest, blobs: dict[Digest, Descriptor]) -> Descriptor:
    """Note the documents and layers of an image or index; the descriptor of its top document."""
    data = store.read(digest)
    document = parse_manifest("", data, f"blob {digest}")
    top = Descriptor(media_type=document.media_type, digest=digest, size=len(data))
    blobs[digest] = top
    if isinstance(document, ImageIndex):
        for entry in document.manifests:
            _collect(store, entry.digest, blobs)
        return top
    for blob in (document.config, *document.layers):
        blobs.setdefault(blob.digest, blob)
    return top


def _fill(directory: Path, store: Store, top: Descriptor, blobs: list[Descriptor], fetch: Fetch | None) -> None:
    """Blobs first, `index.json` last: who reads the layout meanwhile sees the old images or the new ones."""
    folder = directory / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    for blob in blobs:
        path = folder / blob.digest.hex
        if path.exists() and path.stat().st_size == blob.size:
            continue
        _write_blob(path, store, blob, fetch)
    if not (directory / "oci-layout").exists():
        write_atomically(directory / "oci-layout", _LAYOUT)
    index_path = directory / "index.json"
    try:
        index = ImageIndex.from_bytes(index_path.read_bytes())
    except FileNotFoundError:
        index = ImageIndex(manifests=())
    except ValueError as error:
        raise UntrustedInputError(str(error), place=str(index_path)) from None
    name = top.annotations.get(REF_NAME)
    kept = tuple(e for e in index.manifests if e != top and (name is None or e.annotations.get(REF_NAME) != name))
    write_atomically(index_path, replace(index, manifests=(*kept, top)).to_bytes())


def _write_blob(path: Path, store: Store, blob: Descriptor, fetch: Fetch | None) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".blob-")
    try:
        with os.fdopen(descriptor, "wb") as output:
            _copy(output, store, blob, fetch)
            output.flush()
            os.fchmod(output.fileno(), 0o644)
            os.fsync(output.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write_tar(
    output: Writable, store: Store, top: Descriptor, blobs: list[Descriptor], fetch: Fetch | None
) -> None:
    """One deterministic tar: fixed order, no times, no owners. A digest occurs once, under its one path."""
    size = 0
    index = ImageIndex(manifests=(top,)).to_bytes()
    for path, data in (("index.json", index), ("oci-layout", _LAYOUT)):
        size += _member(output, path, len(data), io.BytesIO(data))
    for path in ("blobs", "blobs/sha256"):
        size += _member(output, path, 0, None)
    for blob in blobs:
        with _opened(store, blob, fetch) as stream:
            size += _member(output, f"blobs/sha256/{blob.digest.hex}", blob.size, stream)
    ending = tarfile.BLOCKSIZE * 2
    output.write(bytes(ending + -(size + ending) % _RECORD))


def _member(output: Writable, path: str, size: int, stream: VerifiedReader | io.BytesIO | None) -> int:
    """Write one member, a directory when there is no stream; the bytes that it took."""
    member = tarfile.TarInfo(path)
    member.size = size
    member.mode = 0o644 if stream else 0o755
    member.type = tarfile.REGTYPE if stream else tarfile.DIRTYPE
    head = member.tobuf(tarfile.PAX_FORMAT)
    output.write(head)
    if stream:
        while block := stream.read(CHUNK):
            output.write(block)
    padding = -size % tarfile.BLOCKSIZE
    output.write(bytes(padding))
    return len(head) + size + padding


def _copy(output: Writable, store: Store, blob: Descriptor, fetch: Fetch | None) -> None:
    with _opened(store, blob, fetch) as stream:
        while block := stream.read(CHUNK):
            output.write(block)


@contextlib.contextmanager
def _opened(store: Store, blob: Descriptor, fetch: Fetch | None) -> Iterator[VerifiedReader]:
    """A blob, verified as it is read, from the store or from wherever `fetch` finds it."""
    stream: Readable = store.open(blob.digest) if fetch is None or store.has(blob.digest) else fetch(blob)
    with contextlib.closing(stream):
        yield VerifiedReader(stream, blob.digest, blob.size)
