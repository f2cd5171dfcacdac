"""Options of the toolchains: what may be left out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from assembler.manifest.models import CompileStep


def step(toolchain: str, options: dict[str, Any] | None = None, **fields: Any) -> CompileStep:
    wish = {"toolchain": toolchain, "source": "s", "artifacts": {"a": "b"}, **fields}
    return CompileStep.model_validate(wish if options is None else {**wish, toolchain: options})


@pytest.mark.parametrize("toolchain", ["cmake", "cargo", "autotools", "meson", "wheel"])
def test_a_toolchain_alone_is_complete(toolchain: str) -> None:
    made = step(toolchain)
    assert getattr(made, toolchain) is not None
    others = {"cmake", "cargo", "nvcc", "hipcc", "autotools", "meson", "wheel", "script"} - {toolchain}
    assert all(getattr(made, other) is None for other in others)


@pytest.mark.parametrize("toolchain", ["nvcc", "hipcc", "script"])
def test_a_toolchain_that_must_be_told_something(toolchain: str) -> None:
    with pytest.raises(ValidationError, match="needs"):
        step(toolchain)


def test_one_word_stands_for_a_list() -> None:
    cargo = step("cargo", {"package": "launcher", "features": ["a", "b"]}).cargo
    assert cargo is not None
    assert (cargo.package, cargo.features, cargo.profile, cargo.locked) == (
        ("launcher",),
        ("a", "b"),
        "release",
        True,
    )
    nvcc = step("nvcc", {"sources": "*.cu", "output": "lib.so"}).nvcc
    assert nvcc is not None
    assert (nvcc.sources, nvcc.runtime, nvcc.kind) == (("*.cu",), "static", "library")


@pytest.mark.parametrize(
    ("toolchain", "options", "fields"),
    [
        ("cargo", {"package": "-x"}, {}),
        ("cargo", {"features": ["a b"]}, {}),
        ("cargo", {"all-features": True, "features": "a"}, {}),
        ("cargo", {"source-directory": "../other"}, {}),
        ("nvcc", {"sources": [], "output": "a"}, {}),
        ("nvcc", {"sources": "*.cu", "output": "/etc/passwd"}, {}),
        ("nvcc", {"sources": "../*.cu", "output": "a"}, {}),
        ("nvcc", {"sources": "*.cu", "output": "a", "optimize": "fast"}, {}),
        ("hipcc", {"sources": "*.hip", "output": "a", "runtime": "shared"}, {}),
        ("autotools", {"prepare": [[]]}, {}),
        ("meson", {"options": {"-Dx": "y"}}, {}),
        ("wheel", {"requires": ["setuptools"]}, {}),
        ("wheel", {"requires": ["setuptools>=80"]}, {}),
        ("wheel", {"requires": ["setuptools==80.*"]}, {}),
        ("wheel", {"requires": ["a==1 --index-url=http://b"]}, {}),
        ("wheel", {"isolation": True}, {}),
        ("wheel", {"isolation": True, "requires": ["a==1"]}, {"network": "host"}),
        ("cmake", {}, {"architectures": "some"}),
    ],
)
def test_refused(toolchain: str, options: dict[str, Any], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        step(toolchain, options, **fields)


def test_isolation_with_a_network() -> None:
    made = step("wheel", {"isolation": "true"}, network="host")
    assert made.wheel is not None
    assert made.wheel.isolation
