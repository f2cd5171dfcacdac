"""Frees what no image and no recent work needs: blobs, records, files of dead writers, directories of dead runs.

Kept are the images of `index.json` with everything that they name, the records of keys that were used within
`keep_seconds`, and what these name: a record may name a digest anywhere. The record of an image names its steps,
whose records count as used when it was. Of the steps of an image in `index.json` that was not used for longer,
the `inputs` stay: packages and archives that no mirror may have any more, so that it can be made again. Everything
else is free to go, and without `keep_seconds` these inputs too.

What a running assemble needs is never freed. The rule has two sides, and `assembler.oci.hold` is where they meet:

- A run holds the store (`hold.hold`) from before it looks at it until it is done, and `Store.has`, `Store.record`
  and `BlobWriter.commit` freshen the modification time of what they find. So a file that was last modified before
  the oldest living run began was looked at by none of them.
- `collect` asks for the store alone. If it gets it, no run is alive, none can start until it is done, and ages of
  blobs mean nothing. If not, it frees only what has been used neither since the oldest living run began nor
  within `grace_seconds`. Each such file is first renamed, then its time is read again, then it is removed: a run
  that came upon it meanwhile has freshened it, and gets it back; one that comes later finds it gone, and makes
  it again. Where the living runs are not all ours, whose files they could not freshen, no blob or record goes.

Plan and deed look anew, so that a plan that was read over for an hour frees nothing that was needed since.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assembler.errors import NodeError
from assembler.oci import hold
from assembler.oci.digest import Digest
from assembler.oci.layout import USE_SLACK_SECONDS, Store

DAY_SECONDS = 86_400.0
GRACE_SECONDS = 3600.0
_MINUTE_SECONDS = 60.0
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")
_LARGEST_DOCUMENT = 16 << 20


@dataclass(frozen=True, slots=True)
class Freeable:
    """A file or directory that can go, with its size in bytes."""

    path: Path
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """What would be freed now. `in_use` says that runs are alive, so that less is freed than could be."""

    store: Store
    runs_directory: Path | None
    keep_seconds: float
    grace_seconds: float
    in_use: bool
    blobs: tuple[Freeable, ...] = ()
    records: tuple[Freeable, ...] = ()
    temporaries: tuple[Freeable, ...] = ()
    runs: tuple[Freeable, ...] = ()

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(one.size for one in (*self.blobs, *self.records, *self.temporaries, *self.runs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """How many of each are gone, and their size in bytes."""

    blobs: int
    records: int
    temporaries: int
    runs: int
    size: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class _Limits:
    """What is used at or after these times (seconds since 1970) stays; `is_alone` is: no run is alive."""

    is_alone: bool
    blobs_before: float
    records_before: float
    temporaries_before: float


def plan_gc(
    store: Store,
    *,
    runs_directory: Path | None = None,
    keep_seconds: float = 30 * DAY_SECONDS,
    grace_seconds: float = GRACE_SECONDS,
) -> GcPlan:
    """What `collect` would free now; changes nothing. Reads the times of all files of the store, and no layer.

    `runs_directory` holds a directory for each run, which is locked through its file `lock` while the run lives.
    Working containers of dead runs have to be removed before, by who knows how to. Raises NodeError when the
    store is not ours to write.
    """
    if not store.root.exists():
        return GcPlan(
            store=store,
            runs_directory=runs_directory,
            keep_seconds=keep_seconds,
            grace_seconds=grace_seconds,
            in_use=False,
        )
    check_writable(store)
    with hold.exclusive(store) as is_alone:
        limits = _limits(store, keep_seconds, grace_seconds, is_alone=is_alone)
        records, partly = _doomed_records(store, limits, keep_seconds)
        gone = {record.path for record in records}
        return GcPlan(
            store=store,
            runs_directory=runs_directory,
            keep_seconds=keep_seconds,
            grace_seconds=grace_seconds,
            in_use=not is_alone,
            blobs=tuple(_old_blobs(store, limits, marked(store, without=gone, partly=partly))),
            records=tuple(records),
            temporaries=tuple(_dead_temporaries(store, limits)),
            runs=tuple(_dead_runs(runs_directory, time.time() - keep_seconds)),
        )


def collect(plan: GcPlan) -> Freed:
    """Free what is free now under the terms of `plan`, and say how much that was.

    Records go first, then blobs that the remaining ones do not name, so that a kill in between leaves no record
    of a blob that is gone. A file that cannot be removed is passed over.
    """
    store = plan.store
    if not store.root.exists():
        return Freed(blobs=0, records=0, temporaries=0, runs=0, size=0, in_use=False)
    check_writable(store)
    with hold.exclusive(store) as is_alone:
        limits = _limits(store, plan.keep_seconds, plan.grace_seconds, is_alone=is_alone)
        old, partly = _doomed_records(store, limits, plan.keep_seconds)
        records = [one for one in old if _remove(one.path, limits.records_before, limits)]
        doomed = _old_blobs(store, limits, marked(store, partly=partly))
        blobs = [one for one in doomed if _remove(one.path, limits.blobs_before, limits)]
        temporaries = [one for one in _dead_temporaries(store, limits) if _unlink(one.path)]
    dead = list(_dead_runs(plan.runs_directory, time.time() - plan.keep_seconds))
    runs = [one for one in dead if _remove_directory(one.path)]
    return Freed(
        blobs=len(blobs),
        records=len(records),
        temporaries=len(temporaries),
        runs=len(runs),
        size=sum(one.size for one in (*records, *blobs, *temporaries, *runs)),
        in_use=not is_alone,
    )


def marked(store: Store, *, without: Iterable[Path] = (), partly: Iterable[Path] = ()) -> set[Digest]:
    """Every digest that the images and the records of the store lead to.

    Records at `without` do not count, of those at `partly` only the inputs. Digests are found by
    their form, whatever the field: to keep a blob that is only spoken of costs some disk, to lose one that is
    needed costs a compile. Documents among the blobs (image manifests, indexes) are followed.
    """
    passed_over, in_part = set(without), set(partly)
    waiting = _named(store)
    for entry in _record_files(store):
        path = Path(entry.path)
        if path in passed_over:
            continue
        with contextlib.suppress(FileNotFoundError):
            if path in in_part:
                waiting += _digests(json.dumps(_value(path).get("inputs")).encode())
            else:
                waiting += _digests(path.read_bytes())
    return _closure(store, waiting)


def _named(store: Store) -> list[Digest]:
    """What `index.json` names."""
    try:
        return _digests((store.root / "index.json").read_bytes())
    except FileNotFoundError:
        return []


def _closure(store: Store, digests: Iterable[Digest]) -> set[Digest]:
    """The digests, and what the documents among them lead to."""
    waiting = list(digests)
    found: set[Digest] = set()
    while waiting:
        digest = waiting.pop()
        if digest not in found:
            found.add(digest)
            waiting += _digests(_document(store, digest))
    return found


def _digests(data: bytes) -> list[Digest]:
    return [Digest(match.decode()) for match in _DIGEST.findall(data)]


def _document(store: Store, digest: Digest) -> bytes:
    """The blob if it can be a JSON document, else nothing. Opened without `Store.has`: looking is not using."""
    try:
        with store.open(digest) as file:
            if os.fstat(file.fileno()).st_size > _LARGEST_DOCUMENT or file.read(1) != b"{":
                return b""
            return file.read()
    except FileNotFoundError:
        return b""


def check_writable(store: Store) -> None:
    """NodeError for a store that belongs to somebody else."""
    if not os.access(store.root, os.W_OK | os.X_OK, effective_ids=True):
        raise NodeError("the store is not ours to write", place=str(store.root), hint="ask its owner to run `gc`")


def _limits(store: Store, keep_seconds: float, grace_seconds: float, *, is_alone: bool) -> _Limits:
    now = time.time()
    if is_alone:
        return _Limits(True, float("inf"), now - keep_seconds, float("inf"))
    living = hold.holders(store)
    if not living or any(holder.uid != os.getuid() for holder in living):
        # Someone holds the store whose beginning, or whose files, we do not know.
        return _Limits(False, float("-inf"), float("-inf"), now - grace_seconds)
    unused = min(now - grace_seconds, living[0].since - USE_SLACK_SECONDS)
    return _Limits(False, unused, min(unused, now - keep_seconds), now - grace_seconds)


# what is there


def _scan(directory: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        yield from entries


def _record_files(store: Store) -> Iterator[os.DirEntry[str]]:
    for directory in _scan(store.root / "keys"):
        if directory.is_dir(follow_symlinks=False):
            yield from (entry for entry in _scan(Path(directory.path)) if not entry.name.startswith("."))


def _doomed_records(store: Store, limits: _Limits, keep_seconds: float) -> tuple[list[Freeable], set[Path]]:
    """Records that can go, and those that stay for their inputs alone; see the head of this module."""
    old = {one.path: one for one in _older(_record_files(store), limits.records_before)}
    used = [Path(entry.path) for entry in _record_files(store) if Path(entry.path) not in old]
    while used:
        steps = [path for path in _steps(store, used.pop()) if old.pop(path, None)]
        used += steps
    partly: set[Path] = set()
    if keep_seconds > 0:
        named = _closure(store, _named(store))
        lasting = [path for path in old if _value(path).get("manifest") in named]
        while lasting:  # also of bases, which have images without a name
            path = lasting.pop()
            partly.add(path)
            steps = [step for step in _steps(store, path) if step in old and step not in partly]
            lasting += [step for step in steps if _value(step).keys() & {"inputs", "steps"}]
    return [one for path, one in old.items() if path not in partly], partly


def _steps(store: Store, record: Path) -> list[Path]:
    """The records of the steps that the record of an image names."""
    keys = _value(record).get("steps")
    names = [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []
    return [store.record_path(key) for key in names]


def _value(record: Path) -> dict[str, Any]:
    try:
        value = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _old_blobs(store: Store, limits: _Limits, needed: set[Digest]) -> Iterator[Freeable]:
    blobs = _scan(store.root / "blobs" / "sha256")
    unmarked = (one for one in blobs if not one.name.startswith(".") and f"sha256:{one.name}" not in needed)
    yield from _older(unmarked, limits.blobs_before)


def _older(entries: Iterable[os.DirEntry[str]], before: float) -> Iterator[Freeable]:
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            if status.st_mtime < before:
                yield Freeable(Path(entry.path), status.st_size)


def _dead_temporaries(store: Store, limits: _Limits) -> Iterator[Freeable]:
    """Files being written by nobody: unlocked ones in `tmp`, and what an atomic write or `_remove` left.

    A writer locks its file right after making it, so a young one without a lock proves nothing while runs live.
    An atomic write locks nothing, but is over in a moment.
    """
    for one in _older(_scan(store.root / "tmp"), limits.temporaries_before):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if not hold.is_locked(one.path):
                yield one
    places = [store.root, store.root / "blobs" / "sha256", store.root / "holders"]
    places += [Path(one.path) for one in _scan(store.root / "keys") if one.is_dir(follow_symlinks=False)]
    for place in places:
        hidden = (e for e in _scan(place) if e.name.startswith(".") and e.is_file(follow_symlinks=False))
        yield from _older(hidden, min(limits.temporaries_before, time.time() - _MINUTE_SECONDS))


def _dead_runs(directory: Path | None, before: float) -> Iterator[Freeable]:
    """Directories of runs that have ended, with their logs, when these are old enough, and nothing is mounted."""
    if directory is None:
        return
    mounts = _mount_points()
    for entry in _scan(directory):
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_mtime >= before:
            continue
        with contextlib.suppress(FileNotFoundError):
            if hold.is_locked(path / "lock"):
                continue
        real = path.resolve()
        if not any(mount == real or real in mount.parents for mount in mounts):
            yield Freeable(path, _tree_size(path))


def _mount_points() -> list[Path]:
    """What is mounted where, for us; removing a tree must not walk into a source that is bound in."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    return [Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split()[4])) for line in lines]


def _tree_size(path: Path) -> int:
    total = 0
    for entry in _scan(path):
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                total += _tree_size(Path(entry.path))
            else:
                total += entry.stat(follow_symlinks=False).st_size
    return total


# the deed


def _remove(path: Path, before: float, limits: _Limits) -> bool:
    """Remove a file unless it was used at or after `before`, which a living run may do at this moment."""
    if limits.is_alone:
        return _unlink(path)
    aside = path.with_name(f".gc-{path.name}")
    try:
        path.rename(aside)
        if aside.stat().st_mtime >= before:
            aside.rename(path)
            return False
    except OSError:
        return False
    return _unlink(aside)


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _remove_directory(path: Path) -> bool:
    try:
        shutil.rmtree(path)
    except OSError:
        return False
    return True
