"""Images made of tiny layers, for tests that care about documents and transfers rather than content."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence

from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import BlobLayer, Image, append
from assembler.oci.layout import Store
from assembler.oci.platform import Platform

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def layer_of(store: Store, tar: bytes, *, compression: str = "gzip", created_by: str = "test") -> BlobLayer:
    """A layer of this tar in the store, compressed by `gzip`, `zstd` or `none`."""
    if compression == "gzip":
        blob, media_type = gzip.compress(tar, mtime=0), media_types.LAYER_GZIP
    elif compression == "zstd":
        import zstandard

        blob, media_type = zstandard.ZstdCompressor().compress(tar), media_types.LAYER_ZSTD
    else:
        blob, media_type = tar, media_types.LAYER
    descriptor = Descriptor(media_type=media_type, digest=store.put(blob), size=len(blob))
    return BlobLayer(descriptor=descriptor, diff_id=Digest.of(tar), created_by=created_by)


def image_of(
    store: Store,
    *layers: Mapping[str, bytes],
    platform: Platform = AMD64,
    compression: str = "gzip",
    on: Image | None = None,
) -> Image:
    """An image with one layer for each mapping of files, from scratch or `on` another."""
    packed = [layer_of(store, tar_of(files), compression=compression) for files in layers]
    return append(on or Image.scratch(platform), packed)


def saved(store: Store, image: Image) -> Descriptor:
    """Put the documents of an image into the store and return the descriptor of its manifest."""
    manifest, config = image.manifest()
    store.put(config)
    data = manifest.to_bytes()
    return Descriptor(media_type=manifest.media_type, digest=store.put(data), size=len(data))


def digests(image: Image) -> Sequence[Digest]:
    """The digests of the image's layers, lowest first."""
    return [layer.descriptor.digest for layer in image.layers]
