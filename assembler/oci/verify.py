"""Proving an image of the store: everything that a digest or a number claims is recomputed from the bytes.

Problems are collected, not raised, so that one look shows them all; each says what was expected before what was
found. Memory stays small whatever the layers' sizes: it grows only with the number of paths of one layer.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Final, Protocol, cast

from assembler.errors import AssembleError
from assembler.oci import media_types
from assembler.oci.bases import layer_problem, parse_manifest
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import ImageConfig, ImageIndex, ImageManifest
from assembler.oci.layout import CHUNK, Store

_MOST_TAR_PROBLEMS: Final = 20
_THREADS: Final = 4
_MAGICS: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_COMPRESSIONS: Final = {
    media_types.LAYER: "none",
    media_types.LAYER_GZIP: "gzip",
    media_types.LAYER_ZSTD: "zstd",
}


def verify_image(store: Store, digest: Digest, *, deep: bool, hashed: Collection[Digest] = ()) -> list[str]:
    """Everything that is wrong with an image or index of the store; an empty list when nothing is.

    Always: digest and size of the documents and of every layer that is in the store, its media type against its
    first bytes, and whether manifest, config and history tell of the same layers. `deep` also decompresses the
    layers: diff IDs, and tars without duplicate, absolute or escaping paths. Layers that are not in the store
    (those of a registry base) are taken on trust. Layers in `hashed` were verified when they were written into the
    store: of them only size and type are looked at, unless `deep`.
    """
    data = _document(store, digest)
    if isinstance(data, str):
        return [data]
    try:
        document = parse_manifest("", data, f"manifest {digest}")
    except AssembleError as error:
        return [str(error)]
    if isinstance(document, ImageIndex):
        problems = []
        for entry in document.manifests:
            problems += [
                *_size_problems(store, entry),
                *verify_image(store, entry.digest, deep=deep, hashed=hashed),
            ]
        return problems
    config, problems = _config(store, document)
    diff_ids = config.diff_ids if config else ()
    layers = {
        (layer.digest, index if deep else 0): (layer, diff_ids[index] if deep and index < len(diff_ids) else None)
        for index, layer in enumerate(document.layers)
        if store.has(layer.digest)
    }
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="verify") as pool:
        for found in pool.map(
            lambda item: _layer_problems(store, *item, deep=deep, hashed=hashed), layers.values()
        ):
            problems += found
    return problems


def _document(store: Store, digest: Digest) -> bytes | str:
    """A small blob whose digest is right, or else what is wrong with it."""
    try:
        data = store.blob_path(digest).read_bytes()
    except OSError as error:
        return f"blob {digest}: {error.strerror or error}"
    found = Digest.of(data)
    return data if found == digest else f"blob {digest}: the bytes give {found}"


def _size_problems(store: Store, descriptor: Descriptor) -> Iterator[str]:
    """A descriptor whose blob has another size."""
    try:
        size = store.blob_path(descriptor.digest).stat().st_size
    except OSError:
        return  # said where the blob itself is looked at
    if size != descriptor.size:
        yield f"blob {descriptor.digest}: expected {descriptor.size} bytes, got {size}"


def _config(store: Store, manifest: ImageManifest) -> tuple[ImageConfig | None, list[str]]:
    """The config, and what is wrong with it or between it and the manifest."""
    place = f"config {manifest.config.digest}"
    problems = list(_size_problems(store, manifest.config))
    data = _document(store, manifest.config.digest)
    if isinstance(data, str):
        return None, [*problems, data]
    if manifest.config.media_type != media_types.CONFIG:
        problems.append(f"{place}: expected type `{media_types.CONFIG}`, got `{manifest.config.media_type}`")
    try:
        config = ImageConfig.from_bytes(data)
    except (ValueError, TypeError, AttributeError) as error:
        return None, [*problems, f"{place}: {error}"]
    if not (config.platform.os and config.platform.architecture):
        problems.append(f"{place}: expected a platform, got `{config.platform}`")
    if contradiction := layer_problem(manifest, config):
        problems.append(f"{place}: {contradiction}")
    return config, problems


def _layer_problems(
    store: Store, layer: Descriptor, diff_id: Digest | None, *, deep: bool, hashed: Collection[Digest]
) -> list[str]:
    """What is wrong with one layer, read once. `diff_id` is what the config claims."""
    place = f"layer {layer.digest}"
    try:
        with store.open(layer.digest) as file:
            head = file.read(4)
            file.seek(0)
            kind = _MAGICS.get(head) or _MAGICS.get(head[:2]) or "none"
            problems = [f"{place}: {fact}" for fact in _type_problems(layer, kind)]
            if not deep and layer.digest in hashed:
                return [*problems, *_size_problems(store, layer)]
            raw = _Hashing(file)
            if deep:
                problems += [f"{place}: {fact}" for fact in _content_problems(raw, kind, diff_id)]
            raw.drain()
    except OSError as error:
        return [f"{place}: {error.strerror or error}"]
    if raw.size != layer.size:
        problems.append(f"{place}: expected {layer.size} bytes, got {raw.size}")
    if raw.digest != layer.digest:
        problems.append(f"{place}: the bytes give {raw.digest}")
    return problems


def _type_problems(layer: Descriptor, kind: str) -> Iterator[str]:
    expected = _COMPRESSIONS.get(layer.media_type)
    if expected is None:
        yield f"expected an OCI layer type, got `{layer.media_type}`"
    elif expected != kind:
        yield f"type `{layer.media_type}` promises compression {expected}, the bytes are {kind}"


def _content_problems(raw: _Hashing, kind: str, diff_id: Digest | None) -> list[str]:
    """What is wrong with the tar inside. Reads `raw` to where the compressed stream ends."""
    problems: list[str] = []
    try:
        plain = _Hashing(_decompressed(raw, kind))
        for problem in _tar_problems(plain):
            problems.append(problem)
            if len(problems) == _MOST_TAR_PROBLEMS:
                problems.append("more of the kind")
                break
        plain.drain()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        return [*problems, f"cannot be read: {error}"]
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # its module is imported only where a zstd layer is read
            raise
        return [*problems, f"cannot be read: {error}"]
    if diff_id is not None and plain.digest != diff_id:
        problems.append(f"expected diff ID {diff_id}, the tar gives {plain.digest}")
    return problems


def _tar_problems(plain: _Hashing) -> Iterator[str]:
    """Paths that no layer may have. The tar is read as a stream, and forgotten as it goes."""
    seen: set[str] = set()
    with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r|", bufsize=CHUNK) as tar:
        for member in tar:
            cast("Any", tar).members.clear()  # else `tarfile` keeps each member of a layer with a million files
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            path = "/".join(parts)
            if member.name.startswith("/"):
                yield f"`{member.name}` is an absolute path"
            if ".." in parts:
                yield f"`{member.name}` escapes with `..`"
            if path in seen:
                yield f"`{path}` occurs twice"
            seen.add(path)


class _Source(Protocol):
    def read(self, amount: int = ..., /) -> bytes: ...


class _Hashing:
    """A reader that knows digest and size of what went through."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, amount: int = -1, /) -> bytes:
        data = self._source.read(amount)
        self._hash.update(data)
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read what is left."""
        while self.read(CHUNK):
            pass

    @property
    def digest(self) -> Digest:
        """Digest of everything read so far."""
        return Digest("sha256:" + self._hash.hexdigest())


def _decompressed(raw: _Hashing, kind: str) -> _Source:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=cast("IO[bytes]", raw), mode="rb")
    if kind == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(
            cast("IO[bytes]", raw), read_size=CHUNK, read_across_frames=True
        )
    return raw
