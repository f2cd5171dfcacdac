"""What network trouble means: the innermost reason in a few words, and whether waiting could help."""

from __future__ import annotations

import socket

_UNKNOWN_HOST = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
_LONGEST = 200


def root_cause(error: BaseException) -> BaseException:
    """Where it began: requests wraps urllib3, which wraps the operating system."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def reason(error: BaseException) -> str:
    """The innermost cause, without addresses of objects and without URLs.

    >>> reason(ConnectionRefusedError(111, "Connection refused"))
    'connection refused'
    """
    cause = root_cause(error)
    if isinstance(cause, socket.gaierror) and cause.errno in _UNKNOWN_HOST:
        return "there is no host of this name"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    text = str(cause).strip().rpartition(">: ")[2] or type(cause).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def nobody_hint(error: BaseException) -> str | None:
    """What to look at when nobody is there: the name is unknown, or nothing listens. None for other trouble.

    Before the first answer of a host, such trouble does not pass by itself; after it, the host may be starting
    again.
    """
    cause = root_cause(error)
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there: is it running, and is the port right?"
    if isinstance(cause, socket.gaierror) and cause.errno in _UNKNOWN_HOST:
        return "is the name right, and does this host reach the network?"
    return None
