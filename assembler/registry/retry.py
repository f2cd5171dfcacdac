"""When to try again, and how long to wait before.

Only what is known to pass is retried: 429 and 5xx answers, connections that break, timeouts. A wrong password or a
missing image fails at once. The wait doubles and has jitter, so that the nodes of a cluster do not knock together.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from assembler.registry.refusal import TransientError

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient to be. Times are seconds; `longest` also bounds what a registry may ask for."""

    attempts: int = 6
    first: float = 0.5
    longest: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait after the failure of attempt number `attempt`, counted from 0."""
        if asked is not None:
            return min(asked, self.longest)
        return min(self.first * float(2**attempt), self.longest) * random.uniform(0.5, 1.0)  # noqa: S311


def retrying(policy: RetryPolicy, action: Callable[[], T]) -> T:
    """Do `action` until it raises something else than TransientError; the last failure says how often we tried."""
    for attempt in range(policy.attempts):
        try:
            return action()
        except TransientError as error:
            if attempt + 1 == policy.attempts:
                error.detail = (*error.detail, f"tried {policy.attempts} times")
                raise
            policy.sleep(policy.wait(attempt, error.after))
    raise ValueError("expected at least one attempt")


def asked_wait(header: str | None) -> float | None:
    """Seconds that `Retry-After` asks for (a number or a date, RFC 9110 10.2.3), or None."""
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
