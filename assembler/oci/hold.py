"""Who uses a store: a shared hold for whoever relies on its blobs, an exclusive one for whoever frees them.

    ROOT/gc.lock       flock: shared by every holder for as long as it lives, exclusive for `assemble gc`
    ROOT/holders/*     one file a holder, locked by it; its modification time is when the hold began

The kernel drops these locks with the process, however it ends, so there is nothing to repair after a kill. A
holder that starts while blobs are being freed waits in `hold` until that is over, and finds a whole store.
On NFS, `flock` reaches the other hosts since Linux 2.6.12; Lustre needs the mount option `flock`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from assembler.oci.layout import Store


@dataclass(frozen=True, slots=True)
class Holder:
    """A living holder: since when (seconds since 1970), and whose process it is."""

    since: float
    uid: int


@contextlib.contextmanager
def hold(store: Store, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Nothing that is in the store now, or that is used or written inside the block, is freed during the block.

    `on_wait` is called once when the store is being freed at this moment, before waiting for the end of that.
    A store that we may only read is used without a hold: nobody can be told.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(PermissionError):
            stack.enter_context(_registered(store))
            lock = stack.enter_context((store.root / "gc.lock").open("a+"))
            if not _try_lock(lock.fileno(), fcntl.LOCK_SH):
                if on_wait:
                    on_wait()
                fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def exclusive(store: Store) -> Iterator[bool]:
    """True when nobody holds the store, which then stays so for the block; False, at once, when somebody does."""
    with (store.root / "gc.lock").open("a+") as lock:
        yield _try_lock(lock.fileno(), fcntl.LOCK_EX)


def holders(store: Store) -> tuple[Holder, ...]:
    """Everyone who holds the store now, oldest first. Files of the dead are removed on the way."""
    living = []
    for path in _files(store.root / "holders"):
        with contextlib.suppress(FileNotFoundError):
            if is_locked(path):
                status = path.stat()
                living.append(Holder(status.st_mtime, status.st_uid))
            else:
                path.unlink()
    return tuple(sorted(living, key=lambda holder: holder.since))


def is_locked(path: Path) -> bool:
    """Does a living process hold a lock on this file? FileNotFoundError when it is gone.

    A file that we may not open counts as locked: it is not ours to judge.
    """
    try:
        with path.open("rb") as file:
            return not _try_lock(file.fileno(), fcntl.LOCK_SH)
    except PermissionError:
        return True


@contextlib.contextmanager
def _registered(store: Store) -> Iterator[None]:
    directory = store.root / "holders"
    directory.mkdir(parents=True, exist_ok=True)
    # Locked under a name that `holders` passes over, then renamed: a holder's file without its lock is a dead one.
    descriptor, name = tempfile.mkstemp(dir=directory, prefix=".new-")
    path = Path(name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path = path.rename(directory / path.name.removeprefix(".new-"))
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _files(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                yield Path(entry.path)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
