"""What goes out while a run still works: the question whether we may push, and the layers that are being packed.

Both happen beside the work that they would hold up. The question is answered before anything is compiled or run
(`Session.ready`); a layer that is being packed meanwhile is given up when the answer is no.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from assembler.oci.reference import Reference

if TYPE_CHECKING:
    from assembler.registry.client import Client
    from assembler.registry.following import Following, Uplink


class Sending:
    """The push of one run. A context manager: leaving it abandons what is on its way."""

    def __init__(self, targets: Sequence[Reference], client: Callable[[], Client]) -> None:
        self._targets = tuple(targets)
        self._client = client
        self._lock = threading.Lock()
        self._asked = False
        self._answered = threading.Event()
        self._refusal: BaseException | None = None
        self._uplink: Uplink | None = None

    def __enter__(self) -> Sending:
        return self

    def __exit__(self, *_: object) -> None:
        if self._uplink:
            self._uplink.close()

    def _ask(self) -> None:
        try:
            client = self._client()
            for target in self._targets:
                client.check_push(target)
        except BaseException as error:  # raised where it is waited for
            self._refusal = error
        finally:
            self._answered.set()

    def look(self) -> None:
        """Raise what stands against the push, if that is known by now."""
        if self._answered.is_set() and self._refusal:
            raise self._refusal

    def _begin(self) -> None:
        """Ask, once. Not before there is something to do meanwhile: loading the client takes its time."""
        with self._lock:
            if not self._asked:
                self._asked = True
                # Registries can be slow to answer or dead; a program that is done does not wait for them.
                threading.Thread(target=self._ask, name="credentials", daemon=True).start()

    def ready(self) -> None:
        """Wait for the answer; raises what stands against the push."""
        self._begin()
        self._answered.wait()
        self.look()

    @property
    def uplink(self) -> Uplink:
        """The way to the first target's repository; the others get their blobs from there, or from the store."""
        from assembler.registry.following import Uplink

        with self._lock:
            if self._uplink is None:
                self._uplink = Uplink(self._targets[0], self._permitted)
            return self._uplink

    def _permitted(self) -> Client:
        self.ready()
        return self._client()

    @contextlib.contextmanager
    def following(self) -> Iterator[Following | None]:
        """What sends a blob that is packed in this block, if that can be; given up when the block fails."""
        self._begin()
        follower = self.uplink.follow()
        try:
            yield follower
        except BaseException:
            if follower:
                follower.abandon()
            raise
