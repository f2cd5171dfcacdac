"""Real ELF files: small programs and libraries that the host's gcc makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from assembler.process import run, which


def library(path: Path, name: str = "greeting", *options: str) -> Path:
    """A shared library with the one function `NAME`."""
    return _compiled(path, f"int {name}(void) {{ return 42; }}\n", ["-shared", "-fPIC", *options])


def executable(path: Path, *options: str, calls: Sequence[str] = ()) -> Path:
    """A program that calls these functions."""
    declared = "".join(f"int {name}(void);\n" for name in calls)
    return _compiled(
        path, f"{declared}int main(void) {{ return {' + '.join(f'{n}()' for n in calls) or 0}; }}\n", options
    )


def compiled_object(path: Path) -> Path:
    """An object file."""
    return _compiled(path, "int function(void) { return 1; }\n", ["-c"])


def _compiled(path: Path, source: str, options: Sequence[str]) -> Path:
    if which("gcc") is None:
        pytest.skip("gcc is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.with_name(f"{path.name}.c")
    text.write_text(source)
    # What is asked for, and nothing that a distribution adds: no default search paths, no as-needed.
    run(["gcc", "-g", "-o", str(path), str(text), "-Wl,--no-as-needed", *options], cwd=path.parent)
    text.unlink()
    return path
