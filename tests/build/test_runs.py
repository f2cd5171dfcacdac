"""Runs: locks, what a dead run leaves, and that a living one is not touched."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.needs import lacking, need_root

from assembler.build.runs import (
    RunDirectory,
    dead_runs,
    end_inhabitants,
    is_over,
    mounts_below,
    run_of_container,
    start_time,
    sweep,
)
from assembler.process import run

PROGRAM = """
import sys, time
from pathlib import Path
from assembler.build.runs import RunDirectory
from assembler.process import spawned
directory = RunDirectory.create(Path(sys.argv[1]))
(directory.scratch("room") / "file").write_text("left")
directory.log("step", "abc").write_text("kept")
with spawned(["sleep", "1000"]) as child:
    print(directory.id, child.pid, flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, int]]:
    """Another process with a run and a child, both given away as id and pid."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        identifier, pid = process.stdout.readline().decode().split()
        yield process, identifier, int(pid)
        process.kill()
        if start_time(int(pid)):
            os.killpg(int(pid), signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(pid)


def test_leaving_a_run_removes_it_and_keeps_logs(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path) as directory:
        scratch = directory.scratch("a b/c")
        assert scratch.is_dir()
        assert scratch.is_relative_to(directory.path)
        log = directory.log("server.tools", "0123456789abcdef")
        log.write_text("line")
        assert log.name == "server.tools-0123456789ab.txt"
    assert not directory.path.exists()
    assert log.read_text() == "line"


def test_names_of_containers_lead_to_their_run(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path) as directory:
        first, second = directory.container_name("Server.Tools"), directory.container_name("Server.Tools")
        assert first.startswith(f"assemble-{directory.id}-server-tools-")
        assert first != second
        assert run_of_container(first) == directory.id
    assert run_of_container("somebody-elses") is None
    assert run_of_container("kept-" + first) is None


def test_the_lock_is_not_inherited(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path) as directory:
        listed = run(["ls", "-l", "/proc/self/fd"]).stdout
        assert str(directory.path) not in listed


def test_a_living_run_is_not_touched(tmp_path: Path, other: tuple[subprocess.Popen[bytes], str, int]) -> None:
    _, identifier, pid = other
    removed: list[str] = []
    assert sweep(tmp_path, removed.append) == ()
    assert not removed
    assert not is_over(tmp_path, identifier)
    assert is_running(pid)
    assert (tmp_path / "runs" / identifier / "scratch").is_dir()


def test_what_a_killed_run_left_goes(tmp_path: Path, other: tuple[subprocess.Popen[bytes], str, int]) -> None:
    process, identifier, pid = other
    process.kill()
    process.wait()
    assert is_running(pid)
    assert is_over(tmp_path, identifier)
    removed: list[str] = []
    assert sweep(tmp_path, removed.append) == (identifier,)
    assert removed == [identifier]
    wait_until_gone(pid)
    assert not (tmp_path / "runs" / identifier).exists()
    assert (tmp_path / "logs" / "step-abc.txt").read_text() == "kept"
    assert sweep(tmp_path, removed.append) == ()


def test_a_recycled_process_id_is_left(tmp_path: Path, other: tuple[subprocess.Popen[bytes], str, int]) -> None:
    process, identifier, pid = other
    process.kill()
    process.wait()
    children = tmp_path / "runs" / identifier / "children"
    children.write_text(f"{pid} {int(start_time(pid) or 0) + 1}\nnonsense\n{2**31} 1\n")
    sweep(tmp_path, lambda _: None)
    assert is_running(pid)


def test_a_run_of_another_host_counts_as_alive(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "elsewhere-1-1"
    path.mkdir(parents=True)
    (path / "lock").touch()
    assert list(dead_runs(tmp_path)) == []
    assert not is_over(tmp_path, "elsewhere-1-1")


def test_a_dead_run_is_locked_while_it_is_looked_at(
    tmp_path: Path, other: tuple[subprocess.Popen[bytes], str, int]
) -> None:
    process, identifier, _ = other
    process.kill()
    process.wait()
    for path in dead_runs(tmp_path):
        with (path / "lock").open("rb") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert path.name == identifier
        assert list(dead_runs(tmp_path)) == []


def test_processes_by_their_root(tmp_path: Path) -> None:
    need_root()
    program = "import os, sys, time; os.chroot(sys.argv[1]); print(flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        end_inhabitants(tmp_path / "elsewhere")
        assert process.poll() is None
        end_inhabitants(tmp_path.parent)
        assert process.wait(5) == -signal.SIGKILL


def test_mounts_of_a_dead_run_are_undone(tmp_path: Path, other: tuple[subprocess.Popen[bytes], str, int]) -> None:
    process, identifier, _ = other
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("yes")
    (target,) = (tmp_path / "runs" / identifier / "scratch").iterdir()
    if run(["mount", "--bind", str(outside), str(target)], check=False).returncode:
        lacking("this user cannot mount")
    process.kill()
    process.wait()
    sweep(tmp_path, lambda _: None)
    assert mounts_below(tmp_path) == []
    assert not target.exists()
    assert (outside / "precious").read_text() == "yes"
