"""The lock comes back exactly as it was written, is made for reading, and says where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from assembler.errors import LockError
from assembler.manifest.lock import (
    Json,
    Lock,
    LockEntry,
    lock_path,
    parse_lock,
    read_lock,
    render_lock,
    write_lock,
)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_OBJECTS = st.dictionaries(st.text(), _JSON, max_size=4)
_ENTRIES = st.builds(
    LockEntry,
    kind=st.sampled_from(["base", "source", "packages", "wheels"]),
    name=st.text(),
    request=_OBJECTS,
    answer=_OBJECTS,
)
_BASE = LockEntry(
    kind="base", name="runtime", request={"reference": "docker.io/a/b:1"}, answer={"digest": "sha256:0"}
)
_PACKAGE: dict[str, Json] = {
    "name": "libssl3",
    "version": "3.0.2-0ubuntu1.18",
    "size": 1_905_000,
    "sha256": "0" * 64,
}
_APT = LockEntry(
    kind="packages", name="layers[0]", request={"apt": ["libssl3"]}, answer={"packages": [_PACKAGE], "extra": []}
)


def _lock(*entries: LockEntry) -> Lock:
    lock = Lock()
    for entry in entries:
        lock = lock.with_entry(entry)
    return lock


class TestRoundTrip:
    """parse(render(lock)) == lock, for all JSON values; equal locks are equal bytes."""

    @settings(max_examples=40, deadline=None)
    @given(st.lists(_ENTRIES, max_size=4))
    def test_exact(self, entries: list[LockEntry]) -> None:
        lock = _lock(*entries)
        again = parse_lock(render_lock(lock).encode(), "x")
        assert again == lock
        assert [json.dumps(each.answer, sort_keys=True) for each in again.entries] == [
            json.dumps(each.answer, sort_keys=True) for each in lock.entries
        ]

    @settings(max_examples=40, deadline=None)
    @given(st.lists(_ENTRIES, max_size=4, unique_by=lambda entry: entry.identity), st.randoms())
    def test_order_does_not_show(self, entries: list[LockEntry], random: Any) -> None:
        shuffled = list(entries)
        random.shuffle(shuffled)
        assert render_lock(_lock(*entries)) == render_lock(_lock(*shuffled))

    @settings(deadline=None)
    @given(st.text())
    def test_texts_mean_the_same_to_every_yaml_reader(self, text: str) -> None:
        lock = _lock(LockEntry(kind="source", name="s", request={}, answer={"text": text}))
        assert yaml.safe_load(render_lock(lock))["source"]["s"]["answer"]["text"] == text


def test_readable() -> None:
    assert render_lock(_lock(_APT, _BASE)) == (
        "# Written by `assemble lock`; `assemble lock --update` renews it.\n"
        "lock: 1\n"
        "base:\n"
        "  runtime:\n"
        "    request:\n"
        "      reference: docker.io/a/b:1\n"
        "    answer:\n"
        "      digest: sha256:0\n"
        "packages:\n"
        '  "layers[0]":\n'
        "    request:\n"
        "      apt:\n"
        "        - libssl3\n"
        "    answer:\n"
        "      extra: []\n"
        "      packages:\n"
        "        - name: libssl3\n"
        f'          sha256: "{"0" * 64}"\n'
        "          size: 1905000\n"
        '          version: "3.0.2-0ubuntu1.18"\n'
    )


def test_an_answer_belongs_to_its_request() -> None:
    lock = _lock(_BASE)
    assert lock.answer("base", "runtime", {"reference": "docker.io/a/b:1"}) == {"digest": "sha256:0"}
    assert lock.answer("base", "runtime", {"reference": "docker.io/a/b:2"}) is None
    assert lock.answer("base", "devel", {"reference": "docker.io/a/b:1"}) is None
    assert lock.answer("source", "runtime", {"reference": "docker.io/a/b:1"}) is None


def test_tuples_are_lists() -> None:
    lock = _lock(LockEntry(kind="packages", name="a", request={"apt": ("b", "c")}, answer={}))
    again = parse_lock(render_lock(lock).encode(), "x")
    assert again.answer("packages", "a", {"apt": ("b", "c")}) == {}
    assert again.answer("packages", "a", {"apt": ["b", "c"]}) == {}


def test_changing_gives_a_new_lock() -> None:
    lock = _lock(_BASE, _APT)
    changed = lock.with_entry(LockEntry(kind="base", name="runtime", request={}, answer={}))
    assert lock.entry("base", "runtime") == _BASE
    assert changed.answer("base", "runtime", {}) == {}
    assert lock.keeping([_APT]).entries == (_APT,)
    assert lock.keeping([("base", "runtime")]).entries == (_BASE,)
    assert not Lock()


def test_file(tmp_path: Path) -> None:
    path = lock_path(tmp_path / "tgi.yaml")
    assert path.name == "tgi.lock.yaml"
    assert read_lock(path) == Lock()
    write_lock(path, _lock(_BASE))
    assert read_lock(path) == _lock(_BASE)
    before = path.stat()
    write_lock(path, _lock(_BASE))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [each.name for each in tmp_path.iterdir()] == ["tgi.lock.yaml"]


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="the lock cannot be written: no such file or directory"):
        write_lock(tmp_path / "missing" / "a.lock.yaml", Lock())
    with pytest.raises(LockError, match="is a directory"):
        read_lock(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lock: 2\n", "x:1:7: lock: expected lock version `1`, got `2`"),
        ("base: {}\n", "x:1:1: expected lock version `1`, got nothing"),
        ("lock: 1\n<<<<<<< ours\nbase: {}\n", "x:3:1: expected `:` after a key"),
        ("lock: 1\nbases: {}\n", "x:2:1: bases: unknown kind `bases`"),
        ("lock: 1\nbase: []\n", "x:2:7: base: expected a mapping, got an empty list"),
        ("lock: 1\nbase: {a: b}\n", "x:2:11: base.a: expected a mapping, got `b`"),
        ("lock: 1\nbase: {a: {request: {}}}\n", "x:2:11: base.a: expected `request` and `answer`"),
        (
            "lock: 1\nbase: {a: {request: {}, answer: 1}}\n",
            "x:2:33: base.a.answer: expected a mapping, got `1`",
        ),
    ],
)
def test_damaged(text: str, message: str) -> None:
    with pytest.raises(LockError) as caught:
        parse_lock(text.encode(), "x")
    assert str(caught.value) == message
    assert caught.value.hint


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_arbitrary_bytes(data: bytes) -> None:
    try:
        parse_lock(b"lock: 1\n" + data, "x")
    except LockError as error:
        assert error.place is not None
