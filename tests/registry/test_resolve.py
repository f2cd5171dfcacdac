"""Resolving bases in a real registry: two documents, never a layer."""

from __future__ import annotations

import json

import pytest
from support.images import AMD64, ARM64, digests, image_of
from support.registry import RunningRegistry

from assembler.oci import media_types
from assembler.oci.bases import MissingPlatformError, NoImageError, WrongPlatformError
from assembler.oci.digest import Digest
from assembler.oci.layout import Store
from assembler.registry.client import Client
from assembler.registry.push import push, push_index
from assembler.registry.resolve import resolve_base

pytestmark = pytest.mark.registry


def test_reads_two_documents_and_no_layer(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    image = image_of(store, {"a": repository.encode()})
    tag = registry.reference(f"{repository}:1")
    digest = push(client, image, store, [tag]).digest
    mark = registry.mark()
    found = resolve_base(client, tag, AMD64)
    assert len(registry.asked(mark)) == 2
    assert not [request for request in registry.asked(mark) if digests(image)[0] in request.path]
    assert (found.reference, found.index_digest) == (tag.at(digest), None)
    assert found.config == image.config
    assert Digest.of(found.manifest_bytes) == digest
    assert Digest.of(found.config_bytes) == found.manifest.config.digest
    assert resolve_base(client, tag.at(digest), AMD64) == found


def test_platforms(client: Client, registry: RunningRegistry, store: Store, repository: str) -> None:
    images = [image_of(store, {"a": str(p).encode()}, platform=p) for p in (AMD64, ARM64)]
    alone, both = registry.reference(f"{repository}:one"), registry.reference(f"{repository}:both")
    push(client, images[0], store, [alone])
    push_index(client, images[:1], store, [both])
    with pytest.raises(WrongPlatformError):
        resolve_base(client, alone, ARM64)
    with pytest.raises(MissingPlatformError, match="offers `linux/amd64`"):
        resolve_base(client, both, ARM64)


def test_docker_types_are_read(client: Client, registry: RunningRegistry, store: Store, repository: str) -> None:
    image = image_of(store, {"a": repository.encode()})
    target = registry.reference(f"{repository}:1")
    push(client, image, store, [target])
    value = json.loads(image.manifest()[0].to_bytes())
    value["mediaType"] = media_types.DOCKER_MANIFEST
    value["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    value["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    docker = target.tagged("docker")
    client.put_manifest(docker, media_types.DOCKER_MANIFEST, json.dumps(value).encode())
    assert resolve_base(client, docker, AMD64).config == image.config


def test_artifact_is_no_base(client: Client, registry: RunningRegistry, store: Store, repository: str) -> None:
    image = image_of(store, {"a": repository.encode()})
    target = registry.reference(f"{repository}:1")
    push(client, image, store, [target])
    value = json.loads(image.manifest()[0].to_bytes())
    value["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    chart = target.tagged("chart")
    client.put_manifest(chart, media_types.MANIFEST, json.dumps(value).encode())
    with pytest.raises(NoImageError, match="helm"):
        resolve_base(client, chart, AMD64)
