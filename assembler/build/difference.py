"""What a command changed in a root file system, as the entries of a layer.

The kernel's overlay keeps what was touched in an upper directory, but touched is not changed: a file that was
opened for writing, had its mode set to what it was, or was replaced by an equal one is there in full. And with the
vfs driver there is no upper directory at all. So both are answered by comparison: the upper directory, where there
is one, only says where to look, and the answer is the same with and without it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from assembler.build.normalise import is_dropped, normalise
from assembler.build.owners import Owner, ReadOwner, owner_on_disk, unknown_owners
from assembler.errors import NodeError, UntrustedInputError, refused
from assembler.tree.builder import fault_of
from assembler.tree.entry import Entry

_CHUNK: Final = 1 << 20
_WHITEOUT: Final = ".wh."
_WHOLE: Final = frozenset(
    f"{space}.{name}"
    for space in ("trusted.overlay", "user.overlay", "user.fuseoverlayfs")
    for name in ("opaque", "redirect")
)
"""Marks of directories in an upper directory that do not list all that differs below them."""
_DRIVERS: Final = ("user.overlay.", "user.fuseoverlayfs.", "user.containers.", "user.assemble.")
_ROOT: Final[Owner] = (0, 0)
_MACHINE_ID: Final = "etc/machine-id"


def difference(
    lower: Path,
    upper: Path,
    candidates: Path | None = None,
    *,
    epoch: int = 0,
    lower_owner: ReadOwner = owner_on_disk,
    upper_owner: ReadOwner = owner_on_disk,
) -> tuple[Entry, ...]:
    """The entries that make the root `upper` out of the root `lower`, normalised, sorted by path.

    Both are mounted roots. `candidates` is the upper directory of the overlay that `upper` is the mount of, or
    None for a walk of both roots. An entry is there only if type, mode, owner, link target, extended attributes
    or content really differ; times do not count. What is gone becomes a whiteout, the topmost path only. Sockets,
    named pipes and devices are left out: a layer does not hold them. `epoch` is the time that the packer will
    stamp (see `normalise`). The two owners say whose a path of each root is, where the file system does not know.

    Contents are paths below `upper` and so only valid while it is mounted.

    Raises UntrustedInputError for a name that no layer can hold, NodeError when something cannot be read,
    StepError when it is not known whose a new file would be.
    """
    comparison = _Comparison(lower, upper, lower_owner, upper_owner)
    try:
        found = list(comparison.directory("", candidates))
        entries = normalise(_linked(found), epoch=epoch)
        if os.path.lexists(lower / _MACHINE_ID):
            entries = tuple(entry for entry in entries if entry.path != _MACHINE_ID)
    except OSError as error:
        raise NodeError(f"cannot be compared: {refused(error)}", place=str(error.filename or upper)) from error
    kept = {entry.path for entry in entries}
    if unknown := [path for path in comparison.unknown if path in kept]:
        raise unknown_owners(unknown)
    for entry in entries:
        if fault := fault_of(entry):
            raise UntrustedInputError(fault, place="the file system of the container")
    return tuple(sorted(entries, key=lambda entry: os.fsencode(entry.path)))


_Found = tuple[Entry, tuple[int, int] | None]
"""An entry, and the inode of a file with several names."""


class _Comparison:
    def __init__(self, lower: Path, upper: Path, lower_owner: ReadOwner, upper_owner: ReadOwner) -> None:
        self._lower = os.fspath(lower)
        self._upper = os.fspath(upper)
        self._lower_owner = lower_owner
        self._upper_owner = upper_owner
        self.unknown: list[str] = []
        """Paths that nobody was said to own, in a directory that may have handed its group on to them."""

    def directory(self, path: str, candidates: Path | None) -> Iterator[_Found]:
        """What differs below a directory that both roots have; all names count without `candidates`."""
        below = self._names(path) if candidates is None else _candidate_names(candidates)
        for name in sorted(below):
            yield from self._path(f"{path}/{name}" if path else name, candidates and candidates / name)

    def _names(self, path: str) -> set[str]:
        return {*_listed(self._at(self._lower, path)), *_listed(self._at(self._upper, path))}

    @staticmethod
    def _at(root: str, path: str) -> str:
        return f"{root}/{path}"

    def _path(self, path: str, candidate: Path | None) -> Iterator[_Found]:
        old, new = _status(self._at(self._lower, path)), _status(self._at(self._upper, path))
        is_directory = new is not None and stat.S_ISDIR(new.st_mode)
        was_directory = old is not None and stat.S_ISDIR(old.st_mode)
        if is_dropped(path, directory=is_directory or (new is None and was_directory)):
            return
        if new is None or not _holdable(new):
            if old is not None and (new is None or _holdable(old)):
                yield Entry(path=path, kind="whiteout"), None
            return
        if old is None or not is_directory or not was_directory:
            yield from self._added(path, old, new)
            return
        if self._metadata_differs(path, old, new):
            yield self._entry(path, new)
        yield from self.directory(path, candidate if candidate and _lists_all(candidate) else None)

    def _added(self, path: str, old: os.stat_result | None, new: os.stat_result) -> Iterator[_Found]:
        """A path that is new, of another type, or a changed file; a new directory with all that is in it.

        An entry of another type replaces what was there (image-spec layer.md): no whiteout is needed.
        """
        if old is None or stat.S_IFMT(old.st_mode) != stat.S_IFMT(new.st_mode) or self._differs(path, old, new):
            yield self._entry(path, new)
        if stat.S_ISDIR(new.st_mode):
            for name in sorted(_listed(self._at(self._upper, path))):
                below = f"{path}/{name}"
                status = os.lstat(self._at(self._upper, below))
                if _holdable(status) and not is_dropped(below, directory=stat.S_ISDIR(status.st_mode)):
                    yield from self._added(below, None, status)

    def _differs(self, path: str, old: os.stat_result, new: os.stat_result) -> bool:
        """Do two files or two links differ?"""
        one, other = self._at(self._lower, path), self._at(self._upper, path)
        if stat.S_ISLNK(new.st_mode):
            # A link's own mode says nothing.
            return (
                self._owner_differs(path, old, new)
                or _target(one) != _target(other)
                or _xattrs(one) != _xattrs(other)
            )
        if old.st_size != new.st_size or self._metadata_differs(path, old, new):
            return True
        return not _same_bytes(one, other)

    def _metadata_differs(self, path: str, old: os.stat_result, new: os.stat_result) -> bool:
        if old.st_mode != new.st_mode or self._owner_differs(path, old, new):
            return True
        return _xattrs(self._at(self._lower, path)) != _xattrs(self._at(self._upper, path))

    def _owner_differs(self, path: str, old: os.stat_result, new: os.stat_result) -> bool:
        before = self._lower_owner(self._at(self._lower, path), old)
        after = self._upper_owner(self._at(self._upper, path), new)
        return (before or _ROOT) != (after or _ROOT)

    def _entry(self, path: str, status: os.stat_result) -> _Found:
        place = self._at(self._upper, path)
        owner = self._upper_owner(place, status)
        if owner is None and self._hands_on(path.rpartition("/")[0]):
            self.unknown.append(path)
        uid, gid = owner or _ROOT
        entry = Entry(
            path=path,
            kind="directory",
            mode=stat.S_IMODE(status.st_mode),
            uid=uid,
            gid=gid,
            xattrs=_xattrs(place),
        )
        if stat.S_ISDIR(status.st_mode):
            return entry, None
        if stat.S_ISLNK(status.st_mode):
            return replace(entry, kind="symlink", mode=0o777, link=_target(place)), None
        inode = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
        return replace(entry, kind="file", size=status.st_size, content=Path(place)), inode

    def _hands_on(self, directory: str) -> bool:
        """Does a directory give its group, which is not root's, to what is made in it?"""
        place = self._at(self._upper, directory)
        status = os.lstat(place)
        return bool(status.st_mode & stat.S_ISGID) and bool((self._upper_owner(place, status) or _ROOT)[1])


def _linked(found: list[_Found]) -> Iterator[Entry]:
    """The entries, where a later name of a file that is already there is a hard link to the first."""
    first: dict[tuple[int, int], str] = {}
    for entry, inode in sorted(found, key=lambda item: os.fsencode(item[0].path)):
        leader = first.setdefault(inode, entry.path) if inode else entry.path
        if leader == entry.path:
            yield entry
        else:
            yield replace(entry, kind="hardlink", size=0, content=None, link=leader)


def _candidate_names(directory: Path) -> set[str]:
    """Names that an upper directory touches. fuse-overlayfs may write a deletion as a file `.wh.NAME`."""
    return {name.removeprefix(_WHITEOUT) for name in _listed(directory) if not name.startswith(".wh..wh.")}


def _lists_all(directory: Path) -> bool:
    """Is this a directory of the upper one that names everything that differs below it?

    Not so when it is opaque (it replaced the lower one), renamed, or not there.
    """
    status = _status(os.fspath(directory))
    if status is None or not stat.S_ISDIR(status.st_mode):
        return False
    if os.path.lexists(directory / ".wh..wh..opq"):
        return False
    return not _WHOLE & set(os.listxattr(directory, follow_symlinks=False))


def _listed(directory: str | Path) -> list[str]:
    return os.listdir(directory)  # noqa: PTH208  (names, not paths)


def _target(link: str) -> str:
    return os.readlink(link)  # noqa: PTH115  (as it is stored; a Path would tidy it)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _holdable(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)


def _xattrs(path: str) -> dict[str, bytes]:
    """What an image carries: file capabilities and the user's own attributes, not the driver's or the host's."""
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if name == "security.capability" or (name.startswith("user.") and not name.startswith(_DRIVERS))
    }


def _same_bytes(one: str, other: str) -> bool:
    with open(one, "rb", buffering=0) as first, open(other, "rb", buffering=0) as second:  # noqa: PTH123  (speed)
        mine, theirs = bytearray(_CHUNK), bytearray(_CHUNK)
        while amount := first.readinto(mine):
            # A short read of one side is completed by reading exactly as much of the other.
            done = 0
            while done < amount:
                more = second.readinto(memoryview(theirs)[done:amount])
                if not more:
                    return False
                done += more
            if mine[:amount] != theirs[:amount]:
                return False
        return not second.read(1)
