"""One finished blob into one repository, whatever the network does.

One `PUT` from the file is the fastest way and the first. When it breaks, what is known of registries decides:

- Everything was sent, and perhaps only the answer was lost: the registry is asked whether it has the blob.
- Much was sent: the upload is asked where it stands, and goes on from there by `PATCH`. The distribution project's
  registry 3 keeps what a broken `PUT` or `PATCH` brought; 2.8 answers 404 and has dropped it, by its own count of
  bytes in the signed address. Then all is sent again.
- It was refused for its size (413), or broke again and again: it goes in parts, in an upload of its own. nginx has
  1 MiB as default limit, Cloudflare 100 MB; gateways end requests that take too long. A size that was refused is
  remembered for the registry.

The registry checks the digest in the end, so that none of this can make a wrong blob. A wrong digest may come of
putting parts together (registry 2.8 ignores `Content-Range`), or of a network that damages bytes. When our own
bytes are right, one more upload in one piece decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NoReturn

from assembler.errors import RegistryError
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Readable
from assembler.oci.reference import Reference
from assembler.registry.connection import Body, Connection
from assembler.registry.refusal import RefusedError, TransientError
from assembler.registry.retry import Tries
from assembler.registry.upload import UploadSession, is_forgotten
from assembler.units import size_text

_BLOCK = 1 << 20
_TOO_LARGE = 413
_BREAKS_BEFORE_PARTS = 3
_TOO_LONG = (0, 408, 502, 504)  # how connections, servers and gateways end what takes too long


class Sending:
    """A blob on its way to a registry. `run` once."""

    def __init__(
        self,
        connection: Connection,
        reference: Reference,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        *,
        open_session: Callable[[], UploadSession],
        is_there: Callable[[], bool],
        progress: Callable[[int], None] | None = None,
        session: UploadSession | None = None,
    ) -> None:
        self._connection = connection
        self._policy = connection.policy
        self._reference = reference
        self._descriptor = descriptor
        self._open_blob = open_blob
        self._open_session = open_session
        self._is_there = is_there
        self._progress = progress
        self._session = session  # one that can be used without a question
        self._broken: UploadSession | None = None  # one that may have some of the blob
        self._part: int | None = None
        self._sent = 0  # what went out in the latest try, with what was there before it
        self._stored = 0  # what the registry has confirmed
        self._request = self._least = 0  # the largest request of the latest try; the least part of its upload
        self._perhaps_there = False
        self._whole_only = False
        self._put_together = False

    def run(self) -> None:
        """Send it. RegistryError when the registry refuses, or when no try was better than those before."""
        tries = Tries(self._policy)
        while True:
            try:
                if self._perhaps_there and self._is_there():
                    return
                self._perhaps_there = False
                self._try()
            except TransientError as error:
                # Whoever asks for another try, or for a login, has not stored it.
                self._perhaps_there = self._sent == self._descriptor.size and error.after is None
                error.hint = error.hint or "push again when it has passed: only what is missing is sent then"
                tries.failed(error, self._stored)
                if error.status in _TOO_LONG and tries.in_a_row >= _BREAKS_BEFORE_PARTS and not self._whole_only:
                    self._part = self._part or self._policy.part_below(self._descriptor.size)
            except RefusedError as error:
                self._consider(error, tries)
            else:
                return

    def _try(self) -> None:
        session, start = self._begin()
        self._sent, self._put_together = start, start > 0
        size = self._descriptor.size
        part = min(filter(None, (self._part, self._connection.part_bytes)), default=None)
        try:
            if start == 0 and (part is None or part >= size):
                self._request = size
                session.put(Body(open=self._open_blob, size=size, progress=self._told), self._descriptor.digest)
            else:
                self._send_parts(session, start, part or size)
        except TransientError:
            if self._sent >= self._policy.resume or self._put_together:
                self._broken = session
            raise

    def _begin(self) -> tuple[UploadSession, int]:
        """An upload, and how much of the blob it has."""
        broken, self._broken = self._broken, None
        if broken is not None and not self._whole_only:
            try:
                start = broken.offset()
            except RefusedError:
                start = 0
            except TransientError:
                self._broken = broken  # not reached; what it has, it may still have
                raise
            if 0 < start <= self._descriptor.size:
                self._stored = max(self._stored, start)
                return broken, start
        session, self._session = self._session, None
        return session or self._open_session(), 0

    def _send_parts(self, session: UploadSession, start: int, part: int) -> None:
        size = self._descriptor.size
        part = max(part, session.least)
        self._request, self._least = min(part, size - start), session.least
        source = _Source(self._open_blob, start)
        try:
            while start < size:
                end = min(start + part, size)

                def told(done: int, before: int = start) -> None:
                    self._told(before + done)

                opener = source.part(start, end - start)
                session.patch(Body(open=opener, size=end - start, progress=told), start)
                start = end
                self._put_together = True
                self._stored = max(self._stored, start)
        finally:
            source.close()
        session.commit(self._descriptor.digest)

    def _consider(self, error: RefusedError, tries: Tries) -> None:
        """What a refusal means: nothing for good when there is another way."""
        if error.status == _TOO_LARGE:
            self._take_smaller_parts(error)
        elif is_forgotten(error):
            self._broken = None
            tries.failed(_passing(error), self._stored)
        elif error.code == "DIGEST_INVALID" and not self._whole_only and (self._put_together or self._is_sound()):
            self._whole_only, self._part = True, None
        elif self._part and not self._connection.part_bytes and error.status in (404, 405, 501):
            # Parts were our idea, and the registry does not know them.
            self._whole_only, self._part = True, None
            tries.failed(_passing(error), self._stored)
        else:
            raise error

    def _take_smaller_parts(self, error: RefusedError) -> None:
        if self._request <= self._least:
            fact = f"the registry takes no parts below {size_text(self._least)}, what is before it not even "
            raise RegistryError(fact + size_text(self._request), place=str(self._reference), hint=error.hint)
        known = self._connection.part_bytes
        smaller = known if known and known < self._request else self._policy.part_below(self._request)
        if smaller is None or self._whole_only:
            raise error
        self._connection.part_bytes = self._part = smaller

    def _is_sound(self) -> bool:
        """Is what we have the blob, so that it was damaged on the way? A download looks at itself."""
        stream = self._open_blob()
        try:
            if not hasattr(stream, "seek"):
                return True
            found = hashlib.sha256()
            while data := stream.read(_BLOCK):
                found.update(data)
        finally:
            stream.close()
        return found.hexdigest() == self._descriptor.digest.hex

    def _told(self, done: int) -> None:
        self._sent = done
        if self._progress:
            self._progress(done)


def _passing(error: RefusedError) -> TransientError:
    return TransientError(error.fact, place=error.place, hint=error.hint)


class _Source:
    """A blob that is read once from an offset on, for one part after the other."""

    def __init__(self, open_blob: Callable[[], Readable], start: int) -> None:
        self._stream = open_blob()
        self._at = 0
        try:
            self._go_to(start)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stream.close()

    def part(self, start: int, size: int) -> Callable[[], Readable]:
        """What opens so many bytes from `start` on."""

        def opener() -> Readable:
            self._go_to(start)
            return _Part(self.read, size)

        return opener

    def read(self, amount: int) -> bytes:
        data = self._stream.read(amount)
        self._at += len(data)
        return data

    def _go_to(self, start: int) -> None:
        seek = getattr(self._stream, "seek", None)
        if seek is not None:
            seek(start)
            self._at = start
        elif start < self._at:
            self._start_over()
        while self._at < start and self.read(min(start - self._at, _BLOCK)):
            pass

    def _start_over(self) -> NoReturn:
        raise TransientError("a part has to be sent again, and its source flows one way only", place=None)


class _Part:
    """Some bytes of a source. Closing it leaves the source open."""

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self._read = read
        self._left = size

    def read(self, amount: int = -1, /) -> bytes:
        data = self._read(self._left if amount < 0 else min(amount, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        """The source is closed by who opened it."""
