"""What a registry answered when it did not do what was asked (distribution-spec, "Error codes")."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from assembler.errors import RegistryError
from assembler.registry.login_hints import login_hint
from assembler.registry.receiving import bounded_body

if TYPE_CHECKING:
    import requests

_LONGEST_MESSAGE = 300
_BODY_LIMIT = 64 << 10


class RefusedError(RegistryError):
    """A registry refused. `status` is HTTP's, `code` the specification's (`DENIED`) or empty."""

    def __init__(
        self, fact: str, *, status: int, code: str = "", place: str | None, hint: str | None = None
    ) -> None:
        super().__init__(fact, place=place, hint=hint)
        self.status = status
        self.code = code


class TransientError(RegistryError):
    """It may go better next time. `after` is how long the registry asked to wait, in seconds, or None; `status` is
    HTTP's, 0 when there was no answer.
    """

    def __init__(
        self,
        fact: str,
        *,
        place: str | None,
        hint: str | None = None,
        after: float | None = None,
        status: int = 0,
    ) -> None:
        super().__init__(fact, place=place, hint=hint)
        self.after = after
        self.status = status


def redacted(url: str) -> str:
    """A URL without user, password and query: signed addresses carry credentials there."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def refusal(method: str, response: requests.Response, place: str) -> RefusedError:
    """The error for an answer that nobody wanted, with the next step where one is known."""
    status = response.status_code
    code, message = _spec_error(response)
    said = ": ".join(filter(None, (" ".join(filter(None, (str(status), code))), message)))
    fact = f"`{method} {redacted(response.url or '')}` answered {said}"
    registry = place.partition("/")[0]
    return RefusedError(fact, status=status, code=code, place=place, hint=_hint(status, code, place, registry))


def not_logged_in(place: str, had_credentials: bool) -> RefusedError:
    """Nobody, or somebody unknown, asked."""
    registry = place.partition("/")[0]
    if had_credentials:
        fact = "the registry does not accept the credentials"
    else:
        fact = "the registry wants a login, and no credentials are configured for it"
    return RefusedError(fact, status=401, code="UNAUTHORIZED", place=place, hint=login_hint(registry))


def _hint(status: int, code: str, place: str, registry: str) -> str | None:
    if 300 <= status < 400:
        return "the registry, or a proxy before it, sends us elsewhere: is the address right?"
    if status == 401:
        return login_hint(registry)
    if status == 403 or code == "DENIED":
        return f"the account may not do this: ask for the right to `{place}`, or log in as another"
    if code in ("MANIFEST_UNKNOWN", "MANIFEST_BLOB_UNKNOWN") or (status == 404 and code != "NAME_UNKNOWN"):
        return "there is no such image or blob: look at its name, tag and digest"
    if code == "NAME_UNKNOWN" or status == 404:
        return "there is no such repository; some registries want it created before the first push"
    if status == 413:
        return "the registry, or a proxy before it, limits the size of a layer: see `client_max_body_size`"
    return None


def _spec_error(response: requests.Response) -> tuple[str, str]:
    """Code and message of the first error of the body; empty when it has none (answers to HEAD never have)."""
    try:
        first = json.loads(bounded_body(response, _BODY_LIMIT))["errors"][0]
        code, message = str(first.get("code") or ""), str(first.get("message") or "")
    except Exception:  # a body may be anything at all: HTML, nothing, cut short
        return "", ""
    return code[:64], "".join(c if c.isprintable() else " " for c in message)[:_LONGEST_MESSAGE]
