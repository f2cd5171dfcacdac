"""The client against real registries: what it reads, what it refuses, what it retries, how it logs in."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.front import BASIC, IDENTITY_TOKEN, Front, running_front
from support.images import image_of
from support.registry import RunningRegistry, free_port, running_registry

from assembler.errors import RegistryError, VerifyError
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.push import push
from assembler.registry.refusal import RefusedError, TransientError
from assembler.registry.retry import RetryPolicy
from assembler.registry.settings import Settings

pytestmark = pytest.mark.registry

Login = Callable[..., Client]


def _blob(data: bytes) -> Descriptor:
    return Descriptor(media_type=media_types.LAYER, digest=Digest.of(data), size=len(data))


@pytest.fixture
def front(registry: RunningRegistry) -> Iterator[Front]:
    """A server before the registry, which a test makes fail or want a login."""
    with running_front(registry.host) as running:
        yield running


@pytest.fixture
def login(tmp_path: Path) -> Login:
    """A client whose `auth.json` has this entry for a host."""

    def make(host: str, **entry: str) -> Client:
        path = tmp_path / "auth.json"
        path.write_text(json.dumps({"auths": {host: entry}}))
        return Client(Settings(credential_files=(path,)), RetryPolicy(attempts=3, sleep=lambda _seconds: None))

    return make


def test_upload_and_download(client: Client, registry: RunningRegistry, repository: str) -> None:
    data = repository.encode() * 100_000  # above the size that is sent in one piece
    blob, target = _blob(data), registry.reference(repository)
    assert client.has_blob(target, blob.digest) is None
    done: list[int] = []
    client.upload(target, blob, lambda: io.BytesIO(data), done.append)
    assert client.has_blob(target, blob.digest) == len(data)
    assert done[-1] == len(data)
    with client.open_blob(target, blob) as stream:
        received = b"".join(iter(lambda: stream.read(1 << 16), b""))
    assert received == data


def test_empty_blob(client: Client, registry: RunningRegistry, repository: str) -> None:
    target, blob = registry.reference(repository), _blob(b"")
    client.upload(target, blob, lambda: io.BytesIO(b""))
    assert client.get_blob(target, blob) == b""


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_upload_of_other_bytes_than_promised_is_refused(
    client: Client, registry: RunningRegistry, repository: str, size: int
) -> None:
    wanted, target = _blob(b"a" * size), registry.reference(repository)
    with pytest.raises(RefusedError, match="DIGEST_INVALID") as refused:
        client.upload(target, wanted, lambda: io.BytesIO(b"b" * size))
    assert refused.value.status == 400
    assert "?" not in str(refused.value)  # upload sessions are signed in the query
    assert client.has_blob(target, wanted.digest) is None


def test_damaged_download_is_refused(client: Client, registry: RunningRegistry, repository: str) -> None:
    data = repository.encode() * 100
    blob, target = _blob(data), registry.reference(repository)
    client.upload(target, blob, lambda: io.BytesIO(data))
    registry.blob_path(blob.digest).write_bytes(b"x" + data[1:])
    with client.open_blob(target, blob) as stream, pytest.raises(VerifyError, match="the bytes give"):
        while stream.read(1 << 16):
            pass


def test_missing_image_says_so(client: Client, registry: RunningRegistry, store: Store, repository: str) -> None:
    reference = registry.reference(f"{repository}:1")
    assert client.head_manifest(reference) is None
    with pytest.raises(RefusedError, match="404 MANIFEST_UNKNOWN") as refused:
        client.get_manifest(reference)
    assert refused.value.hint == "there is no such image or blob: look at its name, tag and digest"
    assert refused.value.place == str(reference)


def test_manifest_that_is_not_its_digest_is_refused(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    target = registry.reference(f"{repository}:1")
    digest = push(client, image_of(store, {"file": repository.encode()}), store, [target]).digest
    path = registry.blob_path(digest)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RegistryError):
        client.get_manifest(target.at(digest))


def test_where_nobody_listens_nobody_is_waited_for() -> None:
    client = Client(Settings(), RetryPolicy(sleep=lambda _seconds: pytest.fail("it waited")))
    with pytest.raises(RegistryError, match="connection refused") as failed:
        client.head_manifest(Reference.parse(f"127.0.0.1:{free_port()}/x:1"))
    assert failed.value.hint == "nothing listens there: is it running, and is the port right?"


def test_a_registry_that_went_away_is_waited_for(client: Client, tmp_path: Path, repository: str) -> None:
    """It may be starting again: what has answered once is tried again."""
    with running_registry(tmp_path / "registry") as registry:
        reference = registry.reference(repository)
        assert client.head_manifest(reference.tagged("1")) is None
    with pytest.raises(TransientError, match="refused") as failed:
        client.head_manifest(reference.tagged("1"))
    assert failed.value.detail == ("tried 3 times",)


@pytest.mark.parametrize("status", [0, 429, 503])
def test_passing_failures_are_tried_again(front: Front, repository: str, status: int) -> None:
    waits: list[float] = []
    client = Client(Settings(), RetryPolicy(attempts=3, sleep=waits.append))
    data = repository.encode() * 10_000
    failures = iter([(status, {"Retry-After": "7"})])
    front.fail = lambda method, _path: next(failures, None) if method == "PUT" else None
    target = front.reference(repository)
    client.upload(target, _blob(data), lambda: io.BytesIO(data))
    # What fits into the buffers of a broken connection counts as sent, and is asked for first.
    asked = [method for method, _, _ in front.seen if method != "HEAD"]
    assert asked == ["POST", "PUT", "POST", "PUT"]
    assert waits == [7.0] if status else len(waits) == 1
    assert client.has_blob(target, Digest.of(data)) == len(data)


def test_lasting_failure_ends(front: Front, client: Client, repository: str) -> None:
    front.fail = lambda _method, _path: (503, {})
    with pytest.raises(TransientError, match="503 FAILED: on purpose"):
        client.get_manifest(front.reference(repository))
    assert len(front.seen) == 3


def test_forbidden_is_not_tried_again(front: Front, client: Client, repository: str) -> None:
    front.fail = lambda _method, _path: (403, {})
    with pytest.raises(RefusedError, match="403") as refused:
        client.check_push(front.reference(repository))
    assert len(front.seen) == 1
    assert "the account may not do this" in (refused.value.hint or "")


def test_basic_login(login_registry: RunningRegistry, login: Login, store: Store, repository: str) -> None:
    client = login(login_registry.host, auth=BASIC)
    target = login_registry.reference(f"{repository}:1")
    client.check_push(target)
    assert push(client, image_of(store, {"file": repository.encode()}), store, [target]).blobs
    assert client.head_manifest(target)


def test_no_login(login_registry: RunningRegistry, client: Client, repository: str) -> None:
    with pytest.raises(RefusedError, match="wants a login") as refused:
        client.check_push(login_registry.reference(repository))
    assert f"podman login {login_registry.host}" in (refused.value.hint or "")


def test_bad_password(login_registry: RunningRegistry, login: Login, repository: str) -> None:
    wrong = base64.b64encode(b"robot:not this one").decode()
    client = login(login_registry.host, auth=wrong)
    with pytest.raises(RefusedError, match="does not accept the credentials") as refused:
        client.check_push(login_registry.reference(repository))
    assert wrong not in refused.value.render()
    assert "not this one" not in refused.value.render()


def test_token_is_asked_once_for_each_scope(front: Front, login: Login, store: Store, repository: str) -> None:
    front.login = True
    client = login(front.host, auth=BASIC)
    target = front.reference(f"{repository}:1")
    push(client, image_of(store, {"a": b"a"}, {"b": b"b"}, {"c": repository.encode()}), store, [target])
    name = target.repository
    assert sorted(front.logins) == [[f"repository:{name}:pull"], [f"repository:{name}:pull,push"]]


def test_mount_asks_for_both_repositories(front: Front, login: Login, store: Store, repository: str) -> None:
    front.login = True
    client = login(front.host, auth=BASIC)
    image = image_of(store, {"file": repository.encode()})
    first, second = (front.reference(f"{repository}/{name}:1") for name in ("one", "two"))
    result = push(client, image, store, [first, second])
    assert [blob.way for blob in result.blobs if blob.repository == second.name] == ["mounted"] * 2
    assert [f"repository:{second.repository}:pull,push", f"repository:{first.repository}:pull"] in front.logins


def test_identity_token(front: Front, login: Login, repository: str) -> None:
    front.login = True
    login(front.host, auth=base64.b64encode(b"robot:").decode(), identitytoken=IDENTITY_TOKEN).check_push(
        front.reference(repository)
    )
    with pytest.raises(RefusedError, match="does not accept"):
        login(front.host, identitytoken="revoked").check_push(front.reference(repository))


def test_anonymous_token(front: Front, client: Client, repository: str) -> None:
    front.login = True
    assert client.head_manifest(front.reference(f"{repository}:1")) is None
    assert len(front.logins) == 1


def test_expired_token_is_renewed_and_the_body_starts_over(front: Front, login: Login, repository: str) -> None:
    front.login, front.uses = True, 1  # tokens are good for one request, until the upload has begun

    def later_tokens_live_long(method: str, _path: str) -> None:
        if method == "PUT":
            front.uses = None

    front.fail = later_tokens_live_long
    data = repository.encode() * 10_000
    client = login(front.host, auth=BASIC)
    client.upload(front.reference(repository), _blob(data), lambda: io.BytesIO(data))
    assert client.has_blob(front.reference(repository), Digest.of(data)) == len(data)
    methods = [method for method, _, _ in front.seen]
    assert methods[:5] == ["POST", "POST", "PUT", "POST", "PUT"]


def test_credentials_stay_with_the_registry(front: Front, login: Login, repository: str) -> None:
    with running_front(front.upstream) as elsewhere:
        blob = _blob(b"data")
        location = f"http://{elsewhere.host}/v2/blob"
        front.login = True
        front.fail = lambda _method, path: (307, {"Location": location}) if "/blobs/" in path else None
        client = login(front.host, auth=BASIC)
        with pytest.raises(RegistryError):
            client.get_blob(front.reference(repository), blob)
        assert [authorization for _, _, authorization in elsewhere.seen] == [""]
