"""Layers of files of this host: what they will be, known without packing and, where it can be, without reading."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from assembler.errors import StepError
from assembler.manifest.layers import Copy
from assembler.oci.digest import Digest
from assembler.oci.layout import Store
from assembler.pack.tarball import diff_id_of, pack
from assembler.steps.host_files import CopiedLayer, Copies
from assembler.tree.fingerprint import RACY_NANOSECONDS, StatCache

COMPRESSOR = "any"
OLD = 1_000_000_000


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory whose files were not changed for long."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    for name, text in (("one", "1\n"), ("sub/two", "22\n")):
        (tree / name).write_text(text)
    settle(tree)
    return tree


def settle(tree: Path) -> None:
    """Wait until no change in a tree is too young to be trusted: the times of changes cannot be set."""
    newest = max(path.lstat().st_ctime_ns for path in tree.rglob("*"))
    time.sleep(max(0, newest + RACY_NANOSECONDS - time.time_ns()) / 1e9 + 0.05)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").create()


def layer(tmp_path: Path, path: str | None = None) -> CopiedLayer:
    """The layer as a new run of the program sees it."""
    copies = Copies(StatCache(tmp_path / "stat"))
    copy = Copy.model_validate({"source": "tree", "to": "/opt/", **({"path": path} if path else {})})
    return copies.layer(copies.look(tmp_path / "tree", ()), copy, "here", 0)


def unreadable(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on reading the content of a file of the tree is an error."""
    real = os.open

    def refusing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        assert not os.fspath(path).startswith(str(tree)), f"{path} is read"
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)


def made(tmp_path: Path, store: Store) -> Digest:
    """Pack the layer, and have it remembered as the program does."""
    now = layer(tmp_path)
    packed = pack(now.entries, store)
    now.settle(packed.layer.diff_id)
    store.put_record(now.shape(COMPRESSOR), {})
    return packed.layer.diff_id


def test_a_layer_of_new_shape_is_not_read(
    tree: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable(tree, monkeypatch)
    assert layer(tmp_path).diff_id(store, COMPRESSOR, exact=False) is None


def test_unless_it_must_be_known(tree: Path, tmp_path: Path, store: Store) -> None:
    now = layer(tmp_path)
    assert now.diff_id(store, COMPRESSOR, exact=True) == diff_id_of(now.entries)


def test_an_unchanged_tree_is_not_read(
    tree: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = made(tmp_path, store)
    unreadable(tree, monkeypatch)
    assert layer(tmp_path).diff_id(store, COMPRESSOR, exact=True) == digest


def test_equal_files_with_new_times_are_read_once(
    tree: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = made(tmp_path, store)
    os.utime(tree / "one", (OLD, OLD))
    settle(tree)
    assert layer(tmp_path).diff_id(store, COMPRESSOR, exact=False) == digest
    unreadable(tree, monkeypatch)
    assert layer(tmp_path).diff_id(store, COMPRESSOR, exact=False) == digest


def test_another_content_of_the_same_size_is_another_layer(tree: Path, tmp_path: Path, store: Store) -> None:
    digest = made(tmp_path, store)
    (tree / "one").write_text("x\n")
    found = layer(tmp_path).diff_id(store, COMPRESSOR, exact=False)
    assert found not in (None, digest)


def test_a_part_is_not_changed_by_the_rest(
    tree: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = layer(tmp_path, "sub")
    digest = diff_id_of(part.entries)
    part.settle(digest)
    (tree / "one").write_text("changed and longer\n")
    unreadable(tree, monkeypatch)
    assert layer(tmp_path, "sub").diff_id(store, COMPRESSOR, exact=True) == digest


@pytest.mark.parametrize("what", ["change", "removal"])
def test_files_that_change_while_they_are_read_are_an_error(
    tree: Path, tmp_path: Path, store: Store, what: str
) -> None:
    now = layer(tmp_path)
    digest = diff_id_of(now.entries)
    if what == "change":
        (tree / "sub/two").write_text("changed\n")
    else:
        (tree / "sub/two").unlink()
    with pytest.raises(StepError, match=r"`sub/two` of the source `tree` was changed while it was read"):
        now.settle(digest)


def test_two_readings_that_differ_are_an_error(tree: Path, tmp_path: Path, store: Store) -> None:
    made(tmp_path, store)
    now = layer(tmp_path)
    now.diff_id(store, COMPRESSOR, exact=True)
    with pytest.raises(StepError, match="was changed while it was read"):
        now.settle(Digest("sha256:" + "0" * 64))
