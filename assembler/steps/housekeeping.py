"""What `gc` frees beside the store: containers and images of buildah, sources, compiler caches, logs, memories.

Everything here is made again when it is needed, and goes when it was not used for so long. What says that is a
time on disk: of the file itself (logs, memories, stat data), of the record beside a source, of the marker in a
repository or for an image, of each file in the compiler cache (ccache freshens what it finds; above its own limit
it frees by itself), of the directory where only the whole makes sense (a package manager's cache).

Runs in the middle of their work read back neither logs nor memories, nor stat data; everything else is touched
only while no run is alive, and none starts before it is done. A tree is first renamed, so that a kill in the
middle leaves none that looks whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from assembler.errors import NodeError
from assembler.gc import DAY_SECONDS
from assembler.oci.hold import exclusive
from assembler.oci.layout import Store

_PINS_SECONDS: Final = 90 * DAY_SECONDS
"""Private locks are small, and nothing gives back what they pin."""
_ASIDE: Final = ".gc-"
_WHOLE: Final = ("cargo", "pip", "sccache", "uv")
_CCACHE: Final = "ccache"
_CCACHE_OWN: Final = frozenset(("ccache.conf", "CACHEDIR.TAG", "stats"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What went, or with a dry run would go: bytes by kind, images and kept containers by number."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    images: int = 0
    containers: int = 0

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(self.sizes.values())


@dataclass(frozen=True, slots=True)
class _Old:
    """A file or tree that was not used for long, and small files that go with it, before it."""

    kind: str
    path: Path
    first: tuple[Path, ...] = ()


def clear(cache: Path, keep_seconds: float, *, dry_run: bool = False) -> Cleared:
    """Free what was not used for `keep_seconds`; with 0, everything that can be made again."""
    now = time.time()
    before = now - keep_seconds
    found = list(_loose(cache, before, now - max(keep_seconds, _PINS_SECONDS)))
    sizes = _freed(found, dry_run=dry_run)
    store = Store(cache / "store")
    if not store.root.exists():
        return Cleared(sizes=sizes)
    with exclusive(store) as alone:
        if not alone:
            return Cleared(sizes=sizes)
        sizes += _freed(_shared(cache, before, everything=keep_seconds == 0), dry_run=dry_run)
        images, containers, size = _storage(cache, before, dry_run=dry_run)
        sizes += Counter({"containers": size} if size else {})
    return Cleared(sizes=dict(sizes), images=images, containers=containers)


def _freed(found: Iterator[_Old] | list[_Old], *, dry_run: bool) -> Counter[str]:
    """Remove what was found; bytes by kind."""
    sizes: Counter[str] = Counter()
    for old in found:
        size = tree_size(old.path)
        if dry_run or _removed(old):
            sizes[old.kind] += size
    return sizes


# what is old


def _loose(cache: Path, before: float, pins_before: float) -> Iterator[_Old]:
    """Single files that no running assemble misses."""
    for name, limit in (("logs", before), ("memory", before), ("stat", before), ("locks", pins_before)):
        for entry in _scan(cache / name):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and status.st_mtime < limit:
                yield _Old(name, Path(entry.path))


def _shared(cache: Path, before: float, *, everything: bool) -> Iterator[_Old]:
    """What runs share, while there is none."""
    for path in _trees(cache / "sources"):
        record = path.with_suffix(".json")
        if _is_old(record if record.exists() else path, before):
            yield _Old("sources", path, (record, path.with_suffix(".lock")))
    for path in _trees(cache / "git"):
        if _is_old(path / "made" if (path / "made").exists() else path, before):
            yield _Old("git", path, (path.with_suffix(".lock"),))
    places = [("kept", cache / "kept"), *(("prepared", group) for group in _trees(cache / "prepared"))]
    for kind, directory in places:
        yield from (_Old(kind, path) for path in _trees(directory) if _is_old(path, before))
    for path in _trees(cache):
        name = path.name.removeprefix(_ASIDE)
        if name in _WHOLE and _is_old(path, before):
            yield _Old(name, path)
        elif name == _CCACHE and (everything or name != path.name):
            yield _Old(_CCACHE, path)
        elif name == _CCACHE:
            yield from (_Old(_CCACHE, file) for file in _files(path) if _is_old(file, before))


def _trees(directory: Path) -> Iterator[Path]:
    return (Path(entry.path) for entry in _scan(directory) if entry.is_dir(follow_symlinks=False))


def _is_old(path: Path, before: float) -> bool:
    """Was it last modified before? What is gone is not old, and what was to be removed once always is."""
    if path.name.startswith(_ASIDE):
        return True
    try:
        return path.lstat().st_mtime < before
    except OSError:
        return False


def _files(directory: Path) -> Iterator[Path]:
    """The files of a compiler cache, without its own book-keeping."""
    for parent, _, names in os.walk(directory):
        yield from (Path(parent, name) for name in names if name not in _CCACHE_OWN)


def _scan(directory: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        yield from entries


def tree_size(path: Path) -> int:
    """Bytes on disk of a file or tree; a file with several names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    waiting = [path]
    while waiting:
        place = waiting.pop()
        with contextlib.suppress(OSError):
            status = place.lstat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
            if stat.S_ISDIR(status.st_mode):
                waiting += [Path(entry.path) for entry in _scan(place)]
    return total


# the deed


def _removed(old: _Old) -> bool:
    with contextlib.suppress(OSError):
        for path in old.first:
            path.unlink(missing_ok=True)
        if not old.path.is_dir() or old.path.is_symlink():
            old.path.unlink()
            return True
        aside = old.path
        if not aside.name.startswith(_ASIDE):
            aside = old.path.rename(old.path.with_name(f"{_ASIDE}{old.path.name}"))
        shutil.rmtree(aside)
        return True
    return False


# buildah's storage


def has_storage(cache: Path) -> bool:
    """Has buildah anything for this cache on this host? Only a root, also of a namespace, can free all of it."""
    from assembler.build.local_disk import graph_directories

    return any(graph_directories(cache))


def _storage(cache: Path, before: float, *, dry_run: bool) -> tuple[int, int, int]:
    """Images that were not used for long and containers kept as long ago: their numbers, and the bytes freed."""
    from assembler.build.container import Buildah, kept_since, last_used
    from assembler.build.local_disk import graph_directories, graph_directory
    from assembler.build.node import probe_storage
    from assembler.build.runs import RunDirectory

    if dry_run:
        number = size = 0
        for graph in graph_directories(cache):
            names = _image_names(graph / "storage")
            old = [name for name in names if last_used(graph, name) < before]
            number += len(old)
            size += tree_size(graph / "storage") if len(old) == len(names) else 0
        return number, 0, size
    graph = graph_directory(cache)
    if not graph.exists():
        return 0, 0, 0
    with contextlib.suppress(NodeError), RunDirectory.create(cache) as run:
        buildah = Buildah(probe_storage(cache), run)
        kept = [name for name in buildah.containers() if (kept_since(name) or time.time()) < before]
        images = [name for name in buildah.images() if buildah.last_used(name) < before]
        if not kept and not images:
            return 0, 0, 0
        size = tree_size(buildah.storage.root)
        containers = sum(buildah.remove_container(name) for name in kept)
        removed = sum(buildah.remove_image(name) for name in images)
        for lock in (graph / "locks").glob("*"):
            if _is_old(lock, before):
                lock.unlink(missing_ok=True)
        return removed, containers, max(0, size - tree_size(buildah.storage.root))
    return 0, 0, 0


def _image_names(storage: Path) -> set[str]:
    """The names of the images, as the storage itself lists them; nothing is started for that."""
    names: set[str] = set()
    for path in storage.glob("*-images/images.json"):
        with contextlib.suppress(OSError, ValueError):
            for image in json.loads(path.read_bytes()):
                names.update(image.get("names") or ())
    return names
