"""Which wheels fit which base, by their names."""

from __future__ import annotations

import pytest

from assembler.build.wheel_tags import Target, best, machine_of, rank_of, why_not
from assembler.errors import ManifestError
from assembler.oci.platform import Platform

BOOKWORM = Target(python="3.11.2", machine="x86_64", glibc="2.36")


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("py3-none-any", ""),
        ("py2.py3-none-any", ""),
        ("cp311-cp311-manylinux_2_36_x86_64", ""),
        ("cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64", ""),
        ("cp38-abi3-manylinux1_x86_64", ""),
        ("cp311-cp311-linux_x86_64", ""),
        ("py3-none-manylinux2010_x86_64", ""),
        ("cp311-cp311-manylinux_2_39_x86_64", "glibc 2.39 or newer"),
        ("cp310-cp310-manylinux_2_17_x86_64", "another Python"),
        ("cp312-abi3-manylinux_2_17_x86_64", "another Python"),
        ("cp311-cp311t-manylinux_2_17_x86_64", "another Python"),
        ("py2-none-any", "another Python"),
        ("cp311-cp311-manylinux_2_17_aarch64", "another platform"),
        ("cp311-cp311-macosx_11_0_arm64", "another platform"),
        ("cp311-cp311-win_amd64", "another platform"),
        ("cp311-cp311-musllinux_1_2_x86_64", "musl"),
    ],
)
def test_what_fits(tag: str, reason: str) -> None:
    said = why_not(f"a-1.0-{tag}.whl", BOOKWORM)
    assert bool(said) == bool(reason)
    if reason:
        assert reason in said
        assert f"`{tag}`" in said
        assert "the base has CPython 3.11.2, glibc 2.36, x86_64" in said


def test_arm_has_no_old_tags() -> None:
    arm = Target(python="3.11", machine="aarch64", glibc="2.36")
    assert why_not("a-1-cp311-cp311-manylinux2014_aarch64.whl", arm) == ""
    assert why_not("a-1-cp311-cp311-manylinux1_x86_64.whl", arm) != ""


@pytest.mark.parametrize(
    "name", ["a.whl", "a-1.0.tar.gz", "a-1-x-py3-none-any.whl", "a-1-1-1-py3-none-any.whl", ""]
)
def test_no_wheel_at_all(name: str) -> None:
    assert rank_of(name, BOOKWORM) is None
    assert why_not(name, BOOKWORM)


def test_the_nearest_is_the_best() -> None:
    names = [
        "a-1-py3-none-any.whl",
        "a-1-cp38-abi3-manylinux_2_17_x86_64.whl",
        "a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "a-1-cp311-cp311-manylinux_2_28_x86_64.whl",
        "a-1-cp311-cp311-manylinux_2_39_x86_64.whl",
    ]
    assert best(names, BOOKWORM) == names[3]
    assert best(names[:3], BOOKWORM) == names[2]
    assert best(names[:2], BOOKWORM) == names[1]
    assert best(names[4:], BOOKWORM) is None
    assert best(["a-1-py3-none-any.whl", "a-1-2b-py3-none-any.whl", "a-1-1-py3-none-any.whl"], BOOKWORM) == (
        "a-1-2b-py3-none-any.whl"
    )


def test_names_of_platforms() -> None:
    assert BOOKWORM.uv_platform == "x86_64-manylinux_2_36"
    assert Target(python="3.13", machine="aarch64", glibc="2.41").uv_platform == "aarch64-manylinux_2_40"
    assert Target(python="3.6", machine="x86_64", glibc="2.27").uv_platform == "x86_64-manylinux_2_17"
    assert machine_of(Platform.parse("linux/arm64")) == "aarch64"
    with pytest.raises(ManifestError, match="no wheels"):
        machine_of(Platform.parse("windows/amd64"))
    with pytest.raises(ManifestError, match="uv cannot resolve"):
        _ = Target(python="3.13", machine="s390x", glibc="2.41").uv_platform
    with pytest.raises(ValueError, match="expected Python and glibc"):
        Target(python="3", machine="x86_64", glibc="2.41")
