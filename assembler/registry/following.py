"""Sending blobs while they are still being written, so that a push ends soon after the packing does.

The bytes come from the file that the writer fills, not from the writer: it never waits for the network, what was
lost on the way is read again, and nothing is kept in memory. What goes wrong here is no error of the push, which
then sends the finished blob from the store, with all its patience.

Nobody can see a blob before its upload is committed under its digest, and no image before its manifest is put.
"""

from __future__ import annotations

import contextlib
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
from assembler.registry.upload import UploadSession, is_forgotten

START_BYTES: Final = 4 << 20
"""A blob that ends before is not worth a conversation of its own: it goes with the rest of the image."""

_BLOCK: Final = 256 << 10  # larger ones are given back to the system and got again, a page fault for each page
_WORTH_ASKING: Final = 1 << 20
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
        """Follow one more blob; None when this registry takes no blob of unknown length."""
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


class _NotWantedError(Exception):
    """The blob need not be sent any further: it is there (`arrival`), or was abandoned."""

    def __init__(self, arrival: Arrival | None) -> None:
        super().__init__(arrival)
        self.arrival = arrival


class Following:
    """One blob on its way. The writer calls `begin`, `grew`, then `finish` or `abandon`; a publisher waits."""

    def __init__(
        self, client: Callable[[], Client], target: Reference, turn: threading.Semaphore, policy: RetryPolicy
    ) -> None:
        self.digest: Digest | None = None
        """What `finish` announced."""
        self.sent = 0
        """Bytes that were sent."""
        self.arrival: Arrival | None = None
        """When it is over: how the blob came to be there. None when it is not, as far as we know."""
        self.refused = False
        """The registry does not take a blob so; it would not take another one either."""
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
        """Send it in one stream, and after a failure that may pass the rest, where the registry has kept the
        beginning, else all again.
        """
        sent_all = False
        broken: UploadSession | None = None
        for failures in range(self._policy.attempts):
            session, start = self._begin(client, broken)
            broken, committed = None, False
            try:
                session.stream(partial(_Stream, self, partial(self._ask, client), start), start)
                sent_all = True
                _, digest = self.wait_for(self.sent)
                if digest is not None:  # as the stream has ended
                    session.commit(digest)
                committed = True
            except _NotWantedError as end:
                return "pushed" if end.arrival and sent_all else end.arrival
            except TransientError as error:
                if failures + 1 == self._policy.attempts:
                    raise
                broken = session if self.sent >= self._policy.resume else None
                self._policy.sleep(self._policy.wait(failures, error.after))
            except RefusedError as error:
                # That it lost this one, in a restart say, tells nothing about the next.
                self.refused = not is_forgotten(error) and error.code != "DIGEST_INVALID"
                raise
            finally:
                if not committed and broken is None:
                    session.cancel()
            if committed:
                return "pushed"
        return None

    def _begin(self, client: Client, broken: UploadSession | None) -> tuple[UploadSession, int]:
        """An upload, and how many bytes of the blob it has."""
        if broken is not None:
            with contextlib.suppress(RefusedError):
                start = broken.offset()
                if 0 < start <= self._size:
                    return broken, start
        return client.open_upload(self._target), 0

    def wait_for(self, size: int) -> tuple[int, Digest | None]:
        """Wait until so many bytes are there, or all: how many there are, and the digest when that is all.

        _NotWantedError when the blob was abandoned.
        """
        with self._change:
            self._change.wait_for(lambda: self._abandoned or self.digest is not None or self._size >= size)
            if self._abandoned:
                raise _NotWantedError(None)
            return self._size, self.digest

    def read_at(self, offset: int, amount: int) -> bytes:
        """Bytes of the file as far as they are there."""
        descriptor = self._descriptor
        return os.pread(descriptor, amount, offset) if descriptor is not None else b""

    def _ask(self, client: Client, digest: Digest) -> None:
        """The rest need not be sent when somebody has brought the blob before us."""
        if client.has_blob(self._target, digest) is not None:
            raise _NotWantedError("present")


class _Stream:
    """The blob from `start` to its end, waiting for what is not there yet.

    `on_whole` is told the digest once, when the blob is whole and much of it is still to be sent.
    """

    def __init__(self, blob: Following, on_whole: Callable[[Digest], None], start: int = 0) -> None:
        self._blob = blob
        self._on_whole: Callable[[Digest], None] | None = on_whole
        self._at = start

    def read(self, amount: int = -1, /) -> bytes:
        """Read like a file."""
        wanted = _BLOCK if amount < 0 else min(amount, _BLOCK)
        size, digest = self._blob.wait_for(self._at + wanted)
        if digest and self._on_whole and size - self._at > _WORTH_ASKING:
            self._on_whole(digest)
            self._on_whole = None
        data = self._blob.read_at(self._at, min(wanted, size - self._at))
        self._at += len(data)
        self._blob.sent = self._at
        return data

    def close(self) -> None:
        """The file stays open for another try."""
