"""What a tree may hold, where its entries go, and the one order that they have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assembler.errors import UntrustedInputError
from assembler.tree.builder import TreeBuilder, arrange, tar_name
from assembler.tree.entry import Content, Entry, Kind, Slice


def file(path: str, data: bytes = b"", mode: int = 0o644) -> Entry:
    return Entry(path=path, kind="file", mode=mode, size=len(data), content=data)


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path=path, kind="directory", mode=mode)


def built(*entries: Entry, usr_merge: bool = True, parents: bool = True) -> tuple[Entry, ...]:
    builder = TreeBuilder("layer", usr_merge=usr_merge, parents=parents)
    for entry in entries:
        builder.add(entry, "origin")
    return builder.entries()


def paths(entries: Sequence[Entry]) -> list[str]:
    return [entry.path for entry in entries]


def test_parents_that_no_base_surely_has_are_written() -> None:
    assert paths(built(file("opt/foo/bar/x"))) == ["opt/foo", "opt/foo/bar", "opt/foo/bar/x"]
    parent = built(file("opt/foo/x"))[0]
    assert (parent.kind, parent.mode, parent.uid, parent.gid) == ("directory", 0o755, 0, 0)


def test_directories_of_every_base_are_not_written() -> None:
    tree = built(directory("usr"), directory("usr/lib"), directory("lib"), directory("tmp"), file("usr/lib/x"))
    assert paths(tree) == ["usr/lib/x"]


@pytest.mark.parametrize(
    ("given_path", "path"),
    [
        ("bin/x", "usr/bin/x"),
        ("sbin/x", "usr/sbin/x"),
        ("lib/x", "usr/lib/x"),
        ("lib64/x", "usr/lib64/x"),
        ("library/x", "library/x"),
        ("opt/lib/x", "opt/lib/x"),
        ("var/run/x", "run/x"),
        ("var/lock/x", "run/lock/x"),
        ("var/runner/x", "var/runner/x"),
    ],
)
def test_paths_go_where_the_links_of_a_merged_base_lead(given_path: str, path: str) -> None:
    assert paths(built(file(given_path)))[-1] == path


def test_without_merge_a_whole_root_keeps_its_links_and_directories() -> None:
    link = Entry(path="lib", kind="symlink", link="usr/lib")
    assert paths(built(link, directory("usr"), directory("usr/lib"), usr_merge=False)) == ["lib", "usr", "usr/lib"]


def test_a_difference_gets_no_parents() -> None:
    assert paths(built(file("opt/foo/x"), usr_merge=False, parents=False)) == ["opt/foo/x"]


def test_a_hard_link_follows_its_target_when_that_is_rewritten() -> None:
    first, second = built(file("lib/a", b"1"), Entry(path="lib/b", kind="hardlink", link="lib/a"))
    assert (first.path, second.path, second.link) == ("usr/lib/a", "usr/lib/b", "usr/lib/a")


@pytest.mark.parametrize(
    "path", ["", "/etc/x", "a/../b", "..", "./a", "a//b", "a/", "a/./b", "a\0b", ".wh.a", "d/.wh.a"]
)
def test_a_path_that_escapes_or_means_something_else_is_refused(path: str) -> None:
    with pytest.raises(UntrustedInputError, match="expected a relative path"):
        built(file(path))


@pytest.mark.parametrize("path", ["a.b", "..a", "a..", ".whx", "d/...", "a\nb", "ü"])
def test_an_unusual_path_is_kept(path: str) -> None:
    assert built(file(path))[-1].path == path


@pytest.mark.parametrize(
    ("entry", "fact"),
    [
        (Entry(path="a", kind="file"), "without content"),
        (Entry(path="a", kind="directory", size=1), "a size of 1"),
        (Entry(path="a", kind="symlink"), "a target that cannot be"),
        (Entry(path="a", kind="hardlink", link="../x"), "expected a path of the same tree"),
        (Entry(path="a", kind="directory", mode=0o40755), "permission bits"),
        (Entry(path="a", kind="directory", uid=-1), "negative"),
        (Entry(path="\udcff", kind="directory"), "not UTF-8"),
        (Entry(path="lib", kind="symlink", link="x"), "a directory of every base"),
    ],
)
def test_an_entry_that_no_layer_may_hold_is_refused_by_origin(entry: Entry, fact: str) -> None:
    with pytest.raises(UntrustedInputError, match=fact) as caught:
        built(entry)
    assert caught.value.place == "origin"


def test_a_device_is_refused() -> None:
    kind: Kind = "device"  # type: ignore[assignment]
    with pytest.raises(UntrustedInputError, match="is a device"):
        built(Entry(path="a", kind=kind))


def test_the_same_thing_twice_is_fine_wherever_its_bytes_are(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"data")
    (tmp_path / "two").write_bytes(b"--data--")
    contents: list[Content] = [b"data", tmp_path / "one", Slice(tmp_path / "two", 2, 4)]
    tree = built(*(Entry(path="a", kind="file", size=4, content=content) for content in contents))
    assert paths(tree) == ["a"]


def test_two_origins_that_disagree_are_both_named() -> None:
    builder = TreeBuilder("layer 3")
    builder.add(file("a/x", b"1"), "one.whl")
    with pytest.raises(UntrustedInputError, match=r"`a/x` .* from one\.whl and from two\.whl") as caught:
        builder.add(file("a/x", b"2"), "two.whl")
    assert caught.value.place == "layer 3"


@pytest.mark.parametrize(
    "other", [file("a", b"1", 0o755), directory("a"), Entry(path="a", kind="file", size=1, content=b"2", uid=1)]
)
def test_other_metadata_is_a_disagreement(other: Entry) -> None:
    with pytest.raises(UntrustedInputError, match="there twice and differs"):
        built(file("a", b"1"), other)


@pytest.mark.parametrize("above", [Entry(path="a", kind="symlink", link="/etc"), file("a")])
@pytest.mark.parametrize("first", [True, False])
def test_nothing_lies_below_what_is_no_directory(above: Entry, first: bool) -> None:
    below = file("a/b/passwd")
    with pytest.raises(UntrustedInputError, match="lies below `a`"):
        built(*((above, below) if first else (below, above)))


def test_a_hard_link_needs_its_target_in_the_tree() -> None:
    for link in ("missing", "d", "a"):
        with pytest.raises(UntrustedInputError, match="no file of this tree"):
            built(directory("d"), Entry(path="a", kind="hardlink", link=link))


def test_of_the_names_of_a_file_the_first_has_the_content() -> None:
    """The tree is the same whichever name was found first, so the layer is too."""
    data = file("m", b"1")
    one = built(data, Entry(path="z", kind="hardlink", link="m"), Entry(path="a", kind="hardlink", link="z"))
    other = built(file("a", b"1"), *(Entry(path=path, kind="hardlink", link="a", mode=0) for path in "mz"))
    assert one == other
    assert [(entry.path, entry.kind, entry.link) for entry in one] == [
        ("a", "file", ""),
        ("m", "hardlink", "a"),
        ("z", "hardlink", "a"),
    ]


def test_a_hard_link_to_a_symlink_is_a_symlink() -> None:
    tree = built(Entry(path="b", kind="symlink", link="x"), Entry(path="a", kind="hardlink", link="b"))
    assert [(entry.path, entry.kind, entry.link) for entry in tree] == [
        ("a", "symlink", "x"),
        ("b", "symlink", "x"),
    ]


def test_whiteouts_come_before_their_siblings() -> None:
    tree = built(
        file("d/!first"),
        directory("d"),
        Entry(path="d", kind="opaque"),
        Entry(path="d/gone", kind="whiteout"),
        Entry(path="top", kind="whiteout"),
    )
    assert [tar_name(entry) for entry in tree] == [".wh.top", "d", "d/.wh..wh..opq", "d/.wh.gone", "d/!first"]


def test_a_whiteout_needs_no_parents() -> None:
    assert [tar_name(entry) for entry in built(Entry(path="opt/a/gone", kind="whiteout"))] == ["opt/a/.wh.gone"]


def test_arrange_refuses_a_path_that_is_there_twice() -> None:
    with pytest.raises(UntrustedInputError, match="`a` is there twice"):
        arrange([file("a"), file("a")])


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in {".", ".."} and not name.startswith(".wh.")
)
_PATHS = st.lists(_NAMES, min_size=1, max_size=4).map("/".join)


@given(st.sets(_PATHS, max_size=12), st.randoms(use_true_random=False))
def test_order_of_adding_never_shows(wanted: set[str], shuffler: random.Random) -> None:
    """Files below files are left out of `wanted`, the rest builds to one tree in any order, parents first."""
    leaves = sorted(path for path in wanted if not any(other.startswith(path + "/") for other in wanted))
    entries = [file("opt/" + path, path.encode()) for path in leaves]
    expected = built(*entries)
    shuffler.shuffle(entries)
    tree = built(*entries)
    assert tree == expected
    assert [entry.path.encode() for entry in tree] == sorted(entry.path.encode() for entry in tree)
    seen = {"opt"}
    for entry in tree:
        assert entry.path.rpartition("/")[0] in seen
        seen.add(entry.path)
