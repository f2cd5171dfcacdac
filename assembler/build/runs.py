"""Runs: what one process of ours has under way on this host, and clearing up after those that died.

    CACHE/runs/ID/lock       held with flock for as long as the run lives; the kernel drops it with the process
    CACHE/runs/ID/children   process id and start time of every child that leads a session
    CACHE/runs/ID/scratch/   room that goes with the run
    CACHE/logs/              logs, which stay

An ID begins with the name of the host, because a lock on a shared file system may say nothing about other hosts.
Working containers carry the ID in their name. After `kill -9`, or a power cut, the next run on the host finds the
lock free and takes away what was left: processes, mounts, containers, scratch. A living run is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from assembler.process import children_file, run, which

PREFIX: Final = "assemble-"
_ID: Final = re.compile(r"[a-z0-9]+-[0-9a-f]+-[0-9a-f]+")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_PATIENCE_SECONDS: Final = 3.0


class RunDirectory:
    """The directory of this run; a context manager that removes it at the end."""

    def __init__(self, cache: Path, identifier: str, lock: int) -> None:
        self.cache = cache
        self.id = identifier
        self.path = cache / "runs" / identifier
        self._lock = lock

    @classmethod
    def create(cls, cache: Path) -> RunDirectory:
        """A new run; its lock is held until it is closed or the process ends."""
        runs = cache.resolve() / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        identifier = f"{_host()}-{os.getpid():x}-{time.time_ns():x}"
        temporary = runs / f".{identifier}"
        temporary.mkdir(mode=0o700)
        lock = os.open(temporary / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary.rename(runs / identifier)
        children_file(runs / identifier / "children")
        return cls(runs.parent, identifier, lock)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        children_file(None)
        remove_run(self.path)
        os.close(self._lock)

    def container_name(self, label: str) -> str:
        """The name of a working container of this run; different for each call."""
        plain = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "step"
        return f"{PREFIX}{self.id}-{plain}-{time.monotonic_ns():x}"

    def scratch(self, label: str) -> Path:
        """A new, empty directory that goes with the run."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label)
        path = self.path / "scratch" / f"{plain}-{time.monotonic_ns():x}"
        path.mkdir(parents=True)
        return path

    def log(self, label: str, key: str) -> Path:
        """The log file of a step, new and empty; logs outlive their run."""
        path = self.cache / "logs" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}-{key[:12]}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path


def _host() -> str:
    return re.sub(r"[^a-z0-9]", "", socket.gethostname().partition(".")[0].lower()) or "host"


def run_of_container(name: str) -> str | None:
    """The ID of the run whose working container has this name, or None when it is no run's."""
    found = _ID.match(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    return found[0] if found else None


def started(identifier: str) -> float:
    """When a run began, in seconds since 1970, by its ID."""
    return int(identifier.rpartition("-")[2], 16) / 1e9


def is_over(cache: Path, identifier: str) -> bool:
    """Did the run of this ID end? One of another host counts as going on."""
    if not identifier.startswith(f"{_host()}-"):
        return False
    try:
        with (cache / "runs" / identifier / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True


def sweep(cache: Path, remove_containers: Callable[[str], None]) -> tuple[str, ...]:
    """Take away what dead runs of this host left; their IDs. `remove_containers` is called with each ID.

    Processes end first, since they hold the mounts; the run's directory goes last, so that a sweep that is
    interrupted is done again.
    """
    swept = []
    for path in dead_runs(cache):
        end_children(path)
        end_inhabitants(path)
        unmount_below(path)
        remove_containers(path.name)
        remove_run(path)
        swept.append(path.name)
    return tuple(swept)


def dead_runs(cache: Path) -> Iterator[Path]:
    """Directories of runs of this host whose process has ended; each is locked by us while it is looked at."""
    try:
        paths = sorted((cache.resolve() / "runs").iterdir())
    except OSError:
        return
    for path in paths:
        if not path.name.startswith(f"{_host()}-"):
            continue
        with contextlib.suppress(OSError), (path / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path


def end_children(path: Path) -> None:
    """End the child sessions of a dead run. A pid that meanwhile is another process (by start time) is left."""
    try:
        lines = (path / "children").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        pid, _, started = line.partition(" ")
        if pid.isdigit() and started and start_time(int(pid)) == started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(pid), signal.SIGKILL)


def end_inhabitants(directory: Path) -> None:
    """End every process whose root is below `directory`, and wait until they are gone.

    buildah makes a container's root below its temporary directory, which for ours is one of the run. So this finds
    also what left its session, such as a compiler's server that went into the background.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while found := _inhabitants(directory):
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return
        time.sleep(0.02)


def _inhabitants(directory: Path) -> list[int]:
    prefix = f"{directory}/"
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208  (hundreds of names, at the end of every command)
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/root").startswith(prefix):  # noqa: PTH115
                    found.append(int(name))
    return found


def start_time(pid: int) -> str | None:
    """When a process began, in the kernel's ticks since boot (proc(5), field 22 of stat); None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def mounts_below(directory: Path) -> list[Path]:
    """Mount points below a directory, deepest first."""
    prefix = f"{directory}/"
    found = []
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        place = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), line.split()[4])
        if place.startswith(prefix):
            found.append(Path(place))
    return sorted(found, reverse=True)


def unmount_below(directory: Path) -> None:
    """Take away all mounts below a directory, busy ones too; what cannot be taken away stays."""
    for mount in mounts_below(directory):
        if which("umount"):
            run(["umount", "--lazy", str(mount)], check=False)


def remove_with_mounts(directory: Path) -> None:
    """Delete a directory that nobody uses any more, in which things may still be mounted."""
    unmount_below(directory)
    remove_run(directory)


def remove_run(path: Path) -> None:
    """Delete what a run left on disk, unless something is still mounted in it."""
    if not mounts_below(path):
        shutil.rmtree(path, ignore_errors=True)
