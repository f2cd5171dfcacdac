"""Files by hash into the store, several at a time, each from the first address that has it.

The hash is what counts: any address that yields these bytes will do. The first address of a file is the one that
was locked; the later ones may have to be asked for, and are only when it comes to them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import unquote, urlsplit

from assembler.build.download import Patience, download, open_session, without_credentials
from assembler.errors import AssembleError, LockError, RegistryError, UntrustedInputError, VerifyError, refused
from assembler.events import Emit, StepProgress
from assembler.oci.digest import Digest
from assembler.oci.layout import Store

if TYPE_CHECKING:
    import requests

THREADS: Final = 6
_LOCAL: Final = frozenset({"file", "copy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A file that is wanted. `label` is for people, `size` in bytes, `addresses` are tried in their order."""

    label: str
    digest: Digest
    size: int
    addresses: Callable[[], Iterable[str]]


class _StoppedError(Exception):
    """Another file failed, or the user interrupted."""


class Fetching:
    """Files on their way into the store. A context manager: leaving it ends what is still under way.

    They are started in the order in which they are given. Progress goes to `step` when it is named, and `done` is
    called, by whatever thread, when all are there.
    """

    def __init__(
        self,
        items: Sequence[Item],
        store: Store,
        emit: Emit,
        *,
        noun: str,
        step: str = "",
        threads: int = THREADS,
        patience: Patience | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        self._items = {item.digest: item for item in items}
        self._store = store
        self._emit = emit
        self._noun = noun
        self._step = step
        self._patience = patience or Patience()
        self._done = done
        self._pool = ThreadPoolExecutor(threads, noun)
        self._session: requests.Session | None = None
        self._futures: dict[Digest, Future[list[str]]] = {}
        self._total = sum(item.size for item in self._items.values())
        self._through: dict[Digest, int] = {}
        self._arrived = 0
        self._failing: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._session = open_session()
        for digest, item in self._items.items():
            self._futures[digest] = self._pool.submit(self._one, item)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for future in self._futures.values():  # until the threads have let go of their temporary files
            if not future.cancelled():
                wait([future])
        if self._session is not None:
            self._session.close()

    def knows(self, digest: Digest) -> bool:
        """Is this one of the files?"""
        return digest in self._items

    def wait(self, digest: Digest) -> Path:
        """The path of one file, when it is there. Raises as `all` does, when it cannot be had."""
        future = self._futures.get(digest)
        if future is not None and (reasons := future.result()):
            self._raise_gone({digest: reasons})
        return self._store.blob_path(digest)

    def all(self) -> None:
        """Wait for all. LockError names every file that is gone from everywhere, RegistryError one whose servers
        cannot be reached.
        """
        gone: dict[Digest, list[str]] = {}
        pending = set(self._futures.values())
        while pending:
            finished, pending = wait(pending, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        for digest, future in self._futures.items():
            if reasons := future.result():
                gone[digest] = reasons
        if gone:
            self._raise_gone(gone)

    def _raise_gone(self, gone: dict[Digest, list[str]]) -> None:
        labels = {self._items[digest].label: reasons for digest, reasons in gone.items()}
        detail = []
        for label in sorted(labels):
            detail += [f"{label}:", *(f"  {reason}" for reason in labels[label])]
        first = min(labels)
        fact = (
            f"the {self._noun} `{first}` is"
            if len(labels) == 1
            else f"{len(labels)} {self._noun}s (`{first}`, …) are"
        )
        raise LockError(f"{fact} gone from everywhere", detail=detail, hint="`assemble lock --update`")

    def _one(self, item: Item) -> list[str]:
        """Get one file from the first address that has it; otherwise why no address does."""
        reasons: list[str] = []
        failure: AssembleError | None = None
        for address in item.addresses():
            shown = without_credentials(address)
            try:
                self._get(item, address)
            except (LockError, UntrustedInputError, VerifyError) as error:
                reasons.append(f"{shown}: {error.fact}")
            except RegistryError as error:
                failure = error
                reasons.append(f"{shown}: {error.fact}")
                with self._lock:
                    self._failing.add(urlsplit(address).netloc)
            else:
                self._note_arrival()
                return []
        if failure:
            raise RegistryError(
                f"the {self._noun} `{item.label}` cannot be downloaded", detail=reasons, hint=failure.hint
            ) from failure
        return reasons or ["no address is known"]

    def _get(self, item: Item, address: str) -> None:
        if self._stop.is_set() or self._session is None:
            raise _StoppedError
        parts = urlsplit(address)
        if parts.scheme in _LOCAL:
            try:
                with Path(unquote(parts.path)).open("rb") as stream:
                    self._store.put_stream(stream, item.digest, item.size)
            except OSError as error:
                raise LockError(refused(error)) from error
            self._progress(item, item.size)
            return
        with self._lock:
            # A server that used up our patience once gets one try a file from then on.
            patience = replace(self._patience, attempts=1) if parts.netloc in self._failing else self._patience
        download(
            self._session,
            address,
            self._store,
            digest=item.digest,
            size=item.size,
            progress=lambda done, _total: self._progress(item, done),
            patience=patience,
        )

    def _progress(self, item: Item, done: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        if self._step:
            with self._lock:
                self._through[item.digest] = done
                through = sum(self._through.values())
                self._emit(StepProgress(step=self._step, done_bytes=through, total_bytes=self._total))

    def _note_arrival(self) -> None:
        with self._lock:
            self._arrived += 1
            is_last = self._arrived == len(self._items)
        if is_last and self._done:
            self._done()
