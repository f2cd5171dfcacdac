"""Configuration files of the field: insecure registries, and whose credentials count."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from assembler.errors import NodeError, RegistryError
from assembler.oci.reference import Reference
from assembler.registry.client import _ask_oras
from assembler.registry.credentials import find_credentials
from assembler.registry.refusal import redacted
from assembler.registry.retry import RetryPolicy, asked_wait
from assembler.registry.settings import Settings, credential_files, is_loopback, read_settings


def _basic(user: str) -> str:
    return base64.b64encode(f"{user}:secret".encode()).decode()


def _endpoint(text: str, *insecure: str) -> tuple[str, str]:
    endpoint = Settings(frozenset(insecure)).endpoint(Reference.parse(text))
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
    assert read_settings(environment).insecure == {"one.lan", "*.two.lan"}
    path.write_text("insecure [")
    with pytest.raises(NodeError, match=r"registries\.conf.*expected TOML"):
        read_settings(environment)


def test_credential_files() -> None:
    assert credential_files({"REGISTRY_AUTH_FILE": "/a.json", "HOME": "/h"}) == (Path("/a.json"),)
    environment = {"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "DOCKER_CONFIG": "/d"}
    assert [str(path) for path in credential_files(environment)] == [
        "/r/containers/auth.json",
        "/h/.config/containers/auth.json",
        "/d/config.json",
    ]


@pytest.mark.parametrize(
    ("text", "auths", "user"),
    [
        ("quay.io/a/b", {"quay.io": {"auth": _basic("host")}, "quay.io/a": {"auth": _basic("near")}}, "near"),
        ("quay.io/ab/b", {"quay.io": {"auth": _basic("host")}, "quay.io/a": {"auth": _basic("near")}}, "host"),
        ("ubuntu", {"https://index.docker.io/v1/": {"auth": _basic("hub")}}, "hub"),
        ("ubuntu", {"docker.io": {"auth": _basic("hub")}}, "hub"),
        ("quay.io/a", {"https://quay.io": {"auth": _basic("old")}}, "old"),
        ("quay.io/a", {"quay.io.evil": {"auth": _basic("evil")}}, None),
        ("quay.io/a", {"quay.io": {}}, None),
    ],
)
def test_most_specific_key_wins(tmp_path: Path, text: str, auths: dict[str, Any], user: str | None) -> None:
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": auths}))
    found = find_credentials(Reference.parse(text), [tmp_path / "missing.json", path], _ask_oras)
    assert (found.basic if found else None) == (_basic(user) if user else None)
    assert "secret" not in repr(found)
    assert not user or _basic(user) not in repr(found)


def test_credential_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-tests"
    helper.write_text(
        "#!/bin/sh\nread server\n"
        'case $server in quay.io) echo \'{"Username":"<token>","Secret":"identity"}\';; '
        'broken.io) echo nonsense;; *) echo \'{"Username":"u","Secret":"s"}\';; esac\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credHelpers": dict.fromkeys(("quay.io", "ghcr.io", "broken.io"), "tests")}))
    quay, ghcr = (
        find_credentials(Reference.parse(f"{host}/a"), [path], _ask_oras) for host in ("quay.io", "ghcr.io")
    )
    assert quay
    assert ghcr
    assert (quay.identity_token, ghcr.basic) == ("identity", base64.b64encode(b"u:s").decode())
    assert find_credentials(Reference.parse("other.io/a"), [path], _ask_oras) is None
    with pytest.raises(RegistryError, match="cannot be read") as failed:
        find_credentials(Reference.parse("broken.io/a"), [path], _ask_oras)
    assert "nonsense" not in failed.value.render()


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    path.write_text('{"auths": {"quay.io": {"auth": "c2VjcmV0"')
    with pytest.raises(RegistryError, match="expected JSON") as failed:
        find_credentials(Reference.parse("quay.io/a"), [path], _ask_oras)
    assert "c2VjcmV0" not in failed.value.render()


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
