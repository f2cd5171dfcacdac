"""certs.d: authorities of one registry, and client certificates; with registries that speak TLS, and skopeo."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.images import image_of
from support.registry import ELSEWHERE, RunningRegistry, Tls, output_of, running_registry
from support.tls import Authority

from assembler.errors import NodeError, RegistryError
from assembler.oci.digest import Digest
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry.certificates import Certificates, read_certificates
from assembler.registry.client import Client
from assembler.registry.peek import peek_digest
from assembler.registry.push import push
from assembler.registry.retry import RetryPolicy
from assembler.registry.settings import read_settings

pytestmark = pytest.mark.registry

New = Callable[..., Client]


@dataclass(frozen=True)
class Trust:
    """Two authorities that the system does not know, and registries that they vouch for."""

    servers: Authority
    clients: Authority
    open: RunningRegistry
    closed: RunningRegistry


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trust]:
    """A registry for everybody, and one for those who show a certificate."""
    root = tmp_path_factory.mktemp("tls")
    servers, clients = Authority.create(root / "servers"), Authority.create(root / "clients")
    server = servers.issue("registry", ELSEWHERE, "127.0.0.1")
    with (
        running_registry(root / "open", tls=Tls(server.certificate, server.key)) as everybody,
        running_registry(root / "closed", tls=Tls(server.certificate, server.key, clients.certificate)) as closed,
    ):
        yield Trust(servers, clients, everybody, closed)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any configuration; no proxy, and nobody's own list of authorities."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def new(home: Path) -> New:
    """A client of this user, with more lines in registries.conf."""

    def make(conf: str = "") -> Client:
        (home / ".config/containers").mkdir(parents=True, exist_ok=True)
        (home / ".config/containers/registries.conf").write_text(conf)
        settings = read_settings({"HOME": str(home)}, etc=home / "etc")
        return Client(settings, RetryPolicy(attempts=2, sleep=lambda _seconds: None))

    return make


def _certs(root: Path, registry: RunningRegistry, **files: Path) -> Path:
    """`certs.d` for a registry; `ca__crt=…` is the file ca.crt."""
    directory = root / registry.host
    directory.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        shutil.copy(path, directory / name.replace("__", "."))
    return directory


def _skopeo(home: Path, reference: Reference) -> Digest | None:
    environment = {"HOME": str(home), "XDG_CONFIG_HOME": ""}
    try:
        raw = output_of(["skopeo", "inspect", "--raw", f"docker://{reference}"], environment)
    except AssertionError:
        return None
    return Digest.of(raw.encode())


@pytest.mark.tools
@pytest.mark.parametrize("where", [".config/containers/certs.d", "etc/containers/certs.d", "etc/docker/certs.d"])
def test_an_authority_in_certs_d_vouches_for_its_registry(
    home: Path, new: New, trust: Trust, store: Store, repository: str, where: str
) -> None:
    reference = trust.open.reference(f"{repository}:1")
    with pytest.raises(RegistryError, match="certificate verify failed") as failed:
        new().check_push(reference)
    assert f"certs.d/{trust.open.host}/ca.crt" in (failed.value.hint or "")
    assert _skopeo(home, reference) is None
    _certs(home / where, trust.open, ca__crt=trust.servers.certificate)
    digest = push(new(), image_of(store, {"file": repository.encode()}), store, [reference]).digest
    assert new().get_manifest(reference).digest == digest
    if where.startswith(".config"):  # skopeo looks for the others where the system has them
        assert _skopeo(home, reference) == digest


def test_the_systems_authorities_still_count(
    home: Path, new: New, trust: Trust, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _certs(home / ".config/containers/certs.d", trust.open, other__crt=trust.clients.certificate)
    reference = trust.open.reference(f"{repository}:1")
    with pytest.raises(RegistryError, match="certificate verify failed"):
        new().head_manifest(reference)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(trust.servers.certificate))
    assert new().head_manifest(reference) is None


@pytest.mark.tools
def test_a_client_certificate_is_shown_to_a_registry_that_wants_one(
    home: Path, new: New, trust: Trust, store: Store, repository: str
) -> None:
    reference = trust.closed.reference(f"{repository}:1")
    certs = home / ".config/containers/certs.d"
    _certs(certs, trust.closed, ca__crt=trust.servers.certificate)
    with pytest.raises(RegistryError) as failed:
        new().check_push(reference)
    assert "NAME.cert and NAME.key" in (failed.value.hint or "")
    assert _skopeo(home, reference) is None
    mine = trust.clients.issue("me")
    _certs(certs, trust.closed, me__cert=mine.certificate, me__key=mine.key)
    digest = push(new(), image_of(store, {"file": repository.encode()}), store, [reference]).digest
    assert _skopeo(home, reference) == digest


def test_an_insecure_registry_may_want_a_client_certificate(
    home: Path, new: New, trust: Trust, repository: str
) -> None:
    mine = trust.clients.issue("insecure")
    _certs(home / "etc/docker/certs.d", trust.closed, me__cert=mine.certificate, me__key=mine.key)
    conf = f'[[registry]]\nlocation = "{trust.closed.host}"\ninsecure = true\n'
    assert new(conf).head_manifest(trust.closed.reference(f"{repository}:1")) is None


def test_a_mirror_has_its_certificates_by_its_own_name(
    home: Path, new: New, trust: Trust, store: Store, repository: str
) -> None:
    mine = trust.clients.issue("mirror")
    _certs(
        home / ".config/containers/certs.d",
        trust.closed,
        ca__crt=trust.servers.certificate,
        me__cert=mine.certificate,
        me__key=mine.key,
    )
    there = trust.closed.reference(f"{repository}/app:1")
    digest = push(new(), image_of(store, {"file": repository.encode()}), store, [there]).digest
    client = new(
        '[[registry]]\nlocation = "example.test"\n'
        f'[[registry.mirror]]\nlocation = "{trust.closed.host}/{repository}"\n'
    )
    assert client.get_manifest(Reference.parse("example.test/app:1")).digest == digest


@pytest.mark.parametrize("name", ["me.cert", "me.key"])
def test_half_a_pair_names_the_file(home: Path, new: New, trust: Trust, name: str) -> None:
    directory = _certs(home / ".config/containers/certs.d", trust.open)
    (directory / name).write_text("")
    with pytest.raises(NodeError, match=f"`{name}` is .*there is no `me") as failed:
        new().head_manifest(trust.open.reference("x:1"))
    assert failed.value.place == str(directory / name)


def test_what_is_no_certificate_names_the_file(home: Path, new: New, trust: Trust) -> None:
    directory = _certs(home / ".config/containers/certs.d", trust.open)
    (directory / "ca.crt").write_text("none")
    with pytest.raises(NodeError, match=r"ca\.crt: expected certificates in PEM form"):
        new().head_manifest(trust.open.reference("x:1"))
    (directory / "ca.crt").unlink()
    mine, other = trust.clients.issue("mine"), trust.clients.issue("other")
    _certs(home / ".config/containers/certs.d", trust.open, a__cert=mine.certificate, a__key=other.key)
    with pytest.raises(NodeError, match=r"a\.cert: expected a certificate and, in `a\.key`, its key"):
        new().head_manifest(trust.open.reference("x:1"))


def test_a_key_with_a_password_is_an_error_and_no_question(home: Path, new: New, trust: Trust) -> None:
    mine = trust.clients.issue("locked")
    locked = mine.key.with_suffix(".locked")
    output_of(["openssl", "pkey", "-in", str(mine.key), "-aes128", "-passout", "pass:x", "-out", str(locked)])
    _certs(home / ".config/containers/certs.d", trust.open, a__cert=mine.certificate, a__key=locked)
    with pytest.raises(NodeError, match="its key without a password"):
        new().head_manifest(trust.open.reference("x:1"))


def test_the_first_directory_that_knows_the_host_counts_alone(tmp_path: Path) -> None:
    for root in ("home/.config/containers", "etc/containers"):
        (tmp_path / root / "certs.d/r.test:5000").mkdir(parents=True)
    settings = read_settings({"HOME": str(tmp_path / "home")}, etc=tmp_path / "etc")
    endpoint = settings.home(Reference.parse("r.test:5000/x")).endpoint
    assert settings.certificates(endpoint) == tmp_path / "home/.config/containers/certs.d/r.test:5000"
    assert settings.certificates(settings.home(Reference.parse("r.test/x")).endpoint) is None


def test_files_of_other_names_say_nothing_and_the_first_pair_counts(tmp_path: Path) -> None:
    for name in ("b.cert", "b.key", "a.cert", "a.key", "ca.crt", "README"):
        (tmp_path / name).write_text("")
    found = read_certificates(tmp_path)
    assert found == Certificates((tmp_path / "ca.crt",), (tmp_path / "a.cert", tmp_path / "a.key"))


def test_the_fast_question_leaves_such_registries_alone(
    home: Path, new: New, trust: Trust, store: Store, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = trust.open.reference(f"{repository}:1")
    monkeypatch.setenv("SSL_CERT_FILE", str(trust.servers.certificate))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(trust.servers.certificate))
    digest = push(new(), image_of(store, {"file": repository.encode()}), store, [reference]).digest
    environment = {"HOME": str(home)}
    assert peek_digest(reference, environment=environment) == digest
    _certs(home / ".config/containers/certs.d", trust.open)
    mark = trust.open.mark()
    assert peek_digest(reference, environment=environment) is None
    assert trust.open.asked(mark) == []
