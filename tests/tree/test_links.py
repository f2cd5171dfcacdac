"""Following links as the kernel does; compared with the kernel itself."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assembler.tree.links import follow, follow_parent


@pytest.mark.parametrize(
    ("path", "inside", "rooted"),
    [
        ("usr/lib/a", "usr/lib/a", "usr/lib/a"),
        ("lib/a", "usr/lib/a", "usr/lib/a"),
        ("lib/../x", "usr/x", "usr/x"),
        ("abs/a", None, "usr/lib/a"),
        ("up/x", None, "x"),
        ("../x", None, "x"),
        ("round", None, None),
        ("chain", "usr/lib/a", "usr/lib/a"),
        ("", "", ""),
        ("./usr//lib/.", "usr/lib", "usr/lib"),
    ],
)
def test_follow(path: str, inside: str | None, rooted: str | None) -> None:
    links = {
        "lib": "usr/lib",
        "abs": "/lib",
        "up": "../..",
        "round": "round",
        "usr/lib/b": "./a",
        "chain": "lib/b",
    }
    assert follow(links, path, rooted=False) == inside
    assert follow(links, path, rooted=True) == rooted


def test_the_last_part_can_be_left_alone() -> None:
    links = {"lib": "usr/lib", "usr/lib/b": "a"}
    assert follow_parent(links, "lib/b", rooted=False) == "usr/lib/b"
    assert follow_parent(links, "lib", rooted=False) == "lib"
    assert follow_parent({"up": ".."}, "up/b", rooted=False) is None


_PARTS = st.sampled_from(["a", "b", "c", "..", "."])
_TARGETS = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "a/x", "c/a", "c/b"]), _TARGETS, max_size=4), _TARGETS)
def test_the_kernel_agrees(links: dict[str, str], path: str) -> None:
    """Whatever ends inside, by our account, at something that is there, is what the kernel finds."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve() / "deep" / "root"
        (root / "c").mkdir(parents=True)
        made = {}
        for place, target in [*sorted(links.items()), *((place, "") for place in ("a", "b", "a/x", "c/a", "c/b"))]:
            if os.path.lexists(root / place) or (root / place).parent.is_symlink():
                continue
            if target:
                (root / place).parent.mkdir(exist_ok=True)
                (root / place).symlink_to(target)
                made[place] = target
            else:
                (root / place).mkdir()
        reached = follow(made, path, rooted=False)
        if reached is not None and (root / path).exists():
            assert (root / path).resolve() == root / reached
