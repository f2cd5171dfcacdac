"""What a host can do: jobs by cgroups of both versions, and the storage that really works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.containers import empty_storage_at_the_end
from support.needs import need, need_root

from assembler.build.local_disk import file_system, owned
from assembler.build.node import cpu_limit, memory_bytes, probe_storage, processors
from assembler.errors import NodeError
from assembler.process import run

GIB = 1 << 30


def cgroups(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A made-up cgroup file system; returns the file that says where we are in it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    place = root.parent / "membership"
    place.write_text(membership)
    return place


def test_version_two_takes_the_smallest_of_all_levels(tmp_path: Path) -> None:
    files = {
        "a/b/cpu.max": "max 100000\n",
        "a/cpu.max": "250000 100000\n",
        "a/b/memory.max": f"{8 * GIB}\n",
        "a/memory.max": f"{6 * GIB}\n",
        "a/b/memory.high": "max\n",
        "cpu.stat": "",
    }
    membership = cgroups(tmp_path / "cgroup", "0::/a/b\n", files)
    assert cpu_limit(tmp_path / "cgroup", membership) == 3
    assert memory_bytes(tmp_path / "cgroup", membership) == 6 * GIB


def test_version_one(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/slurm/job/cpu.cfs_quota_us": "100000\n",
        "cpu,cpuacct/slurm/job/cpu.cfs_period_us": "100000\n",
        "memory/slurm/job/memory.limit_in_bytes": f"{3 * GIB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    text = "4:memory:/slurm/job\n3:cpu,cpuacct:/slurm/job\n2:name=systemd:/\n0::/\n"
    membership = cgroups(tmp_path / "cgroup", text, files)
    assert cpu_limit(tmp_path / "cgroup", membership) == 1
    assert memory_bytes(tmp_path / "cgroup", membership) == 3 * GIB


def test_in_a_container_the_root_of_the_mount_holds(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": f"{2 * GIB}\n", "cpu/cpu.cfs_quota_us": "-1\n"}
    text = "4:memory:/docker/0123\n3:cpu:/docker/0123\n"
    membership = cgroups(tmp_path / "cgroup", text, files)
    assert memory_bytes(tmp_path / "cgroup", membership) == 2 * GIB
    assert cpu_limit(tmp_path / "cgroup", membership) > 1000


def test_no_limits_and_nonsense(tmp_path: Path) -> None:
    membership = cgroups(tmp_path / "cgroup", "0::/../x\nnonsense\n", {"x/cpu.max": "0 0", "x/memory.max": "?"})
    assert cpu_limit(tmp_path / "cgroup", membership) > 1000
    assert memory_bytes(tmp_path / "cgroup", membership) > 0


def test_processors_are_those_of_this_process() -> None:
    assert 1 <= processors() <= len(os.sched_getaffinity(0))


def test_file_systems_by_mount() -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/proc/never/there")) == "proc"


@pytest.mark.tools
def test_the_storage_that_is_found_works(tmp_path: Path) -> None:
    need("buildah")
    need_root()
    with empty_storage_at_the_end(tmp_path):
        storage = probe_storage(tmp_path)
        assert storage == probe_storage(tmp_path)
        assert storage.root == tmp_path / "containers" / "storage"
        assert storage.driver in ("overlay", "vfs")
        assert run(["buildah", *storage.arguments, "images", "--quiet"]).stdout == ""
        assert {path.name for path in (tmp_path / "containers").iterdir()} == {"storage", "probe.lock"}
        mounts = Path("/proc/self/mountinfo").read_text()
        assert f"{tmp_path}/containers/probe-" not in mounts


@pytest.mark.tools
def test_what_a_killed_probe_left_is_taken_away(tmp_path: Path) -> None:
    need("buildah")
    need_root()
    left = tmp_path / "containers/probe-killed"
    places = ["--root", str(left / "root"), "--runroot", str(left / "run"), "--storage-driver", "overlay"]
    container = run(["buildah", *places, "from", "scratch"]).stdout.strip()
    mounted = Path(run(["buildah", *places, "mount", container]).stdout.strip())
    assert mounted.is_relative_to(left)
    with empty_storage_at_the_end(tmp_path):
        probe_storage(tmp_path)
        assert not left.exists()
        assert str(left) not in Path("/proc/self/mountinfo").read_text()


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "assemble").mkdir()
    (tmp_path / "assemble").chmod(0o777)
    with pytest.raises(NodeError, match="only this user can write"):
        owned(tmp_path / "assemble")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NodeError):
        owned(tmp_path / "link")
