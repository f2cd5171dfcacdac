"""The door to subprocesses: what a child gets of ours."""

from __future__ import annotations

import os

import pytest

from assembler.errors import NodeError
from assembler.process import run


def variables(env: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a child."""
    return dict(line.split("=", 1) for line in run(["env", "-0"], env=env).stdout.split("\0") if line)


def test_a_child_has_the_environment_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSEMBLE_TEST", "before")
    assert variables()["ASSEMBLE_TEST"] == "before"
    monkeypatch.setenv("ASSEMBLE_TEST", "now")
    assert variables() == dict(os.environ)
    assert variables({"ASSEMBLE_TEST": "stated"})["ASSEMBLE_TEST"] == "stated"


def test_a_variable_that_was_deleted_is_not_passed_on() -> None:
    """Whatever plumbum remembers of when it was imported."""
    from plumbum import local

    with local.env(ASSEMBLE_TEST="of old"):
        assert "ASSEMBLE_TEST" not in variables()


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NodeError, match="`mmdebstrap` is not installed") as caught:
        run(["mmdebstrap"])
    assert caught.value.hint == "install the package `mmdebstrap`"


def test_a_command_that_takes_too_long_is_ended_with_its_children() -> None:
    with pytest.raises(TimeoutError, match="did not end within"):
        run(["sh", "-c", "sleep 100 & sleep 100"], seconds=0.2)
