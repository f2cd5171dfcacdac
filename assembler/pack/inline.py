"""Work that is done at once, where it is submitted: for layers that are packed beside each other.

A layer that has the host to itself is packed by several threads, each a stage. When as many layers as there are
processors are packed at once, stages only take turns: handing chunks and the interpreter lock around then costs a
fifth of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class Inline(Executor):
    """An executor whose jobs run in the thread that submits them."""

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **options: Any) -> Future[Result]:
        """Run it now; its error is kept for whoever asks for the result."""
        done: Future[Result] = Future()
        try:
            done.set_result(function(*arguments, **options))
        except Exception as error:
            done.set_exception(error)
        return done


def executor(threads: int, name: str, *, inline: bool) -> Executor:
    """Threads for a stage, or none."""
    return Inline() if inline else ThreadPoolExecutor(threads, name)
