"""Bodies of answers on their way in: bounded, and given up when they come too slowly to ever end.

A socket's timeout only sees silence. A server that gives a byte now and then, by a fault or on purpose, would hold
a transfer for days; so bytes are counted over the time that was spent waiting for them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assembler.network import root_cause

if TYPE_CHECKING:
    import requests

_BODY_LIMIT = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowest:
    """Fewer than `rate` bytes a second, over `seconds` of waiting, are a connection that is as good as broken.

    The default lets a modem pass and no broken connection.
    """

    rate: float = 1024.0
    seconds: float = 60.0


class Inflow:
    """The body of one answer. What breaks it off is an OSError, whatever library noticed it."""

    __slots__ = ("_got", "_raw", "_slowest", "_waited")

    def __init__(self, response: requests.Response, slowest: Slowest | None = None) -> None:
        self._raw: Any = response.raw
        self._slowest = slowest or Slowest()
        self._got = 0
        self._waited = 0.0

    def some(self, most: int, *, decode: bool = False) -> bytes:
        """At least one byte and at most so many; nothing at the end of the body."""
        import urllib3.exceptions

        begun = time.monotonic()
        try:
            data: bytes = self._raw.read1(most, decode_content=decode) or b""
        except urllib3.exceptions.HTTPError as error:
            cause = root_cause(error)
            text = cause.strerror if isinstance(cause, OSError) else None
            raise ConnectionError((text or type(error).__name__).lower()) from None
        # Only the time spent here counts: whoever reads may be slow for reasons of its own.
        self._waited += time.monotonic() - begun
        self._got += len(data)
        if self._waited >= self._slowest.seconds:
            if data and self._got < self._slowest.rate * self._waited:
                raise TimeoutError(f"only {self._got} bytes came in {self._waited:.0f} seconds")
            self._got, self._waited = 0, 0.0
        return data


def bounded_body(response: requests.Response, limit: int, slowest: Slowest | None = None) -> bytes:
    """The body of a streamed answer; ValueError when it is longer than `limit` bytes, OSError when it breaks."""
    inflow, parts, size = Inflow(response, slowest), [], 0
    while data := inflow.some(limit + 1 - size, decode=True):
        parts.append(data)
        size += len(data)
        if size > limit:
            response.close()
            raise ValueError(f"expected at most {limit} bytes, got more")
    return b"".join(parts)


def discard(response: requests.Response) -> None:
    """Done with an answer: what little body it has is read, so that its connection can be used again."""
    try:
        bounded_body(response, _BODY_LIMIT)
    except Exception:  # nobody wants these bytes; a broken connection shows at the next request
        response.close()
