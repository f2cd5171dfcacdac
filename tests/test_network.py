"""Trouble in few words, and trouble that waiting does not mend."""

from __future__ import annotations

import socket

import pytest
import requests

from assembler.network import nobody_hint, reason


def _wrapped(cause: Exception) -> Exception:
    """As requests and urllib3 wrap it."""
    try:
        try:
            raise cause
        except Exception as error:
            raise requests.ConnectionError("HTTPConnectionPool(host='x'): <object at 0x7f>: lost") from error
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("cause", "said", "hint"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "connection refused", "nothing listens there"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "no host of this name", "name right"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "temporary failure", None),
        (ConnectionResetError(104, "Connection reset by peer"), "connection reset by peer", None),
        (TimeoutError("timed out"), "timed out", None),
        (ValueError(""), "ValueError", None),
    ],
)
def test_reasons(cause: Exception, said: str, hint: str | None) -> None:
    error = _wrapped(cause)
    assert said in reason(error)
    assert "0x" not in reason(error)
    found = nobody_hint(error)
    assert (found is None) == (hint is None)
    assert hint is None or hint in str(found)


def test_long_reasons_are_cut() -> None:
    assert len(reason(ValueError("x" * 1000))) == 200
