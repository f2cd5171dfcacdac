"""What this host can do: where buildah's storage goes and with which driver, and how many jobs fit.

buildah runs as root, or as root of a user namespace with subordinate ids (`user_namespace`). A user who has one id
only needs `ignore_chown_errors` and a system call filter on top; both would be decided in `probe_storage`.
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

from assembler.build.runs import remove_with_mounts
from assembler.errors import NodeError
from assembler.oci.layout import write_atomically
from assembler.process import run, which

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "afs", "panfs", "pvfs2", "9p", "virtiofs")
)
_CGROUPS: Final = Path("/sys/fs/cgroup")
_UNLIMITED: Final = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where buildah keeps images and containers (`root`), its state of this boot (`runroot`), and how."""

    root: Path
    runroot: Path
    driver: str
    options: tuple[str, ...] = ()

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
        raise NodeError(
            "containers need root, or a user namespace with subordinate ids",
            hint="`buildah unshare -- assemble …` has one"
            if which("newuidmap")
            else "install the package `uidmap`, and add you to /etc/subuid",
        )
    graph = graph_directory(cache)
    graph.mkdir(parents=True, exist_ok=True, mode=0o700)
    runroot = _private_directory() / hashlib.sha256(os.fsencode(graph.resolve())).hexdigest()[:12]
    runroot.mkdir(exist_ok=True, mode=0o700)
    memory = runroot / "driver.json"
    fact = {"driver": "overlay", "kernel": platform.release(), "root": str(graph)}
    known = _remembered(memory) == fact
    if not known:
        with (graph / "probe.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = _remembered(memory) == fact or _overlay_works(graph)
            if known:  # only success is remembered: a failure may have been a full disk
                write_atomically(memory, json.dumps(fact).encode())
    return Storage(root=graph / "storage", runroot=runroot / "run", driver="overlay" if known else "vfs")


def user_namespace(argv: tuple[str, ...]) -> tuple[str, ...] | None:
    """How this program starts itself again as root of a user namespace; None when it is root already.

    buildah's mounts are seen only inside the namespace that made them, so the whole program goes in.
    """
    return None if os.geteuid() == 0 else ("buildah", "unshare", "--", *argv)


def graph_directory(cache: Path) -> Path:
    """Where buildah's storage for this cache is.

    Beside the rest of the cache, unless that is on a network file system, where no driver is safe.
    """
    cache = cache.resolve()
    if file_system(cache) not in _NETWORK_FILE_SYSTEMS:
        return cache / "containers"
    name = hashlib.sha256(os.fsencode(cache)).hexdigest()[:12]
    return owned(Path(f"/var/tmp/assemble-{_user()}")) / f"containers-{name}"  # noqa: S108  (owner is checked)


def file_system(path: Path) -> str:
    """The type of the file system that a path is (or would be) on, as mountinfo names it."""
    path = path.resolve()
    best, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape") if "\\" in before else before.split()[4])
        if len(point.parts) >= best and path.is_relative_to(point):
            best, kind = len(point.parts), after.split()[0]
    return kind


def _user() -> str:
    """The id of the user on this host, also inside a user namespace that buildah made."""
    return os.environ.get("_CONTAINERS_ROOTLESS_UID") or str(os.getuid())


def _private_directory() -> Path:
    """A directory of this node and this boot that is ours alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return owned(Path(runtime) / "assemble")
    return owned(Path(f"/tmp/assemble-{_user()}"))  # noqa: S108  (owner is checked)


def owned(path: Path) -> Path:
    """Make a directory that only this user can write; NodeError when somebody else has it or may write there."""
    path.mkdir(exist_ok=True, mode=0o700)
    status = path.lstat()
    if path.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise NodeError("expected a directory that only this user can write", place=str(path), hint="remove it")
    return path


def _remembered(memory: Path) -> object:
    """What an earlier probe found; None when there was none."""
    try:
        return json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return None


def _overlay_works(graph: Path) -> bool:
    """Make a container with a file in it; to be called by one process at a time."""
    for left in sorted(graph.glob("probe-*")):  # by one that was killed
        remove_with_mounts(left)
    with tempfile.TemporaryDirectory(dir=graph, prefix="probe-") as name:
        place = Path(name)
        storage = Storage(root=place / "root", runroot=place / "run", driver="overlay")
        buildah = ("buildah", *storage.arguments)
        made = run([*buildah, "from", "scratch"], check=False)
        if made.returncode:
            return False
        container = made.stdout.strip()
        try:
            mounted = run([*buildah, "mount", container], check=False)
            if mounted.returncode:
                return False
            (Path(mounted.stdout.strip()) / "file").write_bytes(b"")
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
