"""Configuration files of the field: which registries are insecure, which files count; waiting, and redaction."""

from __future__ import annotations

from pathlib import Path

from assembler.oci.reference import Reference
from assembler.registry.refusal import redacted
from assembler.registry.retry import RetryPolicy, asked_wait
from assembler.registry.settings import Settings, credential_files, is_loopback, read_settings


def _endpoint(text: str, *insecure: str) -> tuple[str, str]:
    endpoint = Settings(frozenset(insecure)).home(Reference.parse(text)).endpoint
    return endpoint.host, endpoint.security


def test_endpoints() -> None:
    assert _endpoint("ubuntu") == ("registry-1.docker.io", "verified")
    assert _endpoint("ghcr.io/a/b") == ("ghcr.io", "verified")
    for host in ("localhost", "localhost:5000", "127.0.0.1:5000", "127.8.8.8", "[::1]:5000"):
        assert _endpoint(f"{host}/a") == (host, "insecure")
        assert is_loopback(host)
    assert not is_loopback("127.example.org.invalid:80"[3:])
    assert _endpoint("r.lan:5000/a/b:1", "r.lan:5000")[1] == "insecure"
    assert _endpoint("r.lan:5000/a/b:1", "r.lan:5000/a")[1] == "insecure"
    assert _endpoint("r.lan:5000/ab", "r.lan:5000/a")[1] == "verified"
    assert _endpoint("x.r.lan/ab", "*.r.lan")[1] == "insecure"
    assert _endpoint("r.lan/ab", "*.r.lan")[1] == "verified"


def test_registries_conf(tmp_path: Path) -> None:
    path = tmp_path / "registries.conf"
    path.write_text(
        '[[registry]]\nlocation = "one.lan"\ninsecure = true\n'
        '[[registry]]\nprefix = "*.two.lan"\ninsecure = true\n'
        '[[registry]]\nlocation = "three.lan"\ninsecure = false\n'
    )
    environment = {"CONTAINERS_REGISTRIES_CONF": str(path), "HOME": str(tmp_path)}
    settings = read_settings(environment, etc=tmp_path / "etc")
    security = {
        host: settings.home(Reference.parse(f"{host}/x")).endpoint.security
        for host in ("one.lan", "x.two.lan", "two.lan", "three.lan", "one.lan:5000")
    }
    assert [host for host, found in security.items() if found == "insecure"] == ["one.lan", "x.two.lan"]


def test_credential_files() -> None:
    assert credential_files({"REGISTRY_AUTH_FILE": "/a.json", "HOME": "/h"}) == (Path("/a.json"),)
    environment = {"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "DOCKER_CONFIG": "/d"}
    assert [str(path) for path in credential_files(environment)] == [
        "/r/containers/auth.json",
        "/h/.config/containers/auth.json",
        "/d/config.json",
    ]


def test_waiting() -> None:
    policy = RetryPolicy(first=1.0, longest=10.0)
    assert all(0.5 * 2**n <= policy.wait(n, None) <= 2**n for n in range(3))
    assert policy.wait(20, None) <= 10.0
    assert policy.wait(0, 5.0) == 5.0
    assert policy.wait(0, 3600.0) == 10.0
    assert asked_wait("7") == 7.0
    assert asked_wait("Fri, 31 Dec 1999 23:59:59 GMT") == 0.0
    assert asked_wait("soon") is None
    assert asked_wait(None) is None


def test_urls_lose_their_secrets() -> None:
    assert redacted("https://u:p@host:1/a/b?signature=x#y") == "https://host:1/a/b"
