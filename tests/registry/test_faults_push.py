"""Pushes of whole images through a network that fails: the right image, or an error and nothing under the tag."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from support.faulty_proxy import STAGES, Change, Cut, Fault, FaultyProxy, Reply, Stage, faulty_proxy, once
from support.images import AMD64, image_of
from support.registry import RunningRegistry, output_of

from assembler.errors import RegistryError
from assembler.oci.descriptor import EMPTY, EMPTY_JSON
from assembler.oci.digest import Digest
from assembler.oci.image import Image, ImageManifest
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.push import PushResult, push, push_artifact
from assembler.registry.resolve import resolve_base
from assembler.registry.retry import RetryPolicy
from assembler.registry.settings import Settings

pytestmark = pytest.mark.registry

POLICY = RetryPolicy(attempts=3, sleep=lambda _seconds: None, connect=2, silence=2, commit=2)
ONE_TRY = replace(POLICY, attempts=1)


@pytest.fixture
def proxy(registry: RunningRegistry) -> Iterator[FaultyProxy]:
    with faulty_proxy(registry.host) as running:
        yield running


@pytest.fixture
def image(store: Store, repository: str) -> Image:
    return image_of(store, {"file": repository.encode() * 9})


def publish(target: Reference, image: Image, store: Store, policy: RetryPolicy = POLICY) -> PushResult:
    """One thread, so that requests have an order."""
    client = Client(Settings(), policy)
    try:
        return push(client, image, store, [target], threads=1)
    finally:
        client.close()


def blobs_of(image: Image) -> dict[Digest, int]:
    manifest, _ = image.manifest()
    return {one.digest: one.size for one in (*manifest.layers, manifest.config)}


def is_whole(registry: RunningRegistry, client: Client, target: Reference, image: Image) -> bool:
    """Is the image under its tag, and every blob of it in the repository?"""
    here = Reference.parse(f"{registry.host}/{target.repository}:{target.tag}")
    found = client.head_manifest(here)
    if found is None:
        return False
    assert found.digest == Digest.of(image.manifest()[0].to_bytes())
    for digest, size in blobs_of(image).items():
        assert client.has_blob(here, digest) == size
        assert Digest.of(registry.blob_path(digest).read_bytes()) == digest
    return True


def requests_of_a_push(proxy: FaultyProxy, image: Image, store: Store, target: Reference) -> int:
    publish(target, image, store)
    count = len(proxy.seen)
    proxy.seen.clear()
    return count


@pytest.mark.parametrize("stage", STAGES)
def test_a_push_that_is_cut_anywhere_is_not_visible_and_the_next_one_finishes(
    proxy: FaultyProxy,
    registry: RunningRegistry,
    client: Client,
    store: Store,
    image: Image,
    repository: str,
    stage: Stage,
) -> None:
    count = requests_of_a_push(proxy, image, store, proxy.reference(f"{repository}/first:1"))
    assert count >= 10  # the tag, a question, an upload and another question for each blob, two manifests
    for number in range(count):
        target = proxy.reference(f"{repository}/{number}:1")
        proxy.seen.clear()
        proxy.rule = lambda request, number=number: Cut(stage) if request.number == number else None
        with pytest.raises(RegistryError):
            publish(target, image, store, ONE_TRY)
        proxy.rule = None
        # Only who lost the answer to the very last request has a tag, and then the image is whole.
        is_last = number == count - 1 and stage in ("sent", "answer")
        assert is_whole(registry, client, target, image) == is_last
        there = {
            digest for digest in blobs_of(image) if client.has_blob(registry.reference(target.repository), digest)
        }
        result = publish(target, image, store, ONE_TRY)
        assert is_whole(registry, client, target, image)
        if not is_last:
            assert {blob.digest for blob in result.blobs if blob.way == "present"} == there
            assert {blob.digest for blob in result.blobs if blob.way == "pushed"} == blobs_of(image).keys() - there


@pytest.mark.parametrize("stage", STAGES)
def test_a_push_survives_a_cut_anywhere(
    proxy: FaultyProxy,
    registry: RunningRegistry,
    client: Client,
    store: Store,
    image: Image,
    repository: str,
    stage: Stage,
) -> None:
    count = requests_of_a_push(proxy, image, store, proxy.reference(f"{repository}/first:1"))
    for number in range(count):
        target = proxy.reference(f"{repository}/{number}:1")
        proxy.seen.clear()
        proxy.rule = lambda request, number=number: Cut(stage) if request.number == number else None
        publish(target, image, store)
        assert is_whole(registry, client, target, image)


@pytest.mark.tools
def test_a_network_that_fails_at_every_third_request(
    proxy: FaultyProxy, registry: RunningRegistry, store: Store, image: Image, repository: str, tmp_path: Path
) -> None:
    faults: list[Fault] = [
        *map(Cut, STAGES),
        Reply(503),
        Reply(429, {"Retry-After": "1"}),
        Reply(500, {}, b"<html>"),
    ]
    proxy.rule = lambda request: faults[request.number // 3 % len(faults)] if request.number % 3 == 1 else None
    target = proxy.reference(f"{repository}:1")
    digest = publish(target, image, store, replace(POLICY, attempts=6)).digest
    proxy.rule = None
    copy = tmp_path / "copy"
    output_of(["skopeo", "copy", "--src-tls-verify=false", f"docker://{target}", f"oci:{copy}"])
    assert json.loads((copy / "index.json").read_text())["manifests"][0]["digest"] == digest


def test_a_base_streams_between_registries_that_both_fail(
    proxy: FaultyProxy,
    registry: RunningRegistry,
    other_registry: RunningRegistry,
    client: Client,
    store: Store,
    image: Image,
    repository: str,
    tmp_path: Path,
) -> None:
    elsewhere = Store(tmp_path / "elsewhere").create()
    below = image_of(elsewhere, {"base": random.Random(17).randbytes(1 << 20)})  # noqa: S311
    push(client, below, elsewhere, [registry.reference(f"{repository}/base:1")])
    base = resolve_base(client, proxy.reference(f"{repository}/base:1"), AMD64)
    image = image_of(store, {"own": b"own"}, on=Image.from_base(base.manifest, base.config, base.reference))
    with faulty_proxy(other_registry.host) as beyond:
        target = beyond.reference(f"{repository}:1")
        proxy.rule = once(Cut("answer", at=300_000, reset=False), method="GET", part="/blobs/", times=2)
        beyond.rule = once(Cut("body"), method="PUT", part="/blobs/", times=2)
        result = publish(target, image, store)
        assert [blob.way for blob in result.blobs].count("streamed") == 1
        assert is_whole(other_registry, client, target, image)


@pytest.mark.parametrize("reply", [Reply(404), Reply(200, {}, b"1234567")], ids=["no", "7"])
def test_a_blob_that_the_registry_took_and_has_not_is_told(
    proxy: FaultyProxy, client: Client, store: Store, image: Image, repository: str, reply: Reply
) -> None:
    """It answers 201 and has stored nothing, or something else."""
    proxy.rule = lambda request: reply if request.method == "HEAD" and "/blobs/" in request.path else None
    target = proxy.reference(f"{repository}:1")
    with pytest.raises(RegistryError, match="the registry took blob"):
        publish(target, image, store)
    proxy.rule = None
    assert client.head_manifest(target) is None


def test_a_digest_of_something_else_is_told(
    proxy: FaultyProxy, client: Client, store: Store, image: Image, repository: str
) -> None:
    other = {"Docker-Content-Digest": Digest.of(b"other")}
    lie = Change(lambda reply: replace(reply, headers={**reply.headers, **other}))
    for part in ("/blobs/", "/manifests/"):
        target = proxy.reference(f"{repository}{part.rstrip('s/')}:1")
        proxy.rule = once(lie, method="PUT", part=part)
        with pytest.raises(RegistryError, match="the registry stored `sha256:"):
            publish(target, image, store)
        assert client.head_manifest(target) is None


def test_two_pushes_of_one_image_at_once(
    registry: RunningRegistry, client: Client, store: Store, image: Image, repository: str
) -> None:
    target, start = registry.reference(f"{repository}:1"), threading.Barrier(4)

    def one(_number: int) -> Digest:
        start.wait()
        return publish(target, image, store).digest

    with ThreadPoolExecutor(4) as pool:
        digests = set(pool.map(one, range(4)))
    assert len(digests) == 1
    assert is_whole(registry, client, target, image)


def test_many_writers_of_one_blob(registry: RunningRegistry, store: Store, repository: str) -> None:
    """Registry 2.8 refuses a manifest when it reads a link of a blob that another writer is just writing again."""
    manifest = ImageManifest(config=EMPTY, layers=(), artifact_type="application/x").to_bytes()
    client = Client(Settings(), RetryPolicy(first=0.05))

    def one(number: int) -> None:
        target = registry.reference(f"{repository}/{number // 8}:{number}")
        push_artifact(client, store, target, manifest, [(EMPTY, None)], data={EMPTY.digest: EMPTY_JSON})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(160)))
    client.close()


def test_the_last_of_two_images_under_one_tag_wins_and_both_are_whole(
    registry: RunningRegistry, client: Client, store: Store, repository: str
) -> None:
    target, start = registry.reference(f"{repository}:1"), threading.Barrier(2)
    images = [image_of(store, {"same": repository.encode()}, {"own": name}) for name in (b"one", b"two")]

    def one(image: Image) -> Digest:
        start.wait()
        return publish(target, image, store).digest

    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(one, images))
    found = client.head_manifest(target)
    assert found is not None
    assert found.digest in digests
    for digest, image in zip(digests, images, strict=True):
        assert client.get_manifest(target.at(digest)).digest == digest
        assert all(client.has_blob(target, blob) == size for blob, size in blobs_of(image).items())
    publish(target, images[0], store)
    assert is_whole(registry, client, target, images[0])
