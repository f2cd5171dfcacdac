"""A running step as the display knows it: elapsed time, bytes, rate, time left; and the columns of a line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from assembler.cli_text import duration_text, fit, pad, printable, redact, size_text

_WINDOW_SECONDS = 8.0
_SAMPLE_SECONDS = 0.25
_LONGEST_SECONDS = 100 * 86_400.0
_VERB, _NAME, _KEY, _OUTCOME, _SECONDS = 9, 28, 6, 7, 7


def columns(
    verb: str,
    name: str,
    *,
    key: str = "",
    outcome: str = "",
    seconds: str = "",
    detail: str = "",
    paint: Callable[[str], str] = str,
) -> str:
    """One line in the columns of the display. A long name pushes the rest to the right, it is never cut.

    >>> columns("compile", "ucx", key="8c1f02", outcome="cached")
    'compile    ucx                           8c1f02  cached'
    """
    # Layers are called after their kind, which is the verb here: `packages libgomp1`, `run make`.
    cells = f"{pad(verb, _VERB)}  {pad(name.removeprefix(f'{verb} '), _NAME)}  {pad(key, _KEY)}  "
    after = f"  {pad(seconds, _SECONDS, right=True)}  {detail}".rstrip()
    if not after:
        return cells + paint(outcome) if outcome else cells.rstrip()
    return cells + paint(outcome) + " " * (_OUTCOME - len(outcome)) + after


class Running:
    """A step between its start and its end. Times are of one monotonic clock, in seconds.

    The rate is that of the last eight seconds, so that it follows a network that slows down, yet does not
    jump with each chunk.
    """

    __slots__ = ("_samples", "announced", "done_bytes", "name", "reminded", "started", "total_bytes", "verb")

    def __init__(self, verb: str, name: str, started: float) -> None:
        self.verb = verb
        self.name = name
        self.started = started
        self.announced = False
        self.reminded = started
        self.done_bytes: int | None = None
        self.total_bytes: int | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def progress(self, done_bytes: int, total_bytes: int | None, now: float) -> None:
        """Note how far it is. Fewer bytes than before mean that a transfer began again."""
        if self.done_bytes is not None and done_bytes < self.done_bytes:
            self._samples.clear()
        self.done_bytes, self.total_bytes = done_bytes, total_bytes
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, done_bytes))
        while len(self._samples) > 1 and now - self._samples[1][0] >= _WINDOW_SECONDS:
            self._samples.popleft()

    def rate(self, now: float) -> float | None:
        """Bytes a second over the window, which ends now, whether anything moves or not; None while there is too
        little to tell.
        """
        if self.done_bytes is None or not self._samples:
            return None
        # The newest sample before the window began: what moved within it came after that.
        before = [sample for sample in self._samples if now - sample[0] >= _WINDOW_SECONDS]
        since, then = before[-1] if before else self._samples[0]
        return (self.done_bytes - then) / (now - since) if now - since >= 1.0 else None

    def seconds_left(self, now: float) -> float | None:
        """How long it takes still at this rate; None when it cannot be told, as when nothing moves.

        What is left in less than a second is not announced: the end of a transfer is the registry's work on what
        it got, which no rate tells.
        """
        rate = self.rate(now)
        if not rate or self.total_bytes is None or self.done_bytes is None:
            return None
        seconds = (self.total_bytes - self.done_bytes) / rate
        return seconds if 1.0 <= seconds <= _LONGEST_SECONDS else None

    def amount_text(self, now: float) -> str:
        """Bytes done, of how many, how fast, how long still; empty when no bytes are counted."""
        if self.done_bytes is None:
            return ""
        parts = [size_text(self.done_bytes)]
        if self.total_bytes is not None:
            parts[0] += f" of {size_text(self.total_bytes)}"
        # What is through has no rate: the step goes on with something else, such as installing what it fetched.
        is_through = self.total_bytes is not None and self.done_bytes >= self.total_bytes
        if not is_through and (rate := self.rate(now)) is not None:
            parts.append(f"{size_text(rate)}/s")
        if (left := self.seconds_left(now)) is not None:
            parts.append(f"{_whole_seconds(left)} left")
        return "  ".join(parts)

    def live_line(self, now: float) -> str:
        """The line that is redrawn: verb, name (cut, so that the rest has its place), elapsed time, bytes."""
        elapsed = pad(_whole_seconds(now - self.started), _SECONDS, right=True)
        name = fit(redact(printable(self.name)), _NAME)
        return f"{pad(self.verb, _VERB)}  {pad(name, _NAME)}  {elapsed}  {self.amount_text(now)}".rstrip()


def _whole_seconds(seconds: float) -> str:
    """A duration without tenths, which would only flicker."""
    return f"{int(seconds)}s" if seconds < 59 else duration_text(seconds)
