"""Uploads through a network that fails, to a real registry: they end in the right blob or in a clear error."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from support.faulty_proxy import (
    STAGES,
    Change,
    Cut,
    FaultyProxy,
    Garble,
    Hang,
    Reply,
    Tokens,
    always,
    faulty_proxy,
    once,
)
from support.registry import RunningRegistry

from assembler.errors import RegistryError
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.limits import check_size
from assembler.registry.receiving import Slowest
from assembler.registry.refusal import RefusedError, TransientError
from assembler.registry.retry import RetryPolicy
from assembler.registry.settings import Settings

pytestmark = pytest.mark.registry

MEBIBYTE = 1 << 20
DATA = random.Random(11).randbytes(3 * MEBIBYTE)  # noqa: S311
BLOB = Descriptor(media_type=media_types.LAYER, digest=Digest.of(DATA), size=len(DATA))
POLICY = RetryPolicy(
    attempts=4,
    sleep=lambda _seconds: None,
    connect=2,
    silence=2,
    commit=2,
    slowest=Slowest(rate=1000, seconds=0.5),
    progress=MEBIBYTE // 2,
    resume=MEBIBYTE,
    parts=(2 * MEBIBYTE, MEBIBYTE // 2),
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


class Flow:
    """A source that cannot go back, as a download is none."""

    def __init__(self) -> None:
        self._stream = io.BytesIO(DATA)

    def read(self, amount: int = -1, /) -> bytes:
        return self._stream.read(amount)

    def close(self) -> None:
        self._stream.close()


def upload(client: Client, target: Reference, source: Callable[[], io.BytesIO | Flow] | None = None) -> list[int]:
    """Upload the data; what progress was told."""
    told: list[int] = []
    client.upload(target, BLOB, source or (lambda: io.BytesIO(DATA)), told.append)
    return told


def stored(registry: RunningRegistry, client: Client, repository: str) -> bool:
    """Is it there, and is it right?"""
    there = client.has_blob(registry.reference(repository), BLOB.digest) == BLOB.size
    return there and registry.blob_path(BLOB.digest).read_bytes() == DATA


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_upload_survives_a_cut(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str, stage: str, method: str
) -> None:
    proxy.rule = once(Cut(stage), method=method)  # type: ignore[arg-type]
    upload(patient, proxy.reference(repository))
    assert stored(registry, patient, repository)


def test_an_upload_whose_answer_was_lost_is_not_sent_again(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    proxy.rule = once(Cut("sent"), method="PUT")
    upload(patient, proxy.reference(repository))
    assert proxy.asked() == ["POST", "PUT", "HEAD"]
    assert stored(registry, patient, repository)


@pytest.mark.parametrize(
    "fault",
    [
        Reply(429, {"Retry-After": "3"}),
        Reply(429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
        Reply(429, {"Retry-After": "\xb2 moons"}),
        Reply(500),
        Reply(502, {}, b"<html>Bad Gateway</html>"),
        Reply(503),
        Reply(504, {}, b""),
        Reply(500, {}, b"[" * 50_000),
        Reply(500, {}, b"x" * MEBIBYTE),
    ],
    ids=lambda fault: f"{fault.status}-{len(fault.body)}",
)
@pytest.mark.parametrize("times", [1, 3, 1000])
def test_answers_that_pass_are_waited_for_and_those_that_stay_are_told(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str, fault: Reply, times: int
) -> None:
    proxy.rule = once(fault, method="PUT", times=times)
    if times < POLICY.attempts:
        upload(patient, proxy.reference(repository))
        assert stored(registry, patient, repository)
    else:
        with pytest.raises(TransientError, match=str(fault.status)) as failed:
            upload(patient, proxy.reference(repository))
        assert failed.value.detail[0].startswith("tried ")
        assert not stored(registry, patient, repository)


@pytest.mark.parametrize("source", [None, Flow])
def test_a_broken_upload_goes_on_where_the_registry_stands(
    proxy: FaultyProxy,
    registry: RunningRegistry,
    patient: Client,
    repository: str,
    source: Callable[[], Flow] | None,
) -> None:
    proxy.resumes, proxy.rule = True, once(Cut("body", at=2 * MEBIBYTE), method="PUT")
    told = upload(patient, proxy.reference(repository), source)
    assert proxy.asked("POST", "PUT", "PATCH") == ["POST", "PUT", "PATCH", "PUT"]
    assert proxy.received == len(DATA)
    falls = [after for before, after in itertools.pairwise(told) if after < before]
    assert all(at > 2 * MEBIBYTE for at in falls)  # what was in buffers on the way
    assert stored(registry, patient, repository)


def test_progress_counts_the_tries_anew(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    proxy.resumes = True
    proxy.rule = lambda request: Cut("body", at=MEBIBYTE) if request.length else None
    client = Client(Settings(), RetryPolicy(attempts=2, sleep=lambda _seconds: None, resume=1, parts=()))
    upload(client, proxy.reference(repository))
    assert proxy.asked("PATCH", "PUT") == ["PUT", "PATCH", "PATCH", "PUT"]
    assert proxy.received == len(DATA)
    assert stored(registry, patient, repository)


def test_an_upload_that_comes_forward_by_bytes_only_ends(
    proxy: FaultyProxy, registry: RunningRegistry, repository: str
) -> None:
    proxy.resumes = True
    proxy.rule = lambda request: Cut("body", at=10) if request.length else None
    client = Client(Settings(), RetryPolicy(attempts=3, sleep=lambda _seconds: None, resume=1))
    with pytest.raises(TransientError) as failed:
        upload(client, proxy.reference(repository))
    assert failed.value.detail == ("tried 3 times",)


def test_a_registry_that_gives_up_broken_uploads_gets_everything_again(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    proxy.rule = once(Cut("body", at=2 * MEBIBYTE), method="PUT")
    upload(patient, proxy.reference(repository))
    assert proxy.asked("POST", "PUT", "GET") == ["POST", "PUT", "GET", "POST", "PUT"]
    assert stored(registry, patient, repository)


def test_a_registry_that_lies_about_what_it_has_gets_everything_again(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    """It says that it has half a mebibyte more: the digest shows it, and one upload in one piece is right."""
    wrong = f"0-{5 * MEBIBYTE // 2 - 1}"
    cut = once(Cut("body", at=2 * MEBIBYTE), method="PUT")
    lie = once(Change(lambda reply: Reply(204, {**reply.headers, "Range": wrong})), method="GET")
    quiet = once(Change(lambda reply: Reply(202, {"Location": reply.headers["Location"]}, b"")), method="PATCH")
    proxy.resumes = True
    proxy.rule = lambda request: cut(request) or lie(request) or quiet(request)
    upload(patient, proxy.reference(repository))
    assert stored(registry, patient, repository)


@pytest.mark.parametrize("source", [None, Flow])
@pytest.mark.parametrize(("largest", "most"), [(2 * MEBIBYTE, 2), (MEBIBYTE, 6)])
def test_a_proxy_that_limits_requests_gets_parts_and_is_remembered(
    proxy: FaultyProxy,
    registry: RunningRegistry,
    patient: Client,
    repository: str,
    largest: int,
    most: int,
    source: Callable[[], Flow] | None,
) -> None:
    proxy.largest = largest
    upload(patient, proxy.reference(repository), source)
    assert proxy.asked("PATCH").count("PATCH") == most + (largest < 2 * MEBIBYTE)
    assert stored(registry, patient, repository)
    proxy.seen.clear()
    upload(patient, proxy.reference(f"{repository}/second"), source)
    assert proxy.asked() == ["POST", *["PATCH"] * most, "PUT"]


def test_a_proxy_that_hangs_up_on_large_requests(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    proxy.largest, proxy.rude = MEBIBYTE, True
    upload(patient, proxy.reference(repository))
    assert stored(registry, patient, repository)


def test_who_takes_nothing_is_given_up(proxy: FaultyProxy, registry: RunningRegistry, repository: str) -> None:
    client = Client(Settings(), replace(POLICY, connect=0.3, commit=0.3))
    proxy.rule = once(Hang(1.0), method="PUT")
    upload(client, proxy.reference(repository))
    assert stored(registry, client, repository)
    proxy.rule = always(Hang(1.0), method="PUT")
    with pytest.raises(TransientError, match="timed out"):
        client.upload(proxy.reference(f"{repository}/again"), BLOB, lambda: io.BytesIO(DATA))


def test_bytes_that_are_damaged_on_the_way_are_sent_again_once(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    proxy.rule = once(Garble(), method="PUT")
    upload(patient, proxy.reference(repository))
    assert proxy.asked() == ["POST", "PUT", "POST", "PUT"]
    assert stored(registry, patient, repository)
    proxy.rule = always(Garble(), method="PUT")
    with pytest.raises(RefusedError, match="DIGEST_INVALID"):
        upload(patient, proxy.reference(f"{repository}/again"))


def test_a_limit_below_every_part_is_told(proxy: FaultyProxy, patient: Client, repository: str) -> None:
    proxy.largest = 1000
    with pytest.raises(RefusedError, match="413") as failed:
        upload(patient, proxy.reference(repository))
    assert "client_max_body_size" in (failed.value.hint or "")


@pytest.mark.parametrize(("least", "patches"), [(MEBIBYTE, 3), (10 * MEBIBYTE, 0), ("x", 6)])
def test_the_least_part_of_a_registry_counts(
    proxy: FaultyProxy,
    registry: RunningRegistry,
    patient: Client,
    repository: str,
    least: int | str,
    patches: int,
) -> None:
    def tell(reply: Reply) -> Reply:
        return Reply(reply.status, {**reply.headers, "OCI-Chunk-Min-Length": str(least)}, reply.body)

    proxy.largest = MEBIBYTE
    proxy.rule = always(Change(tell), method="POST")
    if patches == 0:
        with pytest.raises(RegistryError, match=r"no parts below 10\.0 MiB, what is before it not even 3\.0 MiB"):
            upload(patient, proxy.reference(repository))
        return
    upload(patient, proxy.reference(repository))
    assert len([seen for seen in proxy.seen if seen.method == "PATCH" and seen.length <= MEBIBYTE]) == patches
    assert stored(registry, patient, repository)


def test_an_upload_that_never_gets_through_in_one_goes_in_parts(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    """As with a gateway that ends requests which take too long."""
    proxy.rule = lambda request: Cut("body", at=MEBIBYTE) if request.length > 2 * MEBIBYTE else None
    upload(patient, proxy.reference(repository))
    assert stored(registry, patient, repository)


def test_a_login_that_ends_within_an_upload(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str
) -> None:
    proxy.tokens = Tokens(uses=2)
    upload(patient, proxy.reference(repository))
    assert proxy.tokens.logins <= 3
    assert stored(registry, patient, repository)


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_in": 0},
        {"expires_in": -60},
        {"expires_in": 10**30},
        {"expires_in": "soon"},
        {"issued_at": "1999-01-01T00:00:00Z", "expires_in": 60},
        {"issued_at": "2999-01-01T00:00:00Z", "expires_in": 60},
        {"issued_at": "yesterday"},
    ],
    ids=str,
)
def test_clocks_of_a_login_server_do_not_matter(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str, fields: dict[str, object]
) -> None:
    proxy.tokens = Tokens(fields=fields)
    upload(patient, proxy.reference(repository))
    assert proxy.tokens.logins == 1
    assert stored(registry, patient, repository)


@pytest.mark.parametrize("uses", [0, 1])
def test_tokens_that_have_expired_when_they_come_end_in_an_error(
    proxy: FaultyProxy, patient: Client, repository: str, uses: int
) -> None:
    proxy.tokens = Tokens(uses=uses)
    with pytest.raises(RegistryError) as failed:
        upload(patient, proxy.reference(repository))
    assert ("credentials" in failed.value.fact) if uses == 0 else ("clocks" in (failed.value.hint or ""))
    assert proxy.tokens.logins <= 2 + 2 * POLICY.attempts
    assert "s3cret" not in failed.value.render()


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b"[" * 100_000, b'{"token": 7}', b'{"token": "a\\nb"}', b"x" * (2 << 20), b"null"]
)
def test_garbage_from_a_login_server_is_told(
    proxy: FaultyProxy, patient: Client, repository: str, raw: bytes
) -> None:
    proxy.tokens = Tokens(raw=raw)
    with pytest.raises(RegistryError, match=r"login server|at most") as failed:
        upload(patient, proxy.reference(repository))
    assert len(failed.value.render()) < 1000


@pytest.mark.parametrize("redirect", ["location", "post", 307, 308])
def test_an_upload_that_is_sent_elsewhere_takes_no_credentials_along(
    proxy: FaultyProxy, registry: RunningRegistry, patient: Client, repository: str, redirect: int | str
) -> None:
    with faulty_proxy(registry.host) as store:
        proxy.tokens = Tokens()

        def elsewhere(reply: Reply) -> Reply:
            location = reply.headers["Location"].replace(proxy.host, store.host)
            return Reply(reply.status, {**reply.headers, "Location": location}, reply.body)

        if redirect != "location":
            method, status = ("POST", 308) if redirect == "post" else ("PUT", int(redirect))
            proxy.rule = lambda request: (
                Reply(status, {"Location": f"http://{store.host}{request.path}"})
                if request.method == method and request.authorization
                else None
            )
        else:
            proxy.rule = always(Change(elsewhere), method="POST")
        upload(patient, proxy.reference(repository))
        assert [seen.method for seen in store.seen] == (["POST", "PUT"] if redirect == "post" else ["PUT"])
        assert {seen.authorization for seen in store.seen} == {""}
        assert any(seen.authorization for seen in proxy.seen)
    assert stored(registry, patient, repository)


@pytest.mark.parametrize("location", ["", "http://", "file:///etc/passwd", "http://[", "\x00"])
def test_an_upload_to_nowhere_is_told(proxy: FaultyProxy, patient: Client, repository: str, location: str) -> None:
    proxy.rule = always(Change(lambda _reply: Reply(202, {"Location": location})), method="POST")
    with pytest.raises(RegistryError):
        upload(patient, proxy.reference(repository))


def test_a_layer_above_what_a_registry_takes_is_refused_before_it_is_sent() -> None:
    huge = Descriptor(media_type=media_types.LAYER, digest=BLOB.digest, size=12 * 10**9)
    with pytest.raises(RegistryError, match=r"at most 9\.3 GiB there, .* has 11\.2 GiB") as failed:
        check_size(Reference.parse("ghcr.io/team/image:1"), huge)
    assert "split the layer" in (failed.value.hint or "")
    for registry in ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "localhost:5000", "quay.io"):
        check_size(Reference.parse(f"{registry}/team/image:1"), huge)
