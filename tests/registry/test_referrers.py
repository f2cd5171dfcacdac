"""Referrers: where the registry lists them, where a tag must, and when others write at the same time."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support.images import image_of
from support.registry import RunningRegistry

from assembler.errors import RegistryError
from assembler.oci import media_types
from assembler.oci.descriptor import TITLE, Descriptor
from assembler.oci.digest import Digest, canonical_json
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.push import push
from assembler.registry.referrers import (
    Artifact,
    artifact_manifest,
    fallback_tag,
    file_artifact,
    list_referrers,
    push_referrers,
)

pytestmark = pytest.mark.registry

SPDX = "application/spdx+json"
SUBJECT = Descriptor(media_type=media_types.MANIFEST, digest=Digest.of(b"image"), size=5)


def file_of(subject: Descriptor, text: str, media_type: str = SPDX) -> Artifact:
    data = text.encode()
    return file_artifact(subject, media_type, f"{text}.json", Digest.of(data), len(data), lambda: io.BytesIO(data))


@dataclass
class Lister:
    """A registry that lists referrers by itself, one a page, as the specification has it."""

    host: str = ""
    manifests: list[dict[str, Any]] = field(default_factory=list)
    put: list[str] = field(default_factory=list)
    answer: bytes | None = None
    next_host: str = ""

    def page(self, query: str) -> tuple[dict[str, str], bytes]:
        """Headers and body of one page."""
        asked = parse_qs(query)
        wanted = asked.get("artifactType")
        chosen = [each for each in self.manifests if wanted is None or each["artifactType"] in wanted]
        number = int(asked.get("page", ["0"])[0])
        headers = {"Content-Type": media_types.INDEX}
        if number + 1 < len(chosen):
            kept = f"artifactType={wanted[0]}&" if wanted else ""
            headers["Link"] = (
                f'<{self.next_host}/v2/a/referrers/{SUBJECT.digest}?{kept}page={number + 1}>; rel="next"'
            )
        value = {"schemaVersion": 2, "mediaType": media_types.INDEX, "manifests": chosen[number : number + 1]}
        return headers, json.dumps(value).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lister: Lister

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(200, {}, b"")  # every blob is there

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        value, name = json.loads(data), self.path.rpartition("/")[2]
        self.lister.put.append(name)
        if "subject" in value:
            entry = {"mediaType": value["mediaType"], "digest": str(Digest.of(data)), "size": len(data)}
            self.lister.manifests.append({**entry, "artifactType": value["artifactType"]})
        self._answer(201, {"OCI-Subject": value.get("subject", {}).get("digest", "")}, b"")

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if "/referrers/" not in parts.path:
            self._answer(404, {}, b"{}")
        elif self.lister.answer is not None:
            self._answer(200, {}, self.lister.answer)
        else:
            self._answer(200, *self.lister.page(parts.query))

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def lister() -> Iterator[Lister]:
    lister = Lister()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"lister": lister}))
    lister.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield lister
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def image(client: Client, registry: RunningRegistry, store: Store, repository: str) -> Reference:
    """An image in a registry that does not list referrers."""
    pushed = push(client, image_of(store, {"a": repository.encode()}), store, [registry.reference(repository)])
    return pushed.references[0]


def subject_of(client: Client, image: Reference) -> Descriptor:
    found = client.head_manifest(image)
    assert found
    return found


def test_equal_artifacts_are_equal_bytes() -> None:
    layer = Descriptor(media_type=SPDX, digest=Digest.of(b"x"), size=1)
    manifest = artifact_manifest(SUBJECT, SPDX, [layer], {TITLE: "x"})
    assert json.loads(manifest.to_bytes()) == {
        "schemaVersion": 2,
        "mediaType": media_types.MANIFEST,
        "artifactType": SPDX,
        "config": {"mediaType": media_types.EMPTY, "digest": str(Digest.of(b"{}")), "size": 2},
        "layers": [layer.to_json()],
        "subject": SUBJECT.to_json(),
        "annotations": {TITLE: "x"},
    }
    assert manifest.to_bytes() == artifact_manifest(SUBJECT, SPDX, [layer], {TITLE: "x"}).to_bytes()


def test_a_registry_that_lists_is_left_to_it(client: Client, lister: Lister) -> None:
    target = Reference.parse(f"{lister.host}/a:1")
    pushed = push_referrers(client, target, [file_of(SUBJECT, "a"), file_of(SUBJECT, "b", "text/plain")])
    assert lister.put == [str(each.reference.digest) for each in pushed], "and no tag was written"
    found = list_referrers(client, target.at(SUBJECT.digest))
    assert [each.digest for each in found] == lister.put, "from two pages"
    (plain,) = list_referrers(client, target.at(SUBJECT.digest), "text/plain")
    assert plain.extra == {"artifactType": "text/plain"}


def test_a_list_that_goes_on_elsewhere_is_not_followed(client: Client, lister: Lister) -> None:
    target = Reference.parse(f"{lister.host}/a:1")
    push_referrers(client, target, [file_of(SUBJECT, "a"), file_of(SUBJECT, "b")])
    lister.next_host = "http://evil.example"
    with pytest.raises(RegistryError, match=r"another host, `http://evil\.example/v2/a/referrers"):
        list_referrers(client, target.at(SUBJECT.digest))


@pytest.mark.parametrize("answer", [b"<html>welcome</html>", b"[]", b'{"manifests": 7}', b"\xff", b"[" * 100_000])
def test_an_answer_that_is_no_list_counts_as_none(client: Client, lister: Lister, answer: bytes) -> None:
    lister.answer = answer
    assert list_referrers(client, Reference.parse(f"{lister.host}/a").at(SUBJECT.digest)) == []


def test_entries_of_others_stay_as_they_are(client: Client, image: Reference) -> None:
    subject = subject_of(client, image)
    tag = image.tagged(fallback_tag(subject.digest))
    (other,) = push_referrers(client, image, [file_of(subject, "other")])
    index = json.loads(client.get_manifest(tag).data)
    index["manifests"][0]["unknown"] = {"a": 1}
    index["annotations"] = {"made-by": "somebody"}
    client.put_manifest(tag, media_types.INDEX, json.dumps(index, indent=2).encode())
    (mine,) = push_referrers(client, image, [file_of(subject, "mine")])
    found = json.loads(client.get_manifest(tag).data)
    assert found["annotations"] == index["annotations"]
    assert found["manifests"][0] == index["manifests"][0]
    assert [each["digest"] for each in found["manifests"]] == [other.reference.digest, mine.reference.digest]


def test_entries_that_nobody_can_read_are_passed_over(client: Client, lister: Lister) -> None:
    good = {"mediaType": media_types.MANIFEST, "digest": str(Digest.of(b"g")), "size": 1}
    bad = [{**good, "digest": f"sha512:{'0' * 128}"}, {**good, "annotations": 7}, None, "text"]
    lister.answer = json.dumps({"manifests": [*bad, good]}).encode()
    found = list_referrers(client, Reference.parse(f"{lister.host}/a").at(SUBJECT.digest))
    assert [each.digest for each in found] == [good["digest"]]


def test_writers_at_the_same_time_lose_nothing(client: Client, image: Reference) -> None:
    subject = subject_of(client, image)
    artifacts = [file_of(subject, f"report-{number}") for number in range(6)]
    with ThreadPoolExecutor(len(artifacts)) as pool:
        list(pool.map(lambda artifact: push_referrers(client, image, [artifact]), artifacts))
    found = {each.digest for each in list_referrers(client, image)}
    assert found == {artifact.descriptor().digest for artifact in artifacts}


def test_who_is_always_written_over_gives_up(client: Client, image: Reference) -> None:
    subject = subject_of(client, image)
    tag = image.tagged(fallback_tag(subject.digest))
    empty = canonical_json({"schemaVersion": 2, "mediaType": media_types.INDEX, "manifests": []})
    with pytest.raises(RegistryError, match="written by others each of 12 times") as caught:
        push_referrers(
            client,
            image,
            [file_of(subject, "mine")],
            sleep=lambda _seconds: void(client.put_manifest(tag, media_types.INDEX, empty)),
        )
    assert caught.value.hint == "push again when they are done"


def void(_value: object) -> None:
    """Nothing."""


def test_a_tag_that_is_no_list_is_not_written_over(client: Client, image: Reference) -> None:
    subject = subject_of(client, image)
    tag = image.tagged(fallback_tag(subject.digest))
    data = client.get_manifest(image).data
    client.put_manifest(tag, media_types.MANIFEST, data)
    with pytest.raises(RegistryError, match="expected an index of referrers, there is a document of type"):
        push_referrers(client, image, [file_of(subject, "mine")])
    assert client.get_manifest(tag).data == data


def test_the_second_time_nothing_is_sent(client: Client, registry: RunningRegistry, image: Reference) -> None:
    artifact = file_of(subject_of(client, image), "sbom")
    (first,) = push_referrers(client, image, [artifact])
    assert first.bytes_pushed == len("sbom") + len("{}")
    mark = registry.mark()
    (second,) = push_referrers(client, image, [artifact])
    assert (second.reference, second.bytes_pushed) == (first.reference, 0)
    assert not [asked for asked in registry.asked(mark) if asked.method in ("POST", "PATCH")]
    tags = [asked for asked in registry.asked(mark) if asked.method == "PUT" and "/sha256-" in asked.path]
    assert not tags, "the list has it already"
