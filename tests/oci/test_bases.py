"""Bases in layouts, and those that are no base: each has its own error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.images import AMD64, ARM64, image_of, saved

from assembler.errors import RequestError, UntrustedInputError
from assembler.oci import media_types
from assembler.oci.bases import (
    LyingConfigError,
    MissingPlatformError,
    NoImageError,
    OldSchemaError,
    WrongPlatformError,
    load_layout,
    parse_manifest,
)
from assembler.oci.descriptor import Descriptor
from assembler.oci.image import ImageIndex
from assembler.oci.layout import Store


def test_layout_by_name_by_digest_and_alone(store: Store) -> None:
    image = image_of(store, {"file": b"data"})
    descriptor = saved(store, image)
    store.tag("one", descriptor)
    for name in ("one", str(descriptor.digest), None):
        found = load_layout(store.root, name, AMD64)
        assert found.config == image.config
        assert found.manifest_bytes == store.read(descriptor.digest)
    store.tag("two", saved(store, image_of(store, {"other": b""})))
    with pytest.raises(RequestError, match="the layout holds `one`, `two`"):
        load_layout(store.root, None, AMD64)
    with pytest.raises(RequestError):
        load_layout(store.root, "three", AMD64)


def test_layout_with_an_index(store: Store) -> None:
    images = [image_of(store, {"machine": str(p).encode()}, platform=p) for p in (AMD64, ARM64)]
    entries = tuple(replace(saved(store, image), platform=image.config.platform) for image in images)
    data = ImageIndex(manifests=entries).to_bytes()
    store.tag("both", Descriptor(media_type=media_types.INDEX, digest=store.put(data), size=len(data)))
    assert load_layout(store.root, "both", ARM64).config == images[1].config
    with pytest.raises(MissingPlatformError, match="the index offers `linux/amd64`, `linux/arm64`"):
        load_layout(store.root, "both", replace(AMD64, architecture="riscv64"))


def test_wrong_platform(store: Store) -> None:
    store.tag("one", saved(store, image_of(store, {"file": b""})))
    with pytest.raises(WrongPlatformError, match="expected an image for `linux/arm64`, got `linux/amd64`"):
        load_layout(store.root, "one", ARM64)


def test_no_layout(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected an OCI image layout"):
        load_layout(tmp_path, None, AMD64)
    (tmp_path / "index.json").write_text("[")
    with pytest.raises(UntrustedInputError):
        load_layout(tmp_path, None, AMD64)


def test_damaged_document(store: Store) -> None:
    descriptor = saved(store, image_of(store, {"file": b""}))
    store.tag("one", descriptor)
    path = store.blob_path(descriptor.digest)
    path.write_bytes(path.read_bytes().replace(b"zstd", b"gzip").replace(b"2", b"3", 1))
    with pytest.raises(UntrustedInputError, match="the bytes give"):
        load_layout(store.root, "one", AMD64)


def _change(store: Store, what: str, value: dict[str, Any]) -> None:
    """Tag `lie`: an image whose config or manifest has some fields replaced."""
    manifest, config = image_of(store, {"file": b""}).manifest()
    documents = {"config": json.loads(config), "manifest": json.loads(manifest.to_bytes())}
    documents[what].update(value)
    config = json.dumps(documents["config"]).encode()
    documents["manifest"]["config"].update({"digest": store.put(config), "size": len(config)})
    data = json.dumps(documents["manifest"]).encode()
    store.tag("lie", Descriptor(media_type=media_types.MANIFEST, digest=store.put(data), size=len(data)))


@pytest.mark.parametrize(
    ("what", "value", "error"),
    [
        ("config", {"rootfs": {"type": "layers", "diff_ids": []}}, LyingConfigError),
        ("config", {"history": [{}, {}]}, LyingConfigError),
        ("config", {"rootfs": {"diff_ids": ["nonsense"]}}, UntrustedInputError),
        ("config", {"history": 7}, UntrustedInputError),
        ("manifest", {"layers": [{}]}, UntrustedInputError),
        ("manifest", {"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}}, NoImageError),
    ],
)
def test_documents_that_lie(store: Store, what: str, value: dict[str, Any], error: type[Exception]) -> None:
    _change(store, what, value)
    with pytest.raises(error):
        load_layout(store.root, "lie", AMD64)


def test_schema_1() -> None:
    with pytest.raises(OldSchemaError, match="schema 1"):
        parse_manifest("", b'{"schemaVersion":1,"fsLayers":[]}', "old")
    with pytest.raises(OldSchemaError):
        parse_manifest(media_types.DOCKER_SCHEMA_1[1], b"{}", "old")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"<html>", b'{"schemaVersion":2,"config":3}'])
def test_no_manifest(data: bytes) -> None:
    with pytest.raises(UntrustedInputError):
        parse_manifest(media_types.MANIFEST, data, "x")
