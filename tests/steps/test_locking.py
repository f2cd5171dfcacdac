"""The lock during a run: what it answers, what it asks for again, and whom its entries belong to."""

from __future__ import annotations

from pathlib import Path

import pytest

from assembler.errors import LockError
from assembler.manifest.library import load
from assembler.manifest.lock import read_lock
from assembler.oci.platform import Platform
from assembler.steps.locking import Locking
from assembler.steps.session import Options

AMD, ARM = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")


def locking(path: Path, *update: str, locked: bool = False) -> Locking:
    options = Options(cache=path.parent / "cache", update=frozenset(update), locked=locked)
    return Locking(load(path), options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.yaml"
    path.write_text("manifest: 1\nname: m\nruntime: scratch\nplatforms: [linux/amd64, linux/arm64]\nlayers: []\n")
    return path


def ask(lock: Locking, platform: Platform, found: str) -> str:
    """What the lock answers on a platform, where the world would say `found`."""
    name = lock.name_on("runtime", platform)
    answer = lock.answer("base", name, {"platform": str(platform)}, lambda: {"digest": found})
    return str(answer["digest"])


def test_each_platform_has_an_entry(path: Path) -> None:
    lock = locking(path)
    assert [ask(lock, platform, f"{platform} 1") for platform in (AMD, ARM)] == ["linux/amd64 1", "linux/arm64 1"]
    assert [entry.name for entry in read_lock(lock.path).entries] == ["runtime", "runtime linux/arm64"]
    again = locking(path, locked=True)
    assert [ask(again, platform, "asked") for platform in (ARM, AMD)] == ["linux/arm64 1", "linux/amd64 1"]


@pytest.mark.parametrize(
    ("update", "found"),
    [
        ("*", ["2", "2"]),
        ("base", ["2", "2"]),
        ("runtime", ["2", "2"]),
        ("runtime linux/arm64", ["1", "2"]),
        ("source", ["1", "1"]),
    ],
)
def test_updates_are_of_all_platforms_or_of_one(path: Path, update: str, found: list[str]) -> None:
    for platform in (AMD, ARM):
        ask(locking(path), platform, "1")
    lock = locking(path, update)
    assert [ask(lock, platform, "2") for platform in (AMD, ARM)] == found
    assert {"runtime", "runtime linux/arm64"} <= lock.names


def test_the_first_platform_of_a_manifest_has_the_plain_name(path: Path) -> None:
    path.write_text(path.read_text().replace("linux/amd64, linux/arm64", "linux/arm64, linux/amd64"))
    lock = locking(path)
    assert (lock.name_on("x", ARM), lock.name_on("x", AMD)) == ("x", "x linux/amd64")
    path.write_text(path.read_text().replace("platforms: [linux/arm64, linux/amd64]\n", ""))
    lock = locking(path)
    assert (lock.name_on("x", ARM), lock.name_on("x", AMD)) == ("x linux/arm64", "x")


def test_locked_asks_nobody(path: Path) -> None:
    with pytest.raises(LockError, match="the lock has no answer for base `runtime`"):
        ask(locking(path, locked=True), AMD, "1")
    lock = locking(path)
    ask(lock, AMD, "1")
    with pytest.raises(LockError, match="the lock answers another request for base `runtime`"):
        locking(path, locked=True).answer("base", "runtime", {"platform": "other"}, dict)


def test_what_nobody_asks_for_goes(path: Path) -> None:
    for platform in (AMD, ARM):
        ask(locking(path), platform, "1")
    lock = locking(path)
    ask(lock, ARM, "2")
    assert lock.save(prune=True)
    assert [entry.name for entry in read_lock(lock.path).entries] == ["runtime linux/arm64"]
