"""Whose credentials count: the files of podman and docker, helpers, and what is said when there are none."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assembler.errors import RegistryError
from assembler.oci.reference import Reference
from assembler.registry import credentials
from assembler.registry.authentication import Credentials
from assembler.registry.credentials import find_credentials
from assembler.registry.login_hints import login_hint
from assembler.registry.refusal import not_logged_in
from assembler.registry.registries_conf import AUTH_FILES

HUB = "https://index.docker.io/v1/"
Helper = Callable[[str, str], None]


def _basic(user: str) -> str:
    return base64.b64encode(f"{user}:secret".encode()).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with credentials."""
    return tmp_path / "config.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    """Write `docker-credential-NAME`; it gets the server as `$server`, and notes its arguments and the server."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")

    def write(name: str, script: str) -> None:
        program = directory / f"docker-credential-{name}"
        program.write_text(f'#!/bin/sh\nread server\necho "$* $server" >> {tmp_path}/asked\n{script}\n')
        program.chmod(0o755)

    return write


def _asked(tmp_path: Path) -> list[str]:
    return (tmp_path / "asked").read_text().splitlines()


@pytest.mark.parametrize(
    ("text", "auths", "user"),
    [
        ("quay.io/a/b", {"quay.io": {"auth": _basic("host")}, "quay.io/a": {"auth": _basic("near")}}, "near"),
        ("quay.io/ab/b", {"quay.io": {"auth": _basic("host")}, "quay.io/a": {"auth": _basic("near")}}, "host"),
        ("ubuntu", {HUB: {"auth": _basic("hub")}}, "hub"),
        ("ubuntu", {"docker.io": {"auth": _basic("hub")}}, "hub"),
        ("quay.io/a", {"https://quay.io": {"auth": _basic("old")}}, "old"),
        ("quay.io/a", {"quay.io": {"username": "plain", "password": "secret"}}, "plain"),
        ("quay.io/a", {"quay.io.evil": {"auth": _basic("evil")}}, None),
        ("quay.io/a", {"quay.io": {}}, None),
        ("quay.io/a", {"quay.io": "nonsense"}, None),
        ("quay.io/a", ["nonsense"], None),
    ],
)
def test_most_specific_key_wins(path: Path, text: str, auths: Any, user: str | None) -> None:
    path.write_text(json.dumps({"auths": auths}))
    found = find_credentials(Reference.parse(text), [path.with_name("missing.json"), path])
    assert (found.basic if found else None) == (_basic(user) if user else None)
    assert "secret" not in repr(found)
    assert not user or _basic(user) not in repr(found)


def test_a_helper_for_a_registry_comes_before_what_is_written(path: Path, helper: Helper, tmp_path: Path) -> None:
    helper("tests", 'echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"u\\",\\"Secret\\":\\"secret\\"}"')
    config = {"auths": {"quay.io": {"auth": _basic("old")}}, "credHelpers": {"quay.io": "tests"}}
    path.write_text(json.dumps(config))
    assert find_credentials(Reference.parse("quay.io/a"), [path]) == Credentials(basic=_basic("u"))
    assert find_credentials(Reference.parse("other.io/a"), [path]) is None
    assert _asked(tmp_path) == ["get quay.io"]


def test_a_helper_may_give_an_identity_token(path: Path, helper: Helper) -> None:
    helper("tests", 'echo \'{"Username":"<token>","Secret":"identity"}\'')
    path.write_text(json.dumps({"credHelpers": {"quay.io": "tests"}}))
    assert find_credentials(Reference.parse("quay.io/a"), [path]) == Credentials(identity_token="identity")


def test_the_helper_for_all_is_asked_by_dockers_names_and_last(path: Path, helper: Helper, tmp_path: Path) -> None:
    helper("tests", "echo 'credentials not found in native keychain'; exit 1")
    path.write_text(json.dumps({"auths": {"quay.io": {"auth": _basic("near")}}, "credsStore": "tests"}))
    assert find_credentials(Reference.parse("quay.io/a"), [path]) == Credentials(basic=_basic("near"))
    assert find_credentials(Reference.parse("ghcr.io/a/b"), [path]) is None
    assert find_credentials(Reference.parse("ubuntu"), [path]) is None
    assert _asked(tmp_path) == ["get ghcr.io", f"get {HUB}", "get docker.io"]


def test_helpers_of_registries_conf_are_asked_in_their_order(path: Path, helper: Helper, tmp_path: Path) -> None:
    helper("one", "exit 1")
    helper("two", 'echo \'{"Username":"two","Secret":"secret"}\'')
    path.write_text(json.dumps({"auths": {"quay.io": {"auth": _basic("file")}}}))
    quay = Reference.parse("quay.io/a")
    assert find_credentials(quay, [path], ("one", AUTH_FILES, "two")) == Credentials(basic=_basic("file"))
    assert find_credentials(quay, [path], ("one", "two", AUTH_FILES)) == Credentials(basic=_basic("two"))
    assert find_credentials(quay, [path], ("one",)) is None


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo hush", "expected JSON with `Username` and `Secret`"),
        ('echo \'{"Secret": "hush"}\'', "expected JSON"),
        ("echo '[\"hush\"]'", "expected JSON"),
        ("echo hush; echo hush >&2; exit 3", "`docker-credential-tests` exited with 3"),
        ("head -c 3000000 /dev/zero; echo hush", "expected JSON"),
    ],
)
def test_a_helper_that_fails_is_named_and_not_quoted(path: Path, helper: Helper, script: str, said: str) -> None:
    helper("tests", script)
    path.write_text(json.dumps({"credHelpers": {"quay.io": "tests"}}))
    with pytest.raises(RegistryError) as failed:
        find_credentials(Reference.parse("quay.io/a"), [path])
    assert said in failed.value.fact
    assert "hush" not in failed.value.render()
    assert "echo quay.io | docker-credential-tests get" in (failed.value.hint or "")
    assert failed.value.place == str(path)


def test_a_helper_that_hangs_is_ended(path: Path, helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    helper("tests", "sleep 100 & sleep 100")
    monkeypatch.setattr(credentials, "HELPER_SECONDS", 0.3)
    path.write_text(json.dumps({"credHelpers": {"quay.io": "tests"}}))
    started = time.monotonic()
    with pytest.raises(RegistryError, match=r"gave no credentials for `quay\.io` within"):
        find_credentials(Reference.parse("quay.io/a"), [path])
    assert time.monotonic() - started < 20


def test_a_helper_that_is_missing_matters_only_where_it_is_for_the_registry(path: Path, helper: Helper) -> None:
    quay = Reference.parse("quay.io/a")
    path.write_text(json.dumps({"credsStore": "desktop"}))
    assert find_credentials(quay, [path]) is None
    path.write_text(json.dumps({"credHelpers": {"quay.io": "desktop"}}))
    with pytest.raises(RegistryError, match="`docker-credential-desktop` is not installed") as failed:
        find_credentials(quay, [path])
    assert failed.value.place == str(path)


def test_unreadable_file_is_named(path: Path) -> None:
    path.write_text('{"auths": {"quay.io": {"auth": "c2VjcmV0"')
    with pytest.raises(RegistryError, match="expected JSON") as failed:
        find_credentials(Reference.parse("quay.io/a"), [path])
    assert "c2VjcmV0" not in failed.value.render()


@pytest.mark.parametrize(
    ("registry", "words"),
    [
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            [
                "docker-credential-ecr-login",
                '"credHelpers": {"123456789012.dkr.ecr.eu-west-1.amazonaws.com": "ecr-login"}',
                "`aws ecr get-login-password --region eu-west-1 | podman login --username AWS --password-stdin "
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com`",
            ],
        ),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", ["--region us-gov-west-1"]),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", ["--region cn-north-1"]),
        ("public.ecr.aws", ["aws ecr-public get-login-password --region us-east-1"]),
        ("gcr.io", ["gcloud auth configure-docker gcr.io"]),
        ("europe-docker.pkg.dev", ["docker-credential-gcloud", "oauth2accesstoken"]),
        ("mine.azurecr.io", ["az acr login --name mine --expose-token", "acr-env"]),
        ("nvcr.io", ["$oauthtoken"]),
        ("quay.io", ["podman login quay.io", "REGISTRY_AUTH_FILE"]),
        ("evil-gcr.io", ["podman login evil-gcr.io"]),
    ],
)
def test_who_is_not_logged_in_is_told_how(registry: str, words: list[str]) -> None:
    for had_credentials in (False, True):
        hint = not_logged_in(f"{registry}/a/b", had_credentials).hint or ""
        assert all(word in hint for word in words), hint
    assert login_hint(registry) == hint
