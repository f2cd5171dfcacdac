"""Blobs that are sent while they are written, to a real registry and through faults on the way."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.faulty_proxy import Cut, faulty_proxy, once
from support.front import Front, running_front
from support.images import AMD64
from support.registry import RunningRegistry

from assembler.oci.digest import Digest
from assembler.oci.image import BlobLayer, Image, append
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.pack.tarball import pack
from assembler.registry.client import Client
from assembler.registry.following import START_BYTES, Following, Uplink
from assembler.registry.push import push
from assembler.registry.retry import RetryPolicy
from assembler.tree.entry import Entry

pytestmark = pytest.mark.registry

MEBIBYTE = 1 << 20
DATA = random.Random(7).randbytes(24 * MEBIBYTE)  # noqa: S311
NO_WAIT = RetryPolicy(attempts=3, sleep=lambda _seconds: None)


@pytest.fixture
def front(registry: RunningRegistry) -> Iterator[Front]:
    """A server before the registry, which a test makes fail."""
    with running_front(registry.host) as running:
        yield running


def uplink(client: Client, target: Reference) -> Uplink:
    return Uplink(target, lambda: client, NO_WAIT)


def write(following: Following | None, path: Path, data: bytes = DATA, *, step: int = 3 * MEBIBYTE) -> Following:
    """Write a file as a packer does, with the following told of each part, but not of the end."""
    assert following is not None
    with path.open("wb", buffering=0) as file:
        following.begin(path)
        for start in range(0, len(data), step):
            file.write(data[start : start + step])
            following.grew(file.tell())
    return following


def follow(link: Uplink, path: Path, data: bytes = DATA, digest: Digest | None = None) -> Following:
    following = write(link.follow(), path, data)
    path.unlink()  # the store has renamed it
    following.finish(digest or Digest.of(data))
    assert following.wait(30)
    return following


def methods(registry: RunningRegistry, since: int, repository: str) -> list[str]:
    return [asked.method for asked in registry.asked(since) if f"/{repository}/blobs/" in asked.path]


def test_a_blob_arrives_in_one_stream(
    client: Client, registry: RunningRegistry, repository: str, tmp_path: Path
) -> None:
    mark, target = registry.mark(), registry.reference(repository)
    following = follow(uplink(client, target), tmp_path / "blob")
    assert (following.arrival, following.sent) == ("pushed", len(DATA))
    assert registry.blob_path(Digest.of(DATA)).read_bytes() == DATA
    assert [method for method in methods(registry, mark, repository) if method != "HEAD"] == [
        "POST",
        "PATCH",
        "PUT",
    ]


def test_a_small_blob_is_left_to_the_push(
    client: Client, registry: RunningRegistry, repository: str, tmp_path: Path
) -> None:
    mark = registry.mark()
    following = follow(uplink(client, registry.reference(repository)), tmp_path / "blob", DATA[: START_BYTES - 1])
    assert following.arrival is None
    assert methods(registry, mark, repository) == []


@pytest.mark.parametrize("cuts", [[5 * MEBIBYTE], [0], [5 * MEBIBYTE, 2 * MEBIBYTE], [100]])
def test_a_broken_connection_starts_over(
    front: Front, client: Client, registry: RunningRegistry, repository: str, tmp_path: Path, cuts: list[int]
) -> None:
    front.cuts = cuts.copy()
    following = follow(uplink(client, front.reference(repository)), tmp_path / "blob")
    assert following.arrival == "pushed"
    assert front.cuts == []
    assert registry.blob_path(Digest.of(DATA)).read_bytes() == DATA


def test_a_stream_that_broke_goes_on_where_the_registry_kept_its_beginning(
    client: Client, registry: RunningRegistry, repository: str, tmp_path: Path
) -> None:
    with faulty_proxy(registry.host) as proxy:
        proxy.resumes, proxy.rule = True, once(Cut("body", at=18 * MEBIBYTE), method="PATCH")
        assert follow(uplink(client, proxy.reference(repository)), tmp_path / "blob").arrival == "pushed"
        assert proxy.asked("POST", "GET", "PATCH") == ["POST", "PATCH", "GET", "PATCH"]
        assert proxy.received == len(DATA)
    assert registry.blob_path(Digest.of(DATA)).read_bytes() == DATA


def test_a_lasting_fault_is_left_to_the_push(
    front: Front, client: Client, repository: str, tmp_path: Path
) -> None:
    front.fail = lambda method, _path: (503, {}) if method == "PATCH" else None
    link = uplink(client, front.reference(repository))
    assert follow(link, tmp_path / "blob").arrival is None
    assert link.follow() is not None


def test_a_registry_that_takes_no_streams_is_not_asked_twice(
    front: Front, client: Client, repository: str, tmp_path: Path
) -> None:
    front.fail = lambda method, _path: (405, {}) if method == "PATCH" else None
    link = uplink(client, front.reference(repository))
    following = follow(link, tmp_path / "blob")
    assert (following.arrival, following.refused) == (None, True)
    assert link.follow() is None


def test_bytes_of_another_digest_never_arrive(
    client: Client, registry: RunningRegistry, repository: str, tmp_path: Path
) -> None:
    target, wrong = registry.reference(repository), Digest.of(b"something else")
    following = follow(uplink(client, target), tmp_path / "blob", digest=wrong)
    assert following.arrival is None
    assert client.has_blob(target, wrong) is None
    assert client.has_blob(target, Digest.of(DATA)) is None


def test_what_is_there_already_is_not_sent_again(
    client: Client, registry: RunningRegistry, repository: str, tmp_path: Path
) -> None:
    """Another node brought the same blob while we packed it and the network was slow."""
    target, may_send = registry.reference(repository), threading.Event()
    assert follow(uplink(client, target), tmp_path / "first").arrival == "pushed"

    def slow() -> Client:
        may_send.wait()
        return client

    mark = registry.mark()
    following = write(Uplink(target, slow, NO_WAIT).follow(), tmp_path / "blob")
    following.finish(Digest.of(DATA))
    may_send.set()
    assert following.wait(30)
    assert following.arrival == "present"
    assert "PUT" not in methods(registry, mark, repository)


def test_an_abandoned_blob_is_cancelled(
    client: Client, registry: RunningRegistry, repository: str, tmp_path: Path
) -> None:
    mark, target = registry.mark(), registry.reference(repository)
    link = uplink(client, target)
    following = write(link.follow(), tmp_path / "blob")
    link.close()
    assert following.wait(30)
    assert following.arrival is None
    asked = methods(registry, mark, repository)
    assert "PUT" not in asked
    assert asked.count("DELETE") == asked.count("POST")


def test_refused_credentials_are_no_error_here(
    login_registry: RunningRegistry, client: Client, repository: str, tmp_path: Path
) -> None:
    following = follow(uplink(client, login_registry.reference(repository)), tmp_path / "blob")
    assert following.arrival is None


# Together with the packing and the push


def packed(store: Store, follower: Following | None, names: str = "a") -> Image:
    """An image of one layer for each name, followed."""
    layers: list[BlobLayer] = []
    for name in names:
        entries = [Entry(path=name, kind="file", size=len(DATA), content=DATA)]
        result = pack(entries, store, follower=follower)
        if follower:
            follower.finish(result.layer.descriptor.digest)
        layers.append(result.layer)
    return append(Image.scratch(AMD64), layers)


def test_a_push_sends_no_blob_that_is_on_its_way(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    mark, target = registry.mark(), registry.reference(f"{repository}:1")
    link = uplink(client, target)
    image = packed(store, link.follow())
    result = push(client, image, store, [target, registry.reference(f"{repository}/second:1")], uplink=link)
    ways = {(blob.repository.rpartition("/")[2], blob.way) for blob in result.blobs if blob.size > MEBIBYTE}
    assert {way for _, way in ways} == {"pushed", "mounted"}
    asked = methods(registry, mark, repository)
    assert asked.count("PATCH") == 1
    assert asked.count("PUT") == 2  # the end of the stream, and the config
    assert result.bytes_pushed > len(DATA)


@pytest.mark.parametrize(
    "fail",
    [
        lambda method, _path: (405, {}) if method == "PATCH" else None,
        lambda method, _path: (0, {}) if method == "PATCH" else None,
    ],
)
def test_a_push_sends_what_could_not_be_followed(
    front: Front,
    client: Client,
    registry: RunningRegistry,
    store: Store,
    repository: str,
    fail: Callable[[str, str], tuple[int, dict[str, str]] | None],
) -> None:
    front.fail = fail
    target = front.reference(f"{repository}:1")
    link = uplink(client, target)
    image = packed(store, link.follow())
    result = push(client, image, store, [target], uplink=link)
    assert result.bytes_pushed > len(DATA)
    layer = image.layers[0].descriptor
    assert registry.blob_path(layer.digest).stat().st_size == layer.size
    assert client.head_manifest(registry.reference(f"{repository}:1")) is not None


def test_nothing_is_visible_before_the_push(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    target = registry.reference(f"{repository}:1")
    link = uplink(client, target)
    following = link.follow()
    packed(store, following)
    assert following is not None
    assert following.wait(30)
    assert following.arrival == "pushed"
    assert client.head_manifest(target) is None


def test_no_descriptor_stays_open(
    client: Client, registry: RunningRegistry, repository: str, tmp_path: Path
) -> None:
    link = uplink(client, registry.reference(repository))
    for size in (len(DATA), 10):
        follow(link, tmp_path / "blob", DATA[:size])
    opened = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            opened.append(str(descriptor.readlink()))
    assert [path for path in opened if path.startswith(str(tmp_path))] == []
