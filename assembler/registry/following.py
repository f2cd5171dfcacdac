"""Sending blobs while they are still being written, so that a push ends soon after the packing does.

The bytes come from the file that the writer fills, not from the writer: it never waits for the network, a piece
that was lost on the way is read again, and nothing is kept in memory. What goes wrong here is no error of the
push, which then sends the finished blob from the store, with all its patience.

Nobody can see a blob before its upload is committed under its digest, and no image before its manifest is put.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Literal

from assembler.errors import RegistryError
from assembler.oci.digest import Digest
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.refusal import RefusedError, TransientError
from assembler.registry.retry import RetryPolicy
from assembler.registry.upload import UploadSession

START_BYTES: Final = 4 << 20
"""A blob that ends before is not worth a conversation of its own: it goes with the rest of the image."""

_LEAST: Final = 8 << 20
_MOST: Final = 64 << 20
_AT_ONCE: Final = 4

Arrival = Literal["present", "pushed"]


class Uplink:
    """The way to one repository for blobs that are being made. `client` is asked for when there is one to send."""

    def __init__(self, target: Reference, client: Callable[[], Client], policy: RetryPolicy | None = None) -> None:
        self.target = target
        self._client = client
        self._policy = policy or RetryPolicy()
        self._turn = threading.BoundedSemaphore(_AT_ONCE)
        self._followings: list[Following] = []

    def follow(self) -> Following | None:
        """Follow one more blob; None when this registry takes no pieces."""
        if any(following.refused for following in self._followings):
            return None
        following = Following(self._client, self.target, self._turn, self._policy)
        self._followings.append(following)
        return following

    def find(self, name: str, digest: Digest) -> Following | None:
        """What brings this blob to the repository of this name, if anything does."""
        if name != self.target.name:
            return None
        return next((one for one in self._followings if one.digest == digest), None)

    def close(self) -> None:
        """Abandon what is still on its way."""
        for following in self._followings:
            following.abandon()
        for following in self._followings:
            following.wait(1.0)


class Following:
    """One blob on its way. The writer calls `begin`, `grew`, then `finish` or `abandon`; a publisher waits."""

    def __init__(
        self, client: Callable[[], Client], target: Reference, turn: threading.Semaphore, policy: RetryPolicy
    ) -> None:
        self.digest: Digest | None = None
        """What `finish` announced."""
        self.sent = 0
        """Bytes that the registry has."""
        self.arrival: Arrival | None = None
        """When it is over: how the blob came to be there. None when it is not, as far as we know."""
        self.refused = False
        """The registry did not take a piece; it would not take one of another blob either."""
        self._client = client
        self._target = target
        self._turn = turn
        self._policy = policy
        self._change = threading.Condition()
        self._over = threading.Event()
        self._descriptor: int | None = None
        self._size = 0
        self._abandoned = False
        self._thread: threading.Thread | None = None

    # the writer's side

    def begin(self, path: Path) -> None:
        """The blob is being written into this file, from its start."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def grew(self, size: int) -> None:
        """So many bytes of it are there now."""
        with self._change:
            self._size = size
            self._change.notify_all()
        if self._thread is None and size >= START_BYTES:
            # It may hang on a dead network for minutes; a program that is done does not wait for that.
            self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
            self._thread.start()

    def finish(self, digest: Digest) -> None:
        """The blob is whole and in the store, under this digest."""
        with self._change:
            self.digest = digest
            self._change.notify_all()
        if self._thread is None:
            self._end()

    def abandon(self) -> None:
        """The blob is not wanted any more. Nothing changes when it has arrived."""
        with self._change:
            self._abandoned = True
            self._change.notify_all()
        if self._thread is None:
            self._end()

    # the publisher's side

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is over, one way or the other; False when it is not after so many seconds."""
        return self._over.wait(seconds)

    # the thread

    def _run(self) -> None:
        try:
            with self._turn:
                if not self._abandoned:
                    self.arrival = self._send(self._client())
        except (RegistryError, OSError):
            pass  # the finished blob is sent again as a whole, and what is lasting is said then
        finally:
            self._end()

    def _end(self) -> None:
        with self._change:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        self._over.set()

    def _send(self, client: Client) -> Arrival | None:
        session = client.open_upload(self._target)
        committed = False
        try:
            asked = False
            while True:
                have, digest = self._more(session.offset, max(_LEAST, session.least))
                if self._abandoned:
                    return None
                if digest and not asked:
                    asked = True
                    if client.has_blob(self._target, digest) is not None:
                        return "present"
                if session.offset < have:
                    self._append(session, min(have, session.offset + max(_MOST, session.least)))
                elif digest:
                    session.commit(digest)
                    committed = True
                    return "pushed"
        finally:
            if not committed:
                session.cancel()

    def _more(self, offset: int, least: int) -> tuple[int, Digest | None]:
        """Wait until there is something to do: the bytes that are there, and the digest when these are all."""
        with self._change:
            self._change.wait_for(
                lambda: self._abandoned or self.digest is not None or self._size - offset >= least
            )
            return self._size, self.digest

    def _append(self, session: UploadSession, end: int) -> None:
        """Send everything up to `end`; after a failure that may pass, go on from where the registry is."""
        failures = 0
        while session.offset < end:
            try:
                if failures:
                    session.recover()
                if session.offset < end:
                    piece = partial(_Piece, self._descriptor, session.offset, end)
                    session.append(piece, end - session.offset)
                self.sent = session.offset
            except TransientError as error:
                failures += 1
                if failures == self._policy.attempts or self._abandoned:
                    raise
                self._policy.sleep(self._policy.wait(failures - 1, error.after))
            except RefusedError:
                self.refused = True
                raise


class _Piece:
    """A part of a file that others write to and read from at the same time."""

    def __init__(self, descriptor: int | None, start: int, end: int) -> None:
        self._descriptor = descriptor
        self._at = start
        self._end = end

    def read(self, amount: int = -1, /) -> bytes:
        """Read like a file."""
        left = self._end - self._at
        if self._descriptor is None or not left:
            return b""
        data = os.pread(self._descriptor, left if amount < 0 else min(amount, left), self._at)
        self._at += len(data)
        return data

    def close(self) -> None:
        """The file stays open for the next piece."""
