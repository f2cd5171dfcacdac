"""When to try again, and how long to wait before.

Only what is known to pass is retried: 429 and 5xx answers, connections that break, timeouts. A wrong password or a
missing image fails at once. The wait doubles and has jitter, so that the nodes of a cluster do not knock together.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from assembler.registry.receiving import Slowest
from assembler.registry.refusal import TransientError

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
MEBIBYTE = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient to be. Times are seconds, sizes bytes; `longest` also bounds what a registry may ask for.

    `attempts` is how often in a row something may fail. A transfer that has come `progress` bytes further counts
    anew, but fails for good after `in_all` tries: with a little each time it would go on for ever.
    """

    attempts: int = 6
    in_all: int = 200
    progress: int = MEBIBYTE
    first: float = 0.5
    longest: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    connect: float = 30.0
    """To connect, and for each block of 64 KiB that is sent: urllib3 uses one timeout for both."""
    silence: float = 120.0
    """Until the next byte of an answer."""
    commit: float = 900.0
    """Until the answer to a PUT: a registry may copy a blob of many gigabytes before it answers."""
    slowest: Slowest = field(default_factory=Slowest)

    resume: int = 16 * MEBIBYTE
    """An upload that broke after so many bytes is worth a question where the registry stands."""
    parts: tuple[int, ...] = (90 * MEBIBYTE, 8 * MEBIBYTE, MEBIBYTE)
    """Sizes of requests, for where large ones do not get through: below Cloudflare's 100 MB for most plans, what
    an administrator of nginx may have set, and nginx's own default (`client_max_body_size 1m`)."""

    def wait(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait after the failure of attempt number `attempt`, counted from 0."""
        if asked is not None:
            return min(asked, self.longest)
        return min(self.first * float(2 ** min(attempt, 30)), self.longest) * random.uniform(0.5, 1.0)  # noqa: S311

    def part_below(self, size: int) -> int | None:
        """The largest size of parts that is smaller than a request of `size` bytes."""
        return next((part for part in self.parts if part < size), None)


class Tries:
    """The tries at one thing."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._reached = 0
        self.in_a_row = 0
        """Failures since there was progress."""
        self.in_all = 0

    def failed(self, error: TransientError, reached: int = 0) -> None:
        """A try failed with `reached` bytes through for good: wait before the next one, or raise when it was the
        last. The error then says how often we tried.
        """
        if reached - self._reached >= self._policy.progress:
            self._reached, self.in_a_row = reached, 0
        self.in_a_row += 1
        self.in_all += 1
        if self.in_a_row >= self._policy.attempts or self.in_all >= self._policy.in_all:
            error.detail = (*error.detail, f"tried {self.in_all} times")
            raise error
        self._policy.sleep(self._policy.wait(self.in_a_row - 1, error.after))


def retrying(policy: RetryPolicy, action: Callable[[], T]) -> T:
    """Do `action` until it raises something else than TransientError; the last failure says how often we tried."""
    tries = Tries(policy)
    while True:
        try:
            return action()
        except TransientError as error:
            tries.failed(error)


def asked_wait(header: str | None) -> float | None:
    """Seconds that `Retry-After` asks for (a number or a date, RFC 9110 10.2.3), or None."""
    if not header:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
