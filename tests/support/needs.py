"""What a test needs of its host: where that is lacking the test is skipped, but in CI it fails."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from assembler.process import which


def lacking(fact: str) -> NoReturn:
    """End the test because of what this host lacks: a skip that says so, in CI a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{fact}; in CI nothing may be missing")
    pytest.skip(fact)


def need(*programs: str) -> str:
    """The path of a tool, of the first where several are named, all of which are needed."""
    for program in programs:
        if which(program) is None:
            lacking(f"`{program}` is not installed")
    return which(programs[0]) or ""


def need_root() -> None:
    """For what only root may do."""
    if os.geteuid():
        lacking("only root may do this")
