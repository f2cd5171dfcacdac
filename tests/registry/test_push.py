"""Publishing to a real registry, with its log as the witness."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from support.images import AMD64, ARM64, digests, image_of
from support.registry import RunningRegistry, output_of

from assembler.errors import RegistryError, RequestError, VerifyError
from assembler.events import Event, StepProgress
from assembler.oci.image import Image, append
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.push import push, push_index
from assembler.registry.resolve import resolve_base

pytestmark = pytest.mark.registry


def _based(client: Client, store: Store, base: Reference, file: str) -> Image:
    """An image with one layer of its own on a base that is known by reference only."""
    resolved = resolve_base(client, base, AMD64)
    image = Image.from_base(resolved.manifest, resolved.config, resolved.reference)
    return image_of(store, {file: file.encode() * 50}, on=image)


@pytest.fixture
def base(client: Client, registry: RunningRegistry, repository: str, tmp_path: Path) -> Reference:
    """A base of two layers in the registry. Its blobs are in no store that the tests use."""
    elsewhere = Store(tmp_path / "elsewhere").create()
    reference = registry.reference(f"{repository}/base:1")
    files = {f"usr/{repository}": b"base" * 1000}
    push(client, image_of(elsewhere, files, {"etc/base": repository.encode()}), elsewhere, [reference])
    return reference


@pytest.mark.tools
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_skopeo_reads_what_was_pushed(
    client: Client, registry: RunningRegistry, store: Store, repository: str, tmp_path: Path, compression: str
) -> None:
    image = image_of(store, {"hello": b"hello"}, {"world": b"world" * 1000}, compression=compression)
    target = registry.reference(f"{repository}:latest")
    result = push(client, image, store, [target])

    found = json.loads(output_of(["skopeo", "inspect", "--tls-verify=false", f"docker://{target}"]))
    assert found["Digest"] == result.digest
    assert found["Layers"] == digests(image)
    output_of(["skopeo", "copy", "--src-tls-verify=false", f"docker://{target}", f"oci:{tmp_path / 'copy'}"])
    assert result.references == (target.at(result.digest),)
    assert {blob.way for blob in result.blobs} == {"pushed"}
    assert result.bytes_pushed == sum(blob.size for blob in result.blobs)


@pytest.mark.tools
def test_podman_pulls_what_was_pushed(
    client: Client, registry: RunningRegistry, store: Store, repository: str, tmp_path: Path
) -> None:
    target = registry.reference(f"{repository}:latest")
    push(client, image_of(store, {"hello": b"hello"}), store, [target])
    with tempfile.TemporaryDirectory(prefix="run-") as run:  # podman wants a short one
        podman = ["podman", "--root", str(tmp_path / "root"), "--runroot", run]
        podman += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        output_of([*podman, "pull", "--tls-verify=false", str(target)])
        assert repository in output_of([*podman, "images", "--format", "{{.Repository}}"])


def test_base_layers_are_mounted_and_never_read(
    client: Client, registry: RunningRegistry, store: Store, repository: str, base: Reference
) -> None:
    image = _based(client, store, base, "mine")
    mark = registry.mark()
    result = push(client, image, store, [registry.reference(f"{repository}/app:1")])

    ways = {blob.digest: blob.way for blob in result.blobs}
    assert [ways[digest] for digest in digests(image)] == ["mounted", "mounted", "pushed"]
    asked = registry.asked(mark)
    assert not [request for request in asked if request.method == "GET"]
    assert len([request for request in asked if "mount=" in request.path and request.status == 201]) == 2
    assert not store.has(digests(image)[0])


def test_base_layers_stream_to_another_registry_without_disk(
    client: Client,
    registry: RunningRegistry,
    other_registry: RunningRegistry,
    store: Store,
    repository: str,
    base: Reference,
) -> None:
    image = _based(client, store, base, "mine")
    before = {path for path in store.root.rglob("*") if path.is_file()}
    target = other_registry.reference(f"{repository}/app:1")
    result = push(client, image, store, [target])

    ways = {blob.digest: blob.way for blob in result.blobs}
    assert [ways[digest] for digest in digests(image)] == ["streamed", "streamed", "pushed"]
    assert {path for path in store.root.rglob("*") if path.is_file()} == before
    for digest in digests(image)[:2]:
        assert other_registry.blob_path(digest).read_bytes() == registry.blob_path(digest).read_bytes()
    assert client.head_manifest(target)


def test_declined_mount_goes_on_with_the_session_it_left(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    image = image_of(store, {"file": repository.encode()})
    layer = image.layers[0].descriptor
    target = registry.reference(f"{repository}:1")
    answer = client.mount(target, f"{repository}/nowhere", layer.digest)
    assert not answer
    assert answer.session

    mark = registry.mark()
    client.upload(target, layer, lambda: store.open(layer.digest), session=answer.session)
    assert [request.method for request in registry.asked(mark)] == ["PUT"]
    assert client.has_blob(target, layer.digest) == layer.size


def test_unchanged_push_asks_one_question_for_each_target(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    image = image_of(store, {"file": repository.encode()})
    targets = [registry.reference(f"{repository}:{tag}") for tag in ("1", "latest")]
    push(client, image, store, targets)
    mark = registry.mark()
    result = push(client, image, store, targets)
    assert [(request.method, request.status) for request in registry.asked(mark)] == [("HEAD", 200)] * 2
    assert result.blobs == ()
    assert result.unchanged == tuple(targets)


def test_new_tag_of_a_known_image_moves_no_blob(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    image = image_of(store, {"file": repository.encode()})
    push(client, image, store, [registry.reference(f"{repository}:1")])
    mark = registry.mark()
    result = push(client, image, store, [registry.reference(f"{repository}:{tag}") for tag in ("1", "2")])
    assert [request.method for request in registry.asked(mark)] == ["HEAD", "HEAD", "PUT"]
    assert result.blobs == ()


def test_second_repository_of_a_registry_gets_its_blobs_mounted(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    image = image_of(store, {"file": repository.encode()})
    targets = [registry.reference(f"{repository}/{name}:1") for name in ("one", "two")]
    result = push(client, image, store, targets)
    assert [blob.way for blob in result.blobs] == ["pushed", "pushed", "mounted", "mounted"]


def test_a_push_that_fails_is_not_visible_under_its_tag(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    target = registry.reference(f"{repository}:1")
    first = push(client, image_of(store, {"file": b"old"}), store, [target])
    image = image_of(store, {"file": b"new"}, {"gone": repository.encode()})
    store.blob_path(digests(image)[1]).unlink()
    with pytest.raises(VerifyError, match="expected blob sha256:"):
        push(client, image, store, [target])
    found = client.head_manifest(target)
    assert found
    assert found.digest == first.digest


def test_interrupted_push_is_not_visible_under_its_tag(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    target = registry.reference(f"{repository}:1")
    image = image_of(store, {"file": repository.encode() * 10_000})

    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push(client, image, store, [target], emit=interrupt)
    assert client.head_manifest(target) is None
    assert push(client, image, store, [target]).blobs


def test_damaged_blob_of_the_store_is_refused(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    image = image_of(store, {"file": repository.encode()})
    path = store.blob_path(digests(image)[0])
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(RegistryError, match="DIGEST_INVALID"):
        push(client, image, store, [registry.reference(f"{repository}:1")])


def test_target_with_the_digest_of_another_image_is_refused(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    one, other = image_of(store, {"file": b"1"}), image_of(store, {"file": b"2"})
    digest = push(client, one, store, [registry.reference(f"{repository}:1")]).digest
    with pytest.raises(RequestError, match="names another"):
        push(client, other, store, [registry.reference(repository).at(digest)])


def test_progress_grows_to_the_total(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    events: list[Event] = []
    image = image_of(store, {"file": repository.encode() * 1000}, {"other": repository.encode()})
    push(client, image, store, [registry.reference(f"{repository}:1")], emit=events.append, threads=1)
    progress = [event for event in events if isinstance(event, StepProgress)]
    done = [event.done_bytes for event in progress]
    assert done == sorted(done)
    assert progress[-1].done_bytes == progress[-1].total_bytes


@pytest.mark.tools
def test_index_of_two_platforms(client: Client, registry: RunningRegistry, store: Store, repository: str) -> None:
    images = [image_of(store, {"machine": str(p).encode()}, platform=p) for p in (AMD64, ARM64)]
    target = registry.reference(f"{repository}:1")
    result = push_index(client, images, store, [target])
    for platform in (AMD64, ARM64):
        resolved = resolve_base(client, target, platform)
        assert resolved.config.platform == platform
        assert resolved.index_digest == result.digest
    raw = json.loads(output_of(["skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{target}"]))
    assert [entry["platform"]["architecture"] for entry in raw["manifests"]] == ["amd64", "arm64"]


def test_appending_to_a_scratch_image_keeps_its_own_layers(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    image = append(image_of(store, {"one": repository.encode()}), [])
    result = push(client, image, store, [registry.reference(f"{repository}:1")], threads=8)
    assert len(result.blobs) == 2
