"""The verifier: silent about sound images, exact about each kind of damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.images import AMD64, digests, image_of, layer_of, saved, tar_of

from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import BlobLayer, Image, ImageIndex, append
from assembler.oci.layout import Store
from assembler.oci.verify import verify_image


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("deep", [False, True])
def test_sound_image(store: Store, compression: str, deep: bool) -> None:
    image = image_of(store, {"a": b"a" * 100_000}, {"b/c": b"b"}, {"a": b""}, compression=compression)
    assert verify_image(store, saved(store, image).digest, deep=deep) == []


def test_sound_index_and_missing_base(store: Store) -> None:
    image = image_of(store, {"base": b""}, {"mine": b""})
    entry = replace(saved(store, image), platform=AMD64)
    store.blob_path(digests(image)[0]).unlink()
    index = store.put(ImageIndex(manifests=(entry,)).to_bytes())
    assert verify_image(store, index, deep=True) == []
    wrong = store.put(ImageIndex(manifests=(replace(entry, size=1),)).to_bytes())
    assert verify_image(store, wrong, deep=False) == [f"blob {entry.digest}: expected 1 bytes, got {entry.size}"]


def _flip(store: Store, digest: Digest) -> None:
    path = store.blob_path(digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("deep", [False, True])
def test_damaged_blobs_are_all_named(store: Store, deep: bool) -> None:
    image = image_of(store, {"a": b"a" * 1000}, {"b": b"b" * 1000})
    digest = saved(store, image).digest
    for layer in digests(image):
        _flip(store, layer)
    problems = verify_image(store, digest, deep=deep)
    for layer in digests(image):
        assert any(f"layer {layer}: the bytes give" in problem for problem in problems)
    _flip(store, digest)
    assert "the bytes give" in verify_image(store, digest, deep=deep)[0]


def _with(image: Image, change: Callable[[BlobLayer], BlobLayer]) -> Image:
    layer = image.layers[0]
    assert isinstance(layer, BlobLayer)
    return append(Image.scratch(AMD64), [change(layer)])


def test_claims_about_a_layer(store: Store) -> None:
    image = image_of(store, {"a": b"a"})

    def found(change: Callable[[BlobLayer], BlobLayer], *, deep: bool = False) -> str:
        problems = verify_image(store, saved(store, _with(image, change)).digest, deep=deep)
        assert len(problems) == 1, problems
        return problems[0]

    def described(**fields: object) -> Callable[[BlobLayer], BlobLayer]:
        return lambda layer: replace(layer, descriptor=replace(layer.descriptor, **fields))  # type: ignore[arg-type]

    assert "expected 3 bytes, got" in found(described(size=3))
    assert "promises compression zstd, the bytes are gzip" in found(described(media_type=media_types.LAYER_ZSTD))
    other = Digest.of(b"other")
    assert f"expected diff ID {other}" in found(lambda layer: replace(layer, diff_id=other), deep=True)


@pytest.mark.parametrize(
    ("tar", "problem"),
    [
        (tar_of({"../etc/passwd": b""}), "escapes with `..`"),
        (tar_of({"/etc/passwd": b""}), "is an absolute path"),
        (tar_of({"a": b""})[:512] + tar_of({"./a": b""}), "`a` occurs twice"),
        (tar_of({"a": b"a" * 5000})[:2000], "cannot be read"),
    ],
)
def test_tars_that_no_layer_may_be(store: Store, tar: bytes, problem: str) -> None:
    image = append(Image.scratch(AMD64), [layer_of(store, tar)])
    digest = saved(store, image).digest
    assert verify_image(store, digest, deep=False) == []
    assert problem in verify_image(store, digest, deep=True)[0]


def test_contradicting_documents(store: Store) -> None:
    image = image_of(store, {"a": b""}, {"b": b""})
    config = replace(image.config, diff_ids=image.config.diff_ids[:1])
    digest = saved(store, replace(image, config=config)).digest
    assert "lists 1 diff IDs, the manifest 2 layers" in verify_image(store, digest, deep=True)[0]
    missing = Digest.of(b"never written")
    assert verify_image(store, missing, deep=True) == [f"blob {missing}: No such file or directory"]


def test_no_manifest(store: Store) -> None:
    digest = store.put(b"nothing of the kind")
    assert "expected an image manifest" in verify_image(store, digest, deep=True)[0]
    data = b"{}"
    bad = Descriptor(media_type=media_types.MANIFEST, digest=store.put(data), size=len(data))
    assert verify_image(store, bad.digest, deep=False)
