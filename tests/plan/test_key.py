"""Keys: equal descriptions give equal keys, whatever their order; anything else gives another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from assembler.plan.key import key_of, subset

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FACTS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


@given(FACTS, st.randoms())
def test_order_of_facts_does_not_show(facts: dict[str, object], random: object) -> None:
    items = list(facts.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert key_of("pack", dict(items)) == key_of("pack", facts)


@given(FACTS, FACTS)
def test_other_facts_have_another_key(one: dict[str, object], other: dict[str, object]) -> None:
    assert (key_of("pack", one) == key_of("pack", other)) == (repr_json(one) == repr_json(other))


def repr_json(value: object) -> bytes:
    from assembler.oci.digest import canonical_json

    return canonical_json(value)


def test_the_kind_is_part_of_the_key() -> None:
    assert key_of("pack", {}) != key_of("compile", {})


def test_subset_leaves_out_what_says_nothing() -> None:
    assert subset({"a": 1, "b": None, "c": (), "d": "", "e": 0}, "a", "b", "c", "d", "e", "f") == {"a": 1, "e": 0}
