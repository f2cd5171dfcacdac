"""What `gc` frees beside the store, and what it leaves."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from support.containers import TINY, busybox, running_room, shared_directory

from assembler.build.container import kept_name
from assembler.cli import main
from assembler.gc import DAY_SECONDS
from assembler.oci.hold import hold
from assembler.oci.layout import Store
from assembler.steps.housekeeping import clear, tree_size

DAY = DAY_SECONDS
KEEP = 14 * DAY


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    Store(tmp_path / "cache/store").create()
    return tmp_path / "cache"


def old(path: Path, days: float = 90) -> Path:
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def file(path: Path, days: float = 0, size: int = 5000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return old(path, days)


def left(cache: Path) -> set[str]:
    """What is in the cache beside the store, without the directories that hold it."""
    found = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(("store/", "runs/"))}


def filled(cache: Path, days: float, suffix: str) -> None:
    """One of everything that was last used so many days ago."""
    file(cache / f"logs/{suffix}.txt", days)
    file(cache / f"memory/{suffix}.json", days)
    file(cache / f"stat/{suffix}.tree", days)
    file(cache / f"locks/{suffix}.lock.yaml", days)
    file(cache / f"sources/{suffix}/src/file", 400)
    file(cache / f"sources/{suffix}.json", days)
    file(cache / f"sources/{suffix}.lock", 400)
    file(cache / f"git/{suffix}.git/objects/pack", 400)
    file(cache / f"git/{suffix}.git/made", days)
    file(cache / f"ccache/0/1/{suffix}R", days)
    file(cache / f"kept/{suffix}/out", 400)
    old(cache / f"kept/{suffix}", days)
    file(cache / f"prepared/group/{suffix}/tree/lib.rlib", 400)
    old(cache / f"prepared/group/{suffix}", days)


def test_what_was_not_used_goes_and_the_rest_stays(cache: Path) -> None:
    filled(cache, 1, "young")
    before = left(cache)
    filled(cache, 30, "old")
    file(cache / "cargo/registry/crate", 400)
    old(cache / "cargo", 1)
    file(cache / "pip/wheel", 400)
    old(cache / "pip", 30)
    file(cache / "unknown/file", 400)
    file(cache / "ccache/stats", 400)

    planned = clear(cache, KEEP, dry_run=True)
    assert "logs/old.txt" in left(cache)
    cleared = clear(cache, KEEP)
    assert cleared == planned
    assert set(cleared.sizes) == {
        *("logs", "memory", "stat", "sources", "git", "ccache", "kept", "prepared", "pip"),
    }
    assert all(5000 <= size <= 40_000 for size in cleared.sizes.values())
    assert left(cache) - before == {
        "locks/old.lock.yaml",  # what it pins nobody else knows
        "cargo/registry/crate",  # another part of it is young
        "unknown/file",  # nobody knows whose that is
        "ccache/stats",
    }
    assert before <= left(cache)
    assert clear(cache, KEEP).size == 0


def test_pins_go_after_a_long_time(cache: Path) -> None:
    file(cache / "locks/a.lock.yaml", 100)
    assert set(clear(cache, 0).sizes) == {"locks"}


def test_with_nothing_to_keep_all_goes_that_can_be_made_again(cache: Path) -> None:
    filled(cache, 0.001, "young")
    file(cache / "ccache/ccache.conf", 0.001)
    clear(cache, 0)
    assert left(cache) == {"locks/young.lock.yaml"}
    assert not (cache / "ccache").exists()


def test_beside_a_living_run_only_loose_files_go(cache: Path) -> None:
    filled(cache, 60, "old")
    with hold(Store(cache / "store")):
        assert set(clear(cache, KEEP).sizes) == {"logs", "memory", "stat"}
        assert (cache / "sources/old/src/file").exists()
        assert (cache / "git/old.git/objects/pack").exists()
    assert set(clear(cache, KEEP).sizes) == {"sources", "git", "ccache", "kept", "prepared"}


def test_what_dead_runs_left_half_made_goes(cache: Path) -> None:
    file(cache / "sources/.abc-x1/tree/file")
    old(cache / "sources/.abc-x1", 30)
    file(cache / "git/half.git/HEAD")
    old(cache / "git/half.git", 30)
    for name in ("sources/.gc-abc", "cargo/../.gc-cargo", "git/.gc-x.git", ".gc-ccache", "kept/.gc-step"):
        file(cache / name / "file")
    clear(cache, KEEP)
    assert left(cache) == set()


def test_links_are_not_followed(cache: Path, tmp_path: Path) -> None:
    precious = file(tmp_path / "precious/file", 400)
    for name in ("logs", "sources", "git", "kept", "ccache"):
        (cache / name).mkdir()
        (cache / name / "link").symlink_to(precious.parent)
        os.utime(cache / name / "link", (1, 1), follow_symlinks=False)
    clear(cache, 0)
    assert precious.exists()


def test_a_cache_that_is_not_there_frees_nothing(tmp_path: Path) -> None:
    assert clear(tmp_path / "none", 0).size == 0
    assert not (tmp_path / "none").exists()


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    file(tmp_path / "tree/a", size=100_000)
    (tmp_path / "tree/b").hardlink_to(tmp_path / "tree/a")
    assert tree_size(tmp_path / "tree") < 150_000
    assert tree_size(tmp_path / "none") == 0


def test_the_command_says_how_much_of_what(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file(cache / "ccache/0/x", 90, size=3 << 20)
    file(cache / "logs/x.txt", 90)
    arguments = ["gc", "--cache", str(cache), "--keep-days", "7"]
    assert main([*arguments, "--dry-run"]) == 0
    assert (
        "would free 3.0 MiB: 0 blobs and 0 records (0 B), ccache (3.0 MiB), logs (8.0 KiB)"
        in capsys.readouterr().out
    )
    assert main([*arguments, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["sizes"]["ccache"] == 3 << 20
    assert counts["size"] == sum(counts["sizes"].values())
    assert main(arguments) == 0
    assert capsys.readouterr().out == "freed 0 B: 0 blobs and 0 records (0 B)\n"


@pytest.mark.tools
def test_images_and_kept_containers_go_by_their_last_use(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = busybox(shared_directory(tmp_path_factory.getbasetemp(), "busybox"))
    cache = tmp_path / "cache"
    with running_room(cache, program) as room:
        old_image = "localhost/assemble/toolchain:old"
        with pytest.raises(ValueError, match="on purpose"), room.buildah.container(TINY, "x", keep=True) as made:
            room.buildah.commit(made, old_image)
            raise ValueError("on purpose")
        with room.buildah.container(old_image, "y"):
            pass
        markers = sorted((cache / "containers/used").iterdir(), key=lambda path: path.stat().st_mtime)
        assert len(markers) == 2
        assert clear(cache, KEEP, dry_run=True).images == 0
        old(markers[-1])
        assert clear(cache, KEEP, dry_run=True).images == 1
        cleared = clear(cache, KEEP)
        assert (cleared.images, cleared.containers) == (1, 0)
        assert room.buildah.images() == (TINY,)
        assert room.buildah.containers() == (kept_name(made.name),)
        cleared = clear(cache, 0)
        assert (cleared.images, cleared.containers) == (1, 1)
        assert cleared.sizes["containers"] > 1 << 20
        assert (room.buildah.images(), room.buildah.containers()) == ((), ())
