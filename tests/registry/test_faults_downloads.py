"""Downloads through a network that fails, from a real registry: the right bytes come, or a clear error."""

from __future__ import annotations

import io
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.faulty_proxy import (
    STAGES,
    Change,
    Cut,
    FaultyProxy,
    Reply,
    Tokens,
    always,
    faulty_proxy,
    once,
)
from support.registry import RunningRegistry

from assembler.errors import AssembleError, RegistryError, VerifyError
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.receiving import Slowest
from assembler.registry.refusal import RefusedError, TransientError
from assembler.registry.retry import RetryPolicy
from assembler.registry.settings import Settings, read_settings

pytestmark = pytest.mark.registry

MEBIBYTE = 1 << 20
DATA = random.Random(13).randbytes(2 * MEBIBYTE)  # noqa: S311
BLOB = Descriptor(media_type=media_types.LAYER, digest=Digest.of(DATA), size=len(DATA))
POLICY = RetryPolicy(
    attempts=4,
    sleep=lambda _seconds: None,
    connect=2,
    silence=1,
    slowest=Slowest(rate=1000, seconds=0.3),
    progress=MEBIBYTE // 4,
)


@pytest.fixture
def proxy(registry: RunningRegistry) -> Iterator[FaultyProxy]:
    with faulty_proxy(registry.host) as running:
        yield running


@pytest.fixture
def patient() -> Iterator[Client]:
    client = Client(Settings(), POLICY)
    yield client
    client.close()


@pytest.fixture
def source(proxy: FaultyProxy, registry: RunningRegistry, client: Client, repository: str) -> Reference:
    """The data in the registry, seen through the proxy."""
    client.upload(registry.reference(repository), BLOB, lambda: io.BytesIO(DATA))
    return proxy.reference(repository)


def read(client: Client, source: Reference, amount: int = 100_000) -> bytes:
    with client.open_blob(source, BLOB) as stream:
        return b"".join(iter(lambda: stream.read(amount), b""))


@pytest.mark.parametrize("amount", [-1, 1000, 4 * MEBIBYTE])
@pytest.mark.parametrize("stage", STAGES)
def test_a_download_survives_a_cut(
    proxy: FaultyProxy, patient: Client, source: Reference, stage: str, amount: int
) -> None:
    proxy.rule = once(Cut(stage), method="GET")  # type: ignore[arg-type]
    assert read(patient, source, amount) == DATA
    assert len(proxy.seen) == 2


def test_a_download_goes_on_from_where_it_broke(proxy: FaultyProxy, patient: Client, source: Reference) -> None:
    sizes = (MEBIBYTE, 1000, MEBIBYTE // 2, 0)
    cuts = [once(Cut("answer", at=size, reset=False), method="GET") for size in sizes]
    proxy.rule = lambda request: next((fault for rule in cuts if (fault := rule(request))), None)
    assert read(patient, source) == DATA
    begun = [sum(sizes[:count]) for count in range(1, 5)]
    assert [request.range for request in proxy.seen] == ["", *(f"bytes={start}-" for start in begun)]


def test_progress_counts_the_tries_anew_and_is_bounded(
    proxy: FaultyProxy, patient: Client, source: Reference
) -> None:
    proxy.rule = always(Cut("answer", at=MEBIBYTE // 3, reset=False))
    impatient = replace(POLICY, attempts=3)
    assert read(Client(Settings(), impatient), source) == DATA
    assert len(proxy.seen) > impatient.attempts
    with pytest.raises(RegistryError, match="the download broke off") as failed:
        read(Client(Settings(), replace(impatient, in_all=4)), source)
    assert failed.value.detail == ("tried 4 times",)
    proxy.rule = lambda _request: Cut("answer", at=10, reset=False)
    with pytest.raises(RegistryError, match="the download broke off") as failed:
        read(patient, source)
    assert failed.value.detail == ("tried 4 times",)


@pytest.mark.parametrize("times", [1, 1000])
@pytest.mark.parametrize("drip", [0.05, 5.0])
def test_a_connection_that_stalls_is_given_up(
    proxy: FaultyProxy, patient: Client, source: Reference, drip: float, times: int
) -> None:
    """A byte now and then is no transfer, and neither is silence."""
    proxy.rule = once(Change(lambda reply: replace(reply, drip=drip)), method="GET", times=times)
    if times == 1:
        assert read(patient, source) == DATA
        assert len(proxy.seen) == 2
        return
    with pytest.raises(RegistryError, match=r"only \d+ bytes came|timed out|timeout"):
        read(patient, source)


@pytest.mark.parametrize("part", ["/blobs/", "/manifests/"])
def test_a_document_that_stalls_is_given_up(
    proxy: FaultyProxy, patient: Client, source: Reference, part: str
) -> None:
    proxy.rule = always(Reply(200, {}, b"{" * 1000, drip=0.05), part=part)
    with pytest.raises(RegistryError, match=r"only \d+ bytes came"):
        if part == "/blobs/":
            patient.get_blob(source, replace(BLOB, size=1000))
        else:
            patient.get_manifest(source.tagged("1"))


def test_a_slow_reader_is_no_slow_network(proxy: FaultyProxy, source: Reference) -> None:
    client = Client(Settings(), replace(POLICY, slowest=Slowest(rate=1e9, seconds=0.2)))
    pause = threading.Event()
    with client.open_blob(source, BLOB) as stream:
        parts = [stream.read(MEBIBYTE)]
        pause.wait(0.5)
        parts.append(stream.read())
    assert b"".join(parts) == DATA
    assert len(proxy.seen) == 1


def test_a_registry_without_ranges_starts_over_and_we_skip(
    proxy: FaultyProxy, patient: Client, source: Reference
) -> None:
    cut = once(Cut("answer", at=MEBIBYTE), method="GET")
    whole = Reply(200, {}, DATA)
    proxy.rule = lambda request: cut(request) or (whole if request.range else None)
    assert read(patient, source) == DATA
    assert len(proxy.seen) == 2


@pytest.mark.parametrize(
    "header", ["", "bytes 0-9/10", "bytes 1-2097151/2097152", "bytes */2097152", "lines 1-2/3", "bytes 9" * 500]
)
def test_a_part_that_was_not_asked_for_is_refused(
    proxy: FaultyProxy, patient: Client, source: Reference, header: str
) -> None:
    cut = once(Cut("answer", at=MEBIBYTE), method="GET")
    wrong = Reply(206, {"Content-Range": header}, DATA[: MEBIBYTE // 2])
    proxy.rule = lambda request: cut(request) or (wrong if request.range else None)
    with pytest.raises(RegistryError, match="the registry sent"):
        read(patient, source)


def _flip(reply: Reply) -> Reply:
    return replace(reply, body=bytes([reply.body[0] ^ 1]) + reply.body[1:])


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (_flip, "the bytes give sha256:"),
        (lambda reply: replace(reply, body=reply.body[:-1], length=len(DATA)), None),
        (lambda reply: replace(reply, length=len(DATA) + 1), "announces 2097153"),
        (lambda reply: replace(reply, length=len(DATA) - 1), "announces 2097151"),
        (lambda reply: replace(reply, body=reply.body + b"x"), "announces 2097153"),
        (lambda reply: replace(reply, body=b"<html>log in</html>"), "announces 19"),
        (lambda reply: replace(reply, headers={"Content-Encoding": "gzip"}), None),
    ],
    ids=["wrong", "truncated", "longer", "shorter", "more", "page", "encoding"],
)
def test_what_comes_is_the_blob_or_an_error(
    proxy: FaultyProxy,
    patient: Client,
    source: Reference,
    edit: Callable[[Reply], Reply],
    fact: str | None,
) -> None:
    proxy.rule = once(Change(edit), method="GET")
    if fact is None:
        assert read(patient, source) == DATA
        return
    with pytest.raises(VerifyError, match=fact):
        read(patient, source)


def test_a_blob_that_is_shorter_in_the_registry_is_told(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    data = repository.encode() * 10
    blob = Descriptor(media_type=media_types.LAYER, digest=Digest.of(data), size=len(data))
    patient.upload(registry.reference(repository), blob, lambda: io.BytesIO(data))
    registry.blob_path(blob.digest).write_bytes(data[:-5])
    with pytest.raises(VerifyError, match="expected"):
        patient.get_blob(registry.reference(repository), blob)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_a_store_takes_no_credentials_along(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, source: Reference, status: int
) -> None:
    """And when the store breaks off, the registry is asked for a new address, because the old one expires."""
    with faulty_proxy(registry.host) as store:
        proxy.tokens = Tokens()
        store.rule = once(Cut("answer"), method="GET")
        proxy.rule = lambda request: (
            Reply(status, {"Location": f"http://{store.host}{request.path}"}, b"x" * MEBIBYTE)
            if request.authorization
            else None
        )
        assert read(patient, source) == DATA
        assert [seen.authorization for seen in store.seen] == ["", ""]
        assert [bool(seen.authorization) for seen in proxy.seen] == [False, True, True]
        assert store.seen[1].range.startswith("bytes=")


def test_redirects_in_circles_end(proxy: FaultyProxy, patient: Client, source: Reference) -> None:
    proxy.rule = lambda request: Reply(307, {"Location": request.path})
    with pytest.raises(RegistryError, match="more than 10 redirects"):
        read(patient, source)
    assert len(proxy.seen) == 10


@pytest.mark.parametrize("location", ["http://[", "ftp://127.0.0.1/x", "file:///etc/passwd", "//", "http://"])
def test_a_redirect_to_nowhere_is_told(
    proxy: FaultyProxy, patient: Client, source: Reference, location: str
) -> None:
    proxy.rule = always(Reply(307, {"Location": location}))
    with pytest.raises(RegistryError):
        read(patient, source)
    assert len(proxy.seen) <= 10


def test_a_mirror_that_dies_on_the_way_leaves_the_rest_to_the_registry(
    proxy: FaultyProxy, registry: RunningRegistry, source: Reference, tmp_path: Path
) -> None:
    conf = tmp_path / ".config/containers/registries.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(
        f'[[registry]]\nprefix = "example.test"\nlocation = "{registry.host}"\ninsecure = true\n'
        f'[[registry.mirror]]\nlocation = "{proxy.host}"\ninsecure = true\n'
    )
    settings = read_settings({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}, etc=tmp_path / "etc")
    first = once(Cut("answer", at=MEBIBYTE, reset=False), method="GET")
    proxy.rule = lambda request: first(request) or Reply(503)
    mark = registry.mark()
    assert read(Client(settings, POLICY), Reference.parse(f"example.test/{source.repository}")) == DATA
    answered = [one.status for one in registry.asked(mark) if one.method == "GET" and "/blobs/" in one.path]
    assert answered == [200, 206]  # through the mirror, and without it


def test_an_expired_login_is_renewed_on_the_way(proxy: FaultyProxy, patient: Client, source: Reference) -> None:
    proxy.tokens = Tokens(uses=1)
    proxy.rule = once(Cut("answer", at=MEBIBYTE), method="GET", part="/blobs/", times=3)
    assert read(patient, source) == DATA
    assert proxy.tokens.logins <= 4


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {}, b"x" * (5 << 20)),
        Reply(200, {"Content-Encoding": "gzip"}, b"no gzip at all"),
        Reply(200, {f"X-{number}": "x" for number in range(200)}, b"{}"),
        Reply(200, {"X-Long": "x" * 100_000}, b"{}"),
        Reply(200, {}, b"{", length=100),
        Reply(200, {"Transfer-Encoding": "chunked"}, b"zz\r\n"),
        Reply(400, {}, b"[" * 60_000),
        Reply(418, {}, b"\xff\xfe\x00"),
    ],
    ids=["body", "gzip", "headers", "header", "short", "chunks", "nested", "bytes"],
)
def test_answers_that_are_none_end_in_an_error(
    proxy: FaultyProxy, patient: Client, repository: str, reply: Reply
) -> None:
    proxy.rule = always(reply, part="/manifests/")
    with pytest.raises(AssembleError) as failed:
        patient.get_manifest(proxy.reference(f"{repository}:1"))
    assert len(failed.value.render()) < 1000
    assert len(proxy.seen) <= POLICY.attempts


def test_a_manifest_that_breaks_off_is_asked_for_again(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    data = b'{"schemaVersion": 2, "manifests": []}'
    patient.put_manifest(registry.reference(f"{repository}:1"), media_types.INDEX, data)
    proxy.rule = once(Cut("answer"), method="GET")
    assert patient.get_manifest(proxy.reference(f"{repository}:1")).data == data


def test_a_blob_that_is_not_there_is_told_at_once(proxy: FaultyProxy, patient: Client, repository: str) -> None:
    with pytest.raises(RefusedError, match="404"):
        read(patient, proxy.reference(repository))
    assert len(proxy.seen) == 1


def test_who_listens_and_never_answers_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reference = Reference.parse(f"127.0.0.1:{silent.getsockname()[1]}/x:1")
        # An insecure registry is asked first whether it speaks TLS.
        client = Client(Settings(), replace(POLICY, attempts=2, silence=0.2))

        def refuse_tls() -> None:
            silent.accept()[0].close()

        closing = threading.Thread(target=refuse_tls)
        closing.start()
        with pytest.raises(TransientError, match="timed out"):
            client.head_manifest(reference)
        closing.join()
