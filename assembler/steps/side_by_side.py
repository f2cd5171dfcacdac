"""Work in a few threads at a time, for layers that are packed beside each other.

One layer cannot fill a host: its tar is hashed as one stream, a large member of a wheel is inflated as one, and
its end is waited for. Two or three can, and memory stays small.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Result = TypeVar("Result")


def width() -> int:
    """How many layers fill the processors that we may use: each has threads of its own."""
    cores = len(os.sched_getaffinity(0))
    return 1 if cores == 1 else 2 if cores < 8 else 3


def fills_host(at_once: int) -> bool:
    """Are so many layers enough for every processor, if each is packed by one thread?"""
    return at_once >= len(os.sched_getaffinity(0))


class SideBySide(Generic[Result]):
    """Runs jobs, `at_once` of them. A context manager: when the block ends all of them have.

    The first error of a job is raised by `add` or at the end of the block; it, and an error of the block, sets
    `stop`, which jobs look at, and calls `on_stop`, which ends what they wait for.
    """

    def __init__(self, at_once: int, stop: threading.Event, on_stop: Callable[[], None] | None = None) -> None:
        self._at_once = at_once
        self._stop = stop
        self._on_stop = on_stop
        self._pool = ThreadPoolExecutor(at_once, "layer")
        self._running: set[Future[Result]] = set()
        self.results: list[Result] = []
        """What the jobs gave, in the order in which they ended."""

    def __enter__(self) -> SideBySide[Result]:
        return self

    def add(self, job: Callable[[], Result]) -> None:
        """Begin a job, once fewer than `at_once` are running."""
        self._until(self._at_once - 1)
        self._running.add(self._pool.submit(job))

    def _until(self, number: int) -> None:
        """Wait until no more than so many jobs run; raises the error of one that failed."""
        while True:
            done = {job for job in self._running if job.done()}
            self._running -= done
            self.results += [job.result() for job in done]
            if len(self._running) <= number:
                return
            wait(self._running, return_when=FIRST_COMPLETED)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._until(0)
        except BaseException:
            self._end()
            raise
        finally:
            if kind is not None:
                self._end()
            self._pool.shutdown(cancel_futures=True)

    def _end(self) -> None:
        self._stop.set()
        if self._on_stop:
            self._on_stop()
