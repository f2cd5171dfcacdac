"""What compile steps keep for later ones: found by key, begun from a neighbour, never half there, not for ever."""

from __future__ import annotations

import os
from pathlib import Path

from assembler.build.prepared import PreparedBuild


def tree(directory: Path, text: str) -> Path:
    (directory / "release/deps").mkdir(parents=True)
    (directory / "release/deps/one.rlib").write_text(text)
    os.utime(directory / "release/deps/one.rlib", (1, 1))
    (directory / "release/link").symlink_to("deps")
    return directory


def test_what_was_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    place = PreparedBuild.of(tmp_path / "cache", ["image", {"A": "b"}], "lock")
    assert place.restore(tmp_path / "nothing") is None
    place.store(tree(tmp_path / "made", "one"))
    assert place.restore(tmp_path / "again") is True
    file = tmp_path / "again/release/deps/one.rlib"
    assert (file.read_text(), file.stat().st_mtime) == ("one", 1), "cargo compares times"
    assert (tmp_path / "again/release/link").readlink() == Path("deps")
    file.write_text("changed")
    assert place.restore(tmp_path / "third") is True
    assert (tmp_path / "third/release/deps/one.rlib").read_text() == "one", "a copy, not the thing itself"


def test_another_key_begins_with_the_newest_of_the_group(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for number in (1, 2):
        PreparedBuild.of(cache, "group", number).store(tree(tmp_path / str(number), str(number)))
        os.utime(PreparedBuild.of(cache, "group", number).path, (number, number))
    assert PreparedBuild.of(cache, "group", 3).restore(tmp_path / "three") is False
    assert (tmp_path / "three/release/deps/one.rlib").read_text() == "2"
    assert PreparedBuild.of(cache, "other", 3).restore(tmp_path / "four") is None
    assert PreparedBuild.of(cache, "group", 1).key != PreparedBuild.of(cache, "other", 1).key


def test_the_oldest_of_a_group_goes(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    abandoned = PreparedBuild.of(cache, "group", 0).path.with_name("x.half")
    abandoned.mkdir(parents=True)
    os.utime(abandoned, (1, 1))
    for number in range(6):
        place = PreparedBuild.of(cache, "group", number)
        place.store(tree(tmp_path / str(number), str(number)))
        os.utime(place.path, (1000 + number, 1000 + number))
    there = [PreparedBuild.of(cache, "group", number).path.exists() for number in range(6)]
    assert there == [False, False, True, True, True, True]
    assert not abandoned.exists()


def test_trouble_with_the_disk_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    place = PreparedBuild.of(tmp_path / "cache", "group", 1)
    place.store(tree(tmp_path / "made", "one"))
    assert place.restore(tmp_path / "again") is None
