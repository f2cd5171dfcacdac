"""Where buildah's storage and state go: never on a network file system, nor where nothing can be started."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from assembler.build import local_disk
from assembler.build.local_disk import graph_directory, local_places, private_directory, unfit
from assembler.errors import NodeError


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache on NFS, and three places that are directories below `tmp_path`."""
    for name in ("home", "small", "large", "lustre"):
        (tmp_path / name).mkdir()
    kinds = {"home": "nfs4", "lustre": "lustre"}
    monkeypatch.setattr(
        local_disk, "file_system", lambda path: kinds.get(path.resolve().relative_to(tmp_path).parts[0], "ext4")
    )
    monkeypatch.setattr(local_disk, "free_bytes", lambda path: (40 if "large" in path.parts else 1) << 30)
    monkeypatch.setattr(
        local_disk, "local_places", lambda: [tmp_path / name for name in ("lustre", "small", "large")]
    )
    return tmp_path


def test_a_local_cache_keeps_its_containers(tmp_path: Path) -> None:
    assert graph_directory(tmp_path, "root") == tmp_path / "containers"
    assert graph_directory(tmp_path, "ranges") == tmp_path / "containers"
    assert graph_directory(tmp_path, "one") == tmp_path / "containers-one"


def test_a_cache_on_a_network_file_system_has_them_where_there_is_room(disks: Path) -> None:
    found = graph_directory(disks / "home/cache", "ranges")
    assert found.parent == disks / f"large/assemble-{local_disk.user()}"
    assert found.name.startswith("containers-")
    assert found.parent.stat().st_mode & 0o777 == 0o700
    assert graph_directory(disks / "home/other", "ranges").name != found.name


def test_what_is_there_is_used_again_whatever_room_there_is(disks: Path) -> None:
    name = graph_directory(disks / "home/cache", "ranges").name
    before = disks / f"small/assemble-{local_disk.user()}" / name
    before.mkdir(parents=True)
    before.parent.chmod(0o700)
    assert graph_directory(disks / "home/cache", "ranges") == before


def test_the_roomiest_is_taken_where_none_has_enough(disks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_disk, "free_bytes", lambda path: (2 if "large" in path.parts else 1) << 30)
    assert "large" in graph_directory(disks / "home/cache", "root").parts


def test_no_disk_at_all_is_an_error_with_every_reason(disks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_disk, "local_places", lambda: [disks / "lustre"])
    with pytest.raises(NodeError, match="no disk of this node") as caught:
        graph_directory(disks / "home/cache", "root")
    assert caught.value.detail == (
        f"{disks}/home/cache: nfs4 is a network file system",
        f"{disks}/lustre: lustre is a network file system",
    )


def test_where_nothing_can_be_started_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert unfit(tmp_path, "root") == "it is mounted noexec"


def test_one_id_needs_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    assert unfit(tmp_path, "ranges") == ""
    assert unfit(tmp_path, "one") == "files cannot have attributes there (operation not supported)"
    assert list(tmp_path.iterdir()) == []


def test_places_that_variables_name_come_after_the_lasting_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", "relative")
    assert local_places()[:2] == [Path("/var/tmp"), tmp_path]


def test_a_runtime_directory_that_is_not_there_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    (tmp_path / "file").touch()
    assert private_directory([tmp_path / "file", tmp_path]) == tmp_path / f"assemble-{local_disk.user()}"
    with pytest.raises(NodeError, match="temporary files"):
        private_directory([tmp_path / "file"])
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    assert private_directory() == tmp_path / "runtime/assemble"
