"""Asking mirrors first, the registry itself last; what failed on the way is told only when everything does.

A mirror may fail in any way: refuse, not have it, not be there, give wrong bytes. One that is not there is not
asked again for a while, so that it is waited for once and not for every blob.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from assembler.errors import AssembleError, NodeError, RegistryError, VerifyError
from assembler.registry.refusal import RefusedError
from assembler.registry.retry import RetryPolicy
from assembler.registry.settings import Endpoint, Located

_SILENT_SECONDS = 300.0
T = TypeVar("T")


def impatient(policy: RetryPolicy) -> RetryPolicy:
    """How often a mirror is asked again: there is somebody else."""
    return replace(policy, attempts=min(policy.attempts, 2), longest=2.0)


class Mirrors:
    """Which mirrors are not there at the moment. Used by all transfer threads at once."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._silent: dict[Endpoint, tuple[float, str]] = {}
        self._lock = threading.Lock()

    def first(self, mirrors: Sequence[Located], home: Callable[[], Located], ask: Callable[[Located], T]) -> T:
        """The first answer. When nobody has one it is the error of the registry itself, with those of the
        mirrors in its detail; `home` may raise, too: a registry that is blocked has its mirrors alone.
        """
        passed = []
        for mirror in mirrors:
            silent = self._known(mirror.endpoint)
            if silent:
                passed.append(f"mirror {mirror.name}: {silent}")
                continue
            try:
                return ask(mirror)
            except (RegistryError, VerifyError, NodeError) as error:
                passed.append(f"mirror {mirror.name}: {error.fact}")
                if isinstance(error, RegistryError) and not isinstance(error, RefusedError):
                    self._note(mirror.endpoint, error.fact)
        try:
            return ask(home())
        except AssembleError as error:
            error.detail = (*error.detail, *passed)
            raise

    def _known(self, endpoint: Endpoint) -> str | None:
        with self._lock:
            until, fact = self._silent.get(endpoint, (0.0, ""))
            return fact if self._now() < until else None

    def _note(self, endpoint: Endpoint, fact: str) -> None:
        with self._lock:
            self._silent[endpoint] = (self._now() + _SILENT_SECONDS, fact)
