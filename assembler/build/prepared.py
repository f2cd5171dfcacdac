"""Directories that compile steps keep for later ones: compiled dependencies, by what they were made from.

    CACHE/prepared/GROUP/KEY/    a copy of the directory; appears by a rename, and counts only then
    CACHE/prepared/GROUP/KEY.*   one that is being made

A group are those that may serve each other as a beginning; the key stands for exactly one content. Whoever reads
one holds a shared lock on it, so that it is not removed meanwhile; the newest few of a group stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.process import run

_MOST: Final = 4
_ABANDONED_SECONDS: Final = 86_400.0
_TREE: Final = "tree"


@dataclass(frozen=True, slots=True)
class PreparedBuild:
    """The place of one directory in the cache; see the head of this module."""

    group: Path
    key: str

    @classmethod
    def of(cls, cache: Path, group: object, key: object) -> PreparedBuild:
        """The place for these facts, which are JSON values."""
        return cls(cache / "prepared" / _hash(group), _hash([group, key]))

    @property
    def path(self) -> Path:
        """Where it is, if it is."""
        return self.group / self.key

    def restore(self, target: Path) -> bool | None:
        """Copy it to `target`. True when it was there, False when another of its group was taken, else None."""
        candidates = [self.path, *(path for path in _newest_first(self.group) if path != self.path)]
        for path in candidates:
            with _in_use(path) as there:
                if there and _copied(path / _TREE, target):
                    os.utime(path)
                    return path == self.path
        return None

    def store(self, source: Path) -> None:
        """Keep a copy of `source`, unless it is there. Trouble with the disk keeps nothing, and is no error."""
        if self.path.exists() or not source.is_dir():
            return
        with contextlib.suppress(OSError):
            self.group.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.group, prefix=f"{self.key}."))
            try:
                if _copied(source, temporary / _TREE):
                    os.utime(temporary)
                    temporary.rename(self.path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            self._forget_old()

    def _forget_old(self) -> None:
        for path in _newest_first(self.group)[_MOST:]:
            with contextlib.suppress(OSError), _opened(path) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                dead = path.with_name(f"{path.name}.dead")
                path.rename(dead)
                shutil.rmtree(dead, ignore_errors=True)
        for path in self.group.iterdir():  # of processes that died
            if "." in path.name and path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _newest_first(group: Path) -> list[Path]:
    found = []
    with contextlib.suppress(OSError):
        for path in group.iterdir():
            if "." not in path.name:
                with contextlib.suppress(OSError):
                    found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _in_use(path: Path) -> Iterator[bool]:
    """Keep others from removing it while the block runs; False when it is not there."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(_opened(path))
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield (path / _TREE).is_dir()


def _copied(source: Path, target: Path) -> bool:
    """Copy a tree with its times and links, sharing blocks where the file system can; False when that failed."""
    target.mkdir(parents=True, exist_ok=True)
    copy = ["cp", "-a", "--reflink=auto", f"{source}/.", str(target)]
    if run(copy, check=False).returncode == 0:
        return True
    shutil.rmtree(target, ignore_errors=True)
    return False
