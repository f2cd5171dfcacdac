"""Choosing and placing what a `copy` or `files` layer ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from assembler.errors import ManifestError
from assembler.manifest.models import Copy, FileEntry
from assembler.steps.layers import copied, file_entries, select
from assembler.tree.entry import Entry

TREE = (
    Entry(path="bin", kind="directory", mode=0o755),
    Entry(path="bin/server", kind="file", mode=0o755, size=1, content=b"s"),
    Entry(path="bin/liba.so", kind="symlink", mode=0o777, link="liba.so.1"),
    Entry(path="bin/liba.so.1", kind="file", size=1, content=b"a"),
    Entry(path="share", kind="directory", mode=0o755),
    Entry(path="share/doc", kind="directory", mode=0o755),
    Entry(path="share/doc/x", kind="file", size=1, content=b"x"),
    Entry(path="share/doc/y", kind="hardlink", link="share/doc/x"),
)


def copy(to: str, path: str | None = None, **fields: object) -> Copy:
    return Copy.model_validate({"source": "tree", "to": to, **({"path": path} if path else {}), **fields})


def placed(entry: Copy) -> dict[str, Entry]:
    return {found.path: found for found in copied(TREE, entry, "m.yaml:1:1") if found.kind != "directory"}


@pytest.mark.parametrize(
    ("to", "path", "expected"),
    [
        (
            "/opt/",
            None,
            ["opt/bin/liba.so", "opt/bin/liba.so.1", "opt/bin/server", "opt/share/doc/x", "opt/share/doc/y"],
        ),
        ("/opt/", "bin", ["opt/liba.so", "opt/liba.so.1", "opt/server"]),
        ("/opt/", "bin/server", ["opt/server"]),
        ("/opt/main", "bin/server", ["opt/main"]),
        ("/opt/", "bin/*.so*", ["opt/liba.so", "opt/liba.so.1"]),
        ("/opt/", "share/*", ["opt/doc/x", "opt/doc/y"]),
        ("/", "bin/server", ["server"]),
    ],
)
def test_what_goes_where(to: str, path: str | None, expected: list[str]) -> None:
    assert sorted(placed(copy(to, path))) == expected


def test_hard_links_follow_their_target() -> None:
    assert placed(copy("/opt/", "share/doc"))["opt/y"].link == "opt/x"
    assert placed(copy("/opt/"))["opt/share/doc/y"].link == "opt/share/doc/x"


def test_a_hard_link_without_its_first_name_is_the_file() -> None:
    found = placed(copy("/opt/", "share/doc/y"))["opt/y"]
    assert (found.kind, found.content) == ("file", b"x")


def test_owner_and_mode_of_a_copy() -> None:
    found = placed(copy("/opt/main", "bin/server", mode="0500", user="7", group="8"))["opt/main"]
    assert (found.mode, found.uid, found.gid) == (0o500, 7, 8)


def test_a_path_that_matches_nothing_names_itself() -> None:
    with pytest.raises(ManifestError, match="`lib/\\*` matches nothing"):
        select(TREE, "lib/*", "m.yaml:3:5")


def test_files_of_each_kind(tmp_path: Path) -> None:
    (tmp_path / "motd").write_text("hello\n")
    items = [
        FileEntry.model_validate(value)
        for value in (
            {"path": "/etc/a", "content": "x", "mode": "0600"},
            {"path": "/etc/b", "from_file": "motd"},
            {"path": "/srv/data", "directory": "true", "user": "5"},
            {"path": "/usr/bin/c", "link": "../lib/c"},
        )
    ]
    found = {entry.path: entry for entry in file_entries(items, tmp_path, "m.yaml")}
    assert (found["etc/a"].content, found["etc/a"].mode) == (b"x", 0o600)
    assert found["etc/b"].content == b"hello\n"
    assert (found["srv/data"].kind, found["srv/data"].uid) == ("directory", 5)
    assert found["usr/bin/c"].link == "../lib/c"


def test_a_directory_of_the_base_is_not_written() -> None:
    """A directory entry `lib` would replace a usr-merged base's symlink; files go to `usr/lib` instead."""
    entries = copied((Entry(path="x", kind="file", size=1, content=b"x"),), copy("/lib/"), "m.yaml")
    assert [entry.path for entry in entries] == ["usr/lib/x"]
