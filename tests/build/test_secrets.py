"""Secrets of compile steps: asked for by name, in no log, message or artifact."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from assembler.build.harvest import Found
from assembler.build.secrets import Secrets
from assembler.errors import RequestError, StepError

NETRC = "machine git.example login robot password hunter2hunter2\n"


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    (tmp_path / "netrc").write_text(NETRC)
    (tmp_path / "token").write_text("abcdefgh0123\n")
    given = {"netrc": tmp_path / "netrc", "token": tmp_path / "token", "other": tmp_path / "none"}
    return Secrets.of(["netrc", "token"], given, ssh=False, step="step")


def test_secrets_are_files_of_the_container(secrets: Secrets) -> None:
    assert [(mount.target, mount.read_only) for mount in secrets.mounts] == [
        ("/run/secrets/netrc", True),
        ("/run/secrets/token", True),
    ]
    assert not secrets.environment


def test_words_are_hidden(secrets: Secrets, tmp_path: Path) -> None:
    assert secrets.hide("fetch https://robot:hunter2hunter2@git") == "fetch https://robot:***@git"
    assert secrets.hide("no password given") == "no password given"
    log = tmp_path / "log"
    log.write_bytes(b"one\nabcdefgh0123\xff\n")
    secrets.clean(log)
    assert log.read_bytes() == b"one\n***\xff\n"
    secrets.clean(tmp_path / "nothing")


def test_an_artifact_with_a_secret_in_it_is_refused(secrets: Secrets, tmp_path: Path) -> None:
    def found(text: str) -> dict[str, tuple[Found, ...]]:
        (tmp_path / "program").write_text(text)
        return {"bin": (Found("program", tmp_path / "program", (tmp_path / "program").lstat()),)}

    secrets.check(found("nothing"), "step")
    secrets.check(found(""), "step")
    with pytest.raises(StepError, match="artifact `bin` has a secret in `program`"):
        secrets.check(found("\0x=abcdefgh0123\0"), "step")


def test_a_secret_that_was_not_given(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the secret `token` is needed") as caught:
        Secrets.of(["token"], {}, ssh=False, step="step")
    assert "--secret token=FILE" in str(caught.value.hint)
    with pytest.raises(RequestError, match="cannot be read"):
        Secrets.of(["token"], {"token": tmp_path / "none"}, ssh=False, step="step")


def test_the_agent_of_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(RequestError, match="ssh agent"):
        Secrets.of([], {}, ssh=True, step="step")
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind("agent")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        made = Secrets.of([], {}, ssh=True, step="step")
    assert made.environment == {"SSH_AUTH_SOCK": "/run/ssh-agent.sock"}
    assert made.mounts[0].source == tmp_path / "agent"
