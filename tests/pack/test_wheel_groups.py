"""Which wheels share a layer: stably, within limits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assembler.errors import ManifestError
from assembler.manifest.wheels import LockedWheel
from assembler.pack.wheel_environment import environment_of
from assembler.pack.wheel_groups import LAYER_LIMIT, WheelGroup, layer_plan

VENV = environment_of("/opt/venv", "3.11", "/usr/bin/python3.11", bytecode=False)
PACKAGES = environment_of("/usr/lib/python3/dist-packages", "3.11", "/usr/bin/python3.11", bytecode=False)
MEGABYTE = 1 << 20
THRESHOLD = 10 * MEGABYTE

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
SIZES = st.one_of(st.integers(1, THRESHOLD), st.integers(THRESHOLD, LAYER_LIMIT))
SETS = st.dictionaries(NAMES, SIZES, max_size=120)


def wheel(name: str, size: int = 1000, version: str = "1.0") -> LockedWheel:
    return LockedWheel(
        name=name,
        version=version,
        filename=f"{name}-{version}-py3-none-any.whl",
        url="",
        sha256="0" * 64,
        size=size,
    )


def plan(sizes: dict[str, int], available: int = 90) -> tuple[WheelGroup, ...]:
    wheels = [wheel(name, size) for name, size in sizes.items()]
    return layer_plan(wheels, VENV, threshold=THRESHOLD, available_layers=available)


def names(groups: Sequence[WheelGroup]) -> dict[str, set[str]]:
    return {group.name: {each.name for each in group.wheels} for group in groups}


@given(sizes=SETS, available=st.integers(60, 100))
def test_every_wheel_once_within_the_limits(sizes: dict[str, int], available: int) -> None:
    groups = plan(sizes, available)
    assert len(groups) <= available
    assert groups[0] == WheelGroup(name="venv", wheels=())
    assert sorted(each.name for group in groups for each in group.wheels) == sorted(sizes)
    assert len({group.name for group in groups}) == len(groups)
    assert all(group.wheels for group in groups[1:])
    assert all(sum(each.size for each in group.wheels) <= LAYER_LIMIT for group in groups)


@given(sizes=SETS, order=st.randoms())
def test_the_order_of_wheels_does_not_show(sizes: dict[str, int], order: object) -> None:
    shuffled = list(sizes.items())
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(dict(shuffled)) == plan(sizes)


@given(
    sizes=st.dictionaries(NAMES, st.integers(1, 20 * MEGABYTE), max_size=60),
    name=NAMES,
    size=st.integers(1, THRESHOLD),
)
def test_a_new_wheel_touches_one_layer(sizes: dict[str, int], name: str, size: int) -> None:
    before, after = names(plan(sizes)), names(plan({**sizes, name: size}))
    changed = {group for group in before | after if before.get(group) != after.get(group)}
    assert len(changed) <= (2 if name in sizes else 1)


def test_a_wheel_of_the_threshold_stands_alone() -> None:
    groups = names(plan({"large": THRESHOLD, "small": THRESHOLD - 1}))
    assert groups["large==1.0"] == {"large"}
    assert {"small"} in groups.values()


def test_a_bumped_wheel_stays_where_it_was() -> None:
    before = layer_plan([wheel("a"), wheel("b")], VENV, threshold=THRESHOLD, available_layers=90)
    after = layer_plan([wheel("a", version="2.0"), wheel("b")], VENV, threshold=THRESHOLD, available_layers=90)
    assert names(before) == names(after)


@pytest.mark.parametrize("available", [60, 20, 8, 5, 3, 2])
def test_fewer_layers_are_enough(available: int) -> None:
    sizes = {f"p{number}": (number + 1) * MEGABYTE for number in range(60)}
    groups = plan(sizes, available)
    assert len(groups) <= available
    assert sorted(each.name for group in groups for each in group.wheels) == sorted(sizes)


def test_no_layer_is_left() -> None:
    with pytest.raises(ManifestError, match="1 wheels need 2 layers or more; 1 are left"):
        plan({"a": 1}, 1)


def test_too_large_together() -> None:
    with pytest.raises(ManifestError, match="are left"):
        plan({f"p{number}": LAYER_LIMIT // 2 + 1 for number in range(9)}, 5)


def test_too_large_by_itself() -> None:
    with pytest.raises(ManifestError, match=r"the wheel `a-1\.0-py3-none-any\.whl` has"):
        plan({"a": LAYER_LIMIT + 1})


def test_a_directory_of_packages_has_no_layer_of_its_own() -> None:
    groups = layer_plan([wheel("a")], PACKAGES, threshold=THRESHOLD, available_layers=1)
    assert [len(group.wheels) for group in groups] == [1]
