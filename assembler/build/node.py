"""What this host can do: where buildah's storage goes and with which driver, and how many jobs fit.

buildah runs as root, or as root of a user namespace (`namespace.py`). In one of a single id the storage gives
every file to that id (`ignore_chown_errors`), so it is another than that of root or of subordinate ids; what runs
in its containers does so under a filter (`system_calls.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.build.local_disk import graph_directory, private_directory
from assembler.build.namespace import Identity, identity, no_way, way_in
from assembler.build.recorder import ATTRIBUTE
from assembler.build.runs import remove_with_mounts
from assembler.errors import NodeError
from assembler.oci.layout import write_atomically
from assembler.process import run, which

_CGROUPS: Final = Path("/sys/fs/cgroup")
_UNLIMITED: Final = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where buildah keeps images and containers (`root`), its state of this boot (`runroot`), and how.

    `identity` says whose ids its files can have.
    """

    root: Path
    runroot: Path
    driver: str
    options: tuple[str, ...] = ()
    identity: Identity = "root"

    @property
    def arguments(self) -> tuple[str, ...]:
        """buildah's global options for this storage."""
        places = ("--root", str(self.root), "--runroot", str(self.runroot), "--storage-driver", self.driver)
        return (*places, *(part for option in self.options for part in ("--storage-opt", option)))


def probe_storage(cache: Path) -> Storage:
    """The storage of a cache directory, with the kernel's overlay where that works, else with copies (vfs).

    What works is found by doing it, once a boot. NodeError without buildah, or without the rights it needs.
    """
    if which("buildah") is None:
        raise NodeError("`buildah` is not installed, or not on PATH", hint="install the package `buildah`")
    if os.geteuid() != 0:
        way = way_in()
        if way.identity is None:
            raise no_way(way)
        raise NodeError(
            "containers need root, or to be root of a user namespace",
            hint="`assemble MANIFEST` goes there by itself; from Python, start as `buildah unshare -- python …`",
        )
    ids = identity()
    graph = graph_directory(cache, ids)
    graph.mkdir(parents=True, exist_ok=True, mode=0o700)
    runroot = private_directory() / hashlib.sha256(os.fsencode(graph.resolve())).hexdigest()[:12]
    runroot.mkdir(exist_ok=True, mode=0o700)
    return _storage(graph, runroot, _remembered_driver(graph, runroot, ids), ids)


def _remembered_driver(graph: Path, runroot: Path, ids: Identity) -> str:
    memory = runroot / "driver.json"
    fact = {"driver": "overlay", "kernel": platform.release(), "root": str(graph), "ids": ids}
    known = _remembered(memory) == fact
    if not known:
        with (graph / "probe.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = _remembered(memory) == fact or _overlay_works(graph, ids)
            if known:  # only success is remembered: a failure may have been a full disk
                write_atomically(memory, json.dumps(fact).encode())
    return "overlay" if known else "vfs"


def probe_driver(graph: Path, ids: Identity) -> str:
    """The driver that a storage in this directory, which need not be there, would have; tried, not remembered."""
    there = next(place for place in (graph, *graph.parents) if place.is_dir())
    with tempfile.TemporaryDirectory(dir=there, prefix=".assemble-probe-", ignore_cleanup_errors=True) as name:
        return "overlay" if _overlay_works(Path(name), ids) else "vfs"


def surroundings() -> dict[str, str]:
    """Variables for buildah, which refuses any work when the file of logins that one names is not there."""
    named = os.environ.get("REGISTRY_AUTH_FILE")
    return {"REGISTRY_AUTH_FILE": ""} if named and not Path(named).exists() else {}


def _storage(graph: Path, runroot: Path, driver: str, ids: Identity) -> Storage:
    options = (f"{driver}.ignore_chown_errors=true",) if ids == "one" else ()
    return Storage(root=graph / "storage", runroot=runroot / "run", driver=driver, options=options, identity=ids)


def _remembered(memory: Path) -> object:
    """What an earlier probe found; None when there was none."""
    try:
        return json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return None


def _overlay_works(graph: Path, ids: Identity) -> bool:
    """Make a container with a file in it; to be called by one process at a time."""
    for left in sorted(graph.glob("probe-*")):  # by one that was killed
        remove_with_mounts(left)
    with tempfile.TemporaryDirectory(dir=graph, prefix="probe-") as name:
        place = Path(name)
        storage = _storage(place, place, "overlay", ids)
        buildah = ("buildah", *storage.arguments)
        made = run([*buildah, "from", "scratch"], env=surroundings(), check=False)
        if made.returncode:
            return False
        container = made.stdout.strip()
        try:
            mounted = run([*buildah, "mount", container], check=False)
            if mounted.returncode:
                return False
            file = Path(mounted.stdout.strip()) / "file"
            file.write_bytes(b"")
            if ids == "one":
                os.setxattr(file, ATTRIBUTE, b"0:0")
        except OSError:
            return False
        finally:
            run([*buildah, "rm", container], check=False)
            # The driver leaves its directory bound to itself.
            run(["umount", str(storage.root / "overlay")], check=False)
    return True


# what jobs may use


def processors(cgroups: Path = _CGROUPS) -> int:
    """The cores that we may use: by the affinity of this process, and the quota of its cgroup."""
    return min(len(os.sched_getaffinity(0)), cpu_limit(cgroups))


def cpu_limit(cgroups: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores by the quota of our cgroup and those above it, at least 1; a large number without one.

    A quota of less than a core more counts as a core: 2.5 cores are 3 jobs that sometimes wait.
    """
    limit = _UNLIMITED
    for directory in _levels(cgroups, membership, "cpu"):
        words = _words(directory / "cpu.max")  # version 2: QUOTA PERIOD
        if len(words) != 2:
            words = _words(directory / "cpu.cfs_quota_us") + _words(directory / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            limit = min(limit, max(1, -(-int(words[0]) // int(words[1]))))
    return limit


def memory_bytes(cgroups: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Memory that our cgroup may use, or that of the host where that is less."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for directory in _levels(cgroups, membership, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            words = _words(directory / name)
            if words and words[0].isdigit():
                limit = min(limit, int(words[0]))
    return limit


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _levels(cgroups: Path, membership: Path, controller: str) -> list[Path]:
    """The directories of our cgroup and those above it, for a controller: version 2, else version 1 (cgroups(7)).

    Inside a container the path of /proc/self/cgroup may be the host's; then the root of what is mounted holds.
    """
    found = []
    for line in _lines(membership):
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        bases = [cgroups / name for name in (names, controller)] if names else [cgroups, cgroups / "unified"]
        for base in bases:
            parts = [part for part in path.split("/") if part not in ("", "..")]
            found += [base.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return [directory for directory in dict.fromkeys(found) if directory.is_dir()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
