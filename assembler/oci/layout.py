"""The store: an OCI image layout on disk (image-spec image-layout.md), which is also our cache.

    ROOT/oci-layout, index.json, blobs/sha256/…   an ordinary layout; any OCI tool can read it
    ROOT/keys/KK/KEY.json                         what a step of this key gave: a small JSON record
    ROOT/tmp/                                     files being written, each locked by its writer

Everything is written by temporary file, fsync, rename, so a kill at any moment leaves whole files only. Blobs
and records are immutable and need no lock; `index.json` is rewritten under a lock on `index.lock`.
The layout is sparse: layers of a registry base are not in it, as the specification allows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from assembler.errors import VerifyError
from assembler.oci.descriptor import REF_NAME, Descriptor
from assembler.oci.digest import Digest, Readable, VerifiedReader, canonical_json
from assembler.oci.image import ImageIndex

CHUNK = 1 << 20
USE_SLACK_SECONDS = 600.0


class BlobWriter:
    """A blob being written. Bytes go to a temporary file; `commit` gives it its name, anything else drops it."""

    def __init__(self, store: Store, file: IO[bytes], path: Path) -> None:
        self._store = store
        self._file = file
        self.path = path
        self.committed: Digest | None = None

    def write(self, data: bytes) -> int:
        """Append bytes."""
        return self._file.write(data)

    def fileno(self) -> int:
        """The descriptor, for tools that write straight into the file."""
        return self._file.fileno()

    def commit(self, digest: Digest) -> None:
        """Make the blob visible as `digest`. The caller has hashed every byte that it wrote."""
        self._file.flush()
        target = self._store.blob_path(digest)
        if not _mark_used(target):
            os.fsync(self._file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o644)
            self.path.replace(target)
            _sync_directory(target.parent)
        self.committed = digest


class Store:
    """Blobs by digest, records by key, images by name, under one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> Store:
        """Make the directories and the `oci-layout` file; harmless when they are there."""
        for name in ("blobs/sha256", "keys", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        if not (self.root / "oci-layout").exists():
            write_atomically(self.root / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        if not (self.root / "index.json").exists():
            with self._index_lock():
                if not (self.root / "index.json").exists():
                    write_atomically(self.root / "index.json", ImageIndex(manifests=()).to_bytes())
        return self

    # blobs

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob is or would be."""
        return self.root / "blobs" / "sha256" / digest.hex

    def has(self, digest: Digest) -> bool:
        """Is the blob here? If so, it counts as used now."""
        return _mark_used(self.blob_path(digest))

    @contextlib.contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """A new blob; dropped unless committed."""
        directory = self.root / "tmp"
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=directory, prefix="blob-")
        path = Path(name)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            blob = BlobWriter(self, file, path)
            try:
                yield blob
            finally:
                path.unlink(missing_ok=True)

    def put(self, data: bytes) -> Digest:
        """Store these bytes and return their digest."""
        digest = Digest.of(data)
        if not self.has(digest):
            with self.writer() as blob:
                blob.write(data)
                blob.commit(digest)
        return digest

    def put_stream(self, stream: Readable, digest: Digest, size: int) -> None:
        """Store a stream that must be `digest` and `size`; VerifyError, and nothing stored, when it is not."""
        if self.has(digest):
            return
        reader = VerifiedReader(stream, digest, size)
        with self.writer() as blob:
            while chunk := reader.read(CHUNK):
                blob.write(chunk)
            blob.commit(digest)

    def open(self, digest: Digest) -> IO[bytes]:
        """Open a blob for reading; FileNotFoundError when it is not here. The bytes are not verified again."""
        return self.blob_path(digest).open("rb")

    def read(self, digest: Digest) -> bytes:
        """A small blob, verified; VerifyError when the store is damaged."""
        data = self.blob_path(digest).read_bytes()
        if Digest.of(data) != digest:
            raise VerifyError(f"the bytes give {Digest.of(data)}", place=f"blob {digest} of {self.root}")
        return data

    # records

    def record_path(self, key: str) -> Path:
        """Where the record of a key is; `key` is hexadecimal."""
        return self.root / "keys" / key[:2] / f"{key}.json"

    def record(self, key: str) -> dict[str, Any] | None:
        """What a step of this key gave, or None. A damaged record counts as none; a sound one as used now."""
        path = self.record_path(key)
        if not _mark_used(path):
            return None
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def put_record(self, key: str, value: Mapping[str, Any]) -> None:
        """Remember what a step of this key gave. Blobs that it names must be stored before."""
        path = self.record_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, canonical_json(value))

    # images

    def index(self) -> ImageIndex:
        """The images of the store."""
        return ImageIndex.from_bytes((self.root / "index.json").read_bytes())

    def find(self, name: str) -> Descriptor | None:
        """The image (or index) of this name."""
        for entry in self.index().manifests:
            if entry.annotations.get(REF_NAME) == name:
                return entry
        return None

    def tag(self, name: str, descriptor: Descriptor) -> None:
        """Give an image a name, taking it from any other."""
        with self._index_lock():
            index = self.index()
            kept = tuple(e for e in index.manifests if e.annotations.get(REF_NAME) != name)
            entry = descriptor.annotated({REF_NAME: name})
            self._write_index(replace(index, manifests=(*kept, entry)))

    def untag(self, name: str) -> bool:
        """Take a name away; False when there was none."""
        with self._index_lock():
            index = self.index()
            kept = tuple(e for e in index.manifests if e.annotations.get(REF_NAME) != name)
            self._write_index(replace(index, manifests=kept))
            return len(kept) < len(index.manifests)

    def _write_index(self, index: ImageIndex) -> None:
        write_atomically(self.root / "index.json", index.to_bytes())

    @contextlib.contextmanager
    def _index_lock(self) -> Iterator[None]:
        with (self.root / "index.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def write_atomically(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Replace a file by one with these bytes, so that a reader sees the old or the new one, whole.

    Unless `durable`, a crash of the machine may leave a damaged one: for what can be told and may be lost.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(path.parent)


def _mark_used(path: Path) -> bool:
    """Is the file here? Its modification time then is at most `USE_SLACK_SECONDS` old, unless it is not ours.

    Blobs and records never change, so their time is free to say when they were last relied on, which is what
    `assembler.gc` needs to know about a store in use.
    """
    try:
        if time.time() - path.stat().st_mtime > USE_SLACK_SECONDS:
            os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        return path.exists()
    return True


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
