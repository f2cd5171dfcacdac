"""Images: stacking, chain IDs, and the bytes of their documents."""

from __future__ import annotations

import hashlib
import json

import pytest
from support.images import AMD64, image_of

from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import (
    BaseLayer,
    BlobLayer,
    History,
    Image,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    append,
    chain_ids,
)
from assembler.oci.layout import Store
from assembler.oci.reference import Reference

ORIGIN = Reference.parse("registry.example/base:1")


def _digest(text: str) -> Digest:
    return Digest.of(text.encode())


def _base() -> Image:
    layer = Descriptor(
        media_type="application/vnd.docker.image.rootfs.diff.tar.gzip", digest=_digest("blob"), size=4
    )
    config = ImageConfig(
        platform=AMD64,
        config={"Env": ["PATH=/bin", "A=b=c"]},
        diff_ids=(_digest("tar"),),
        history=(History(created_by="base"), History(created_by="ENV", empty_layer=True)),
        rest={"author": "somebody"},
    )
    manifest = ImageManifest(config=Descriptor(media_type="x", digest=_digest("config"), size=1), layers=(layer,))
    return Image.from_base(manifest, config, ORIGIN)


def test_append_keeps_the_base_and_adds_a_line_of_history() -> None:
    mine = BlobLayer(
        descriptor=Descriptor(media_type=media_types.LAYER_ZSTD, digest=_digest("mine"), size=4),
        diff_id=_digest("my tar"),
        created_by="wheels torch",
    )
    base = _base()
    image = append(base, [mine], epoch=86400)
    assert image.layers == (*base.layers, mine)
    assert image.config.diff_ids == (_digest("tar"), _digest("my tar"))
    assert [entry.created_by for entry in image.config.history] == ["base", "ENV", "wheels torch"]
    assert image.config.history[-1].created == image.config.created == "1970-01-02T00:00:00Z"
    assert append(base, [mine], epoch=86400).manifest() == image.manifest()
    assert base == _base()


def test_base_of_docker_types_becomes_oci_throughout() -> None:
    image = _base()
    layer = image.layers[0]
    assert isinstance(layer, BaseLayer)
    assert (layer.descriptor.media_type, layer.origin) == (media_types.LAYER_GZIP, ORIGIN)
    manifest, config_bytes = image.manifest()
    assert manifest.media_type == media_types.MANIFEST
    assert manifest.config.media_type == media_types.CONFIG
    assert manifest.config.digest == Digest.of(config_bytes)
    assert json.loads(config_bytes)["author"] == "somebody"


def test_base_whose_documents_disagree_is_refused() -> None:
    base = _base()
    manifest, _ = base.manifest()
    with pytest.raises(ValueError, match="0 diff IDs, the manifest 1 layers"):
        Image.from_base(manifest, ImageConfig(platform=AMD64), ORIGIN)


def test_chain_ids_follow_the_specification() -> None:
    # config.md: ChainID(A) = DiffID(A); ChainID(A|B) = sha256("ChainID(A) DiffID(B)"); and so on
    a, b, c = (_digest(text) for text in "abc")
    ab = "sha256:" + hashlib.sha256(f"{a} {b}".encode()).hexdigest()
    abc = "sha256:" + hashlib.sha256(f"{ab} {c}".encode()).hexdigest()
    assert chain_ids([a, b, c]) == (a, ab, abc)
    assert chain_ids([]) == ()


def test_documents_survive_reading(store: Store) -> None:
    image = image_of(store, {"a": b"a"}, {"b": b"b"})
    manifest, config_bytes = image.manifest()
    data = manifest.to_bytes()
    assert ImageManifest.from_bytes(data).to_bytes() == data
    assert ImageConfig.from_bytes(config_bytes).to_bytes() == config_bytes
    index = ImageIndex(
        manifests=(Descriptor(media_type=media_types.MANIFEST, digest=Digest.of(data), size=len(data)),)
    )
    assert ImageIndex.from_bytes(index.to_bytes()) == index


def test_environment_is_split_at_the_first_sign() -> None:
    assert _base().config.environment == {"PATH": "/bin", "A": "b=c"}
