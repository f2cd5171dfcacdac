"""Places on this node's own disk: for buildah's storage, which no network file system can hold, and for its state.

What a place is good for is found by trying it: its file system's type and flags, room, and whether a file there
can have extended attributes of the user's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from assembler.build.namespace import Identity, identity
from assembler.errors import NodeError, refused
from assembler.units import size_text

NETWORK_FILE_SYSTEMS: Final = frozenset(
    ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "afs", "panfs", "pvfs2", "9p", "virtiofs")
)
_ROOM: Final = 10 << 30
_VARIABLES: Final = ("SLURM_TMPDIR", "LOCAL_SCRATCH", "TMPDIR")
_USUAL: Final = ("/var/tmp", "/tmp", "/local/scratch", "/localscratch", "/scratch/local", "/local", "/scratch")  # noqa: S108
_ATTRIBUTE: Final = "user.assemble.probe"


def graph_directory(cache: Path, ids: Identity | None = None) -> Path:
    """Where buildah's storage for this cache is; that of a single id is apart from the others.

    Beside the rest of the cache, unless containers cannot be there (`unfit`): then in the first place on this
    node's disk that has room, or the one with most of it. NodeError when there is none.
    """
    cache = cache.resolve()
    ids = ids or identity()
    kind = "containers-one" if ids == "one" else "containers"
    if not unfit(cache, ids):
        return cache / kind
    name = f"{kind}-{hashlib.sha256(os.fsencode(cache)).hexdigest()[:12]}"
    ours = f"assemble-{user()}"
    places = local_places()
    for place in places:  # where it was before: another would begin with nothing
        if (place / ours / name).is_dir() and not unfit(place, ids):
            return owned(place / ours) / name
    fit = [place for place in places if not unfit(place, ids)]
    if not fit:
        raise NodeError(
            "no disk of this node can hold containers",
            place=str(cache),
            hint="`--cache DIR`, or TMPDIR, can name a directory on a local file system",
            detail=[f"{place}: {unfit(place, ids)}" for place in (cache, *places)],
        )
    roomy = [place for place in fit if free_bytes(place) >= _ROOM]
    return owned((roomy or sorted(fit, key=free_bytes, reverse=True))[0] / ours) / name


def local_places() -> list[Path]:
    """Directories where this node may have a disk of its own, best first."""
    named = [os.environ[name] for name in _VARIABLES if os.environ.get(name, "").startswith("/")]
    # /var/tmp outlives a job and a boot, and $TMPDIR often does not.
    paths = [Path(text) for text in (_USUAL[0], *named, *_USUAL[1:])]
    return [path for path in dict.fromkeys(paths) if path.is_dir() and os.access(path, os.W_OK | os.X_OK)]


def unfit(directory: Path, ids: Identity) -> str:
    """Why containers cannot be in a directory (that is, or is to be); nothing when they can."""
    there = next(place for place in (directory, *directory.parents) if place.exists())
    kind = file_system(there)
    if kind in NETWORK_FILE_SYSTEMS:
        return f"{kind} is a network file system"
    if os.statvfs(there).f_flag & os.ST_NOEXEC:
        return "it is mounted noexec"
    if ids == "one" and (trouble := _attribute_trouble(there)):
        return f"files cannot have attributes there ({trouble})"
    return ""


def _attribute_trouble(directory: Path) -> str:
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".assemble-") as file:
            os.setxattr(file.name, _ATTRIBUTE, b"1")
    except OSError as error:
        return refused(error)
    return ""


def free_bytes(directory: Path) -> int:
    """Room that this user has in a directory."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def room_text(directory: Path) -> str:
    """The type of a directory's file system, and the room there: `ext4, 40 GiB free`."""
    return f"{file_system(directory)}, {size_text(free_bytes(directory))} free"


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


def user() -> str:
    """The id of the user on this host, also inside a user namespace."""
    return os.environ.get("_CONTAINERS_ROOTLESS_UID") or str(os.getuid())


def private_directory(places: Sequence[Path] | None = None) -> Path:
    """A directory of this node and this boot that is ours alone.

    In $XDG_RUNTIME_DIR, which in a job is often set but not there; else in the first place that can be written.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return owned(Path(runtime) / "assemble")
    usual = [Path("/tmp"), *local_places()] if places is None else places  # noqa: S108  (the owner is checked)
    for place in usual:
        with contextlib.suppress(OSError):
            return owned(place / f"assemble-{user()}")
    raise NodeError("no directory for temporary files can be written", hint="TMPDIR can name one")


def owned(path: Path) -> Path:
    """Make a directory that only this user can write; NodeError when somebody else has it or may write there."""
    path.mkdir(exist_ok=True, mode=0o700)
    status = path.lstat()
    if path.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise NodeError("expected a directory that only this user can write", place=str(path), hint="remove it")
    return path


def graph_directories(cache: Path) -> Iterator[Path]:
    """Storages of this cache that are there, of whatever identity."""
    for ids in ("ranges", "one"):
        with contextlib.suppress(NodeError):
            if (graph := graph_directory(cache, ids)).is_dir():
                yield graph
