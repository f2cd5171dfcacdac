"""What tools print when they fail, and the advice that goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from assembler.build.advice import end_of, hint_for, ran_out_of_memory
from assembler.errors import StepError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("error: cannot update the lock file /build/source/Cargo.lock because --locked was passed", "Cargo.lock"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_70'", "`compute_70`"),
        ("clang: error: invalid target ID 'gfx942'; format is a processor name", "`gfx942`"),
        ("error: linker `cc` not found", "gcc"),
        ("/usr/bin/python3: No module named pip", "python3-pip"),
        (
            "The virtual environment was not created because ensurepip is not\navailable.",
            "python3-venv",
        ),
        (
            "pyproject_hooks._impl.BackendUnavailable: Cannot import 'scikit_build_core.build'",
            "requires",
        ),
        ("fastsum.cpp:1:10: fatal error: Python.h: No such file or directory", "python3-dev"),
        ("ops.cpp:3:10: fatal error: pybind11/pybind11.h: No such file or directory", "`pybind11/pybind11.h`"),
        ("a.cpp:1:10: fatal error: 'numa.h' file not found", "`numa.h`"),
        ("fatal: unable to access 'https://x/': Could not resolve host: x", "network: host"),
    ],
)
def test_advice(text: str, words: str) -> None:
    assert words in str(hint_for(f"before\n{text}\nafter\n"))


def test_no_advice_where_there_is_none() -> None:
    assert hint_for("main.c:1:1: error: expected ';'") is None


@pytest.mark.parametrize(
    "text",
    [
        "g++: fatal error: Killed signal terminated program cc1plus",
        "xargs: ccache: terminated by signal 9",
        "process didn't exit successfully: `rustc` (signal: 9, SIGKILL: kill)",
        "collect2: fatal error: ld terminated with signal 9 [Killed]",
    ],
)
def test_want_of_memory(text: str) -> None:
    assert ran_out_of_memory(StepError("`make` exited with 2"), f"before\n{text}\n")
    assert not ran_out_of_memory(StepError("`make` exited with 2"), "before\n")
    assert ran_out_of_memory(StepError("`make` exited with 137 (SIGKILL)"), "")


def test_only_what_was_printed_since_counts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nsecond\n")
    assert end_of(log, 6) == "second\n"
    assert end_of(tmp_path / "none") == ""
