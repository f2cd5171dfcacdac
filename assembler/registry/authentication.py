"""Logging in: challenges, tokens and their scopes (distribution-spec, and docker's token authentication).

oras-py finds the credentials; the tokens are ours, because its backend keeps one token for everything, repeats a
token that has expired, and cannot say whether a password was wrong or the login server was down. A mount needs a
token for two repositories at once, and a push of many gigabytes outlives any token.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from assembler.errors import RegistryError
from assembler.oci.reference import Reference
from assembler.registry.refusal import RefusedError, not_logged_in, redacted, refusal

if TYPE_CHECKING:
    import requests

Scopes: TypeAlias = tuple[str, ...]
Send: TypeAlias = Callable[..., "LoginAnswer"]
"""(method, url, place, headers, data): one request without our authentication, retried, timeouts set."""

_PARAMETER = re.compile(r'([A-Za-z_]+)="([^"]*)"')
_SHORTEST_LIFE = 60.0
_LONGEST_LIFE = 86_400.0


def pull(repository: str) -> str:
    """The scope to read a repository."""
    return f"repository:{repository}:pull"


def push(repository: str) -> str:
    """The scope to read and write a repository."""
    return f"repository:{repository}:pull,push"


def delete(repository: str) -> str:
    """The scope to delete manifests of a repository."""
    return f"repository:{repository}:pull,delete"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a configuration file or a helper gave: base64 of `user:password`, or an identity (refresh) token."""

    basic: str | None = field(default=None, repr=False)
    identity_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_basic(cls, basic: str) -> Credentials:
        """Read what helpers answer; the user name `<token>` says that the secret is an identity token."""
        try:
            user, _, secret = base64.b64decode(basic).decode().partition(":")
        except ValueError:
            return cls(basic=basic)
        return cls(identity_token=secret) if user == "<token>" else cls(basic=basic)


@dataclass(frozen=True, slots=True)
class LoginAnswer:
    """What a login server answered: the body of a 200, or what to say of anything else."""

    status: int
    body: bytes = field(repr=False)
    refused: RefusedError | None = None


@dataclass(frozen=True, slots=True)
class Challenge:
    """A `WWW-Authenticate` header: how the registry wants to be asked."""

    scheme: str
    realm: str = field(default="", repr=False)  # whatever a registry writes there
    service: str = ""
    scope: str = ""

    @classmethod
    def parse(cls, header: str) -> Challenge:
        """Read the header; of several challenges Bearer is taken, else the first."""
        start = header.lower().find("bearer ")
        text = header[max(start, 0) :]
        values = {name.lower(): value for name, value in _PARAMETER.findall(text)}
        return cls(
            scheme=text.split(None, 1)[0].lower() if text.strip() else "",
            realm=values.get("realm", ""),
            service=values.get("service", ""),
            scope=values.get("scope", ""),
        )


@dataclass(frozen=True, slots=True)
class _Token:
    header: str = field(repr=False)
    renew_at: float


class Authenticator:
    """Logs in to one registry. Used by all transfer threads at once."""

    def __init__(
        self, send: Send, credentials: Callable[[Reference], Credentials | None], *, plain_login: bool
    ) -> None:
        self._send = send
        self._plain_login = plain_login
        self._credentials = credentials
        self._challenge: Challenge | None = None
        self._tokens: dict[Scopes, _Token] = {}
        self._lock = threading.Lock()

    def header(self, reference: Reference, scopes: Scopes) -> str | None:
        """The `Authorization` to send, as far as the registry has told how; a stale token is renewed before."""
        with self._lock:
            if self._challenge is None:
                return None
            token = self._tokens.get(scopes)
            if token is None or time.monotonic() >= token.renew_at:
                token = self._tokens[scopes] = self._log_in(self._challenge, reference, scopes)
            return token.header

    def answer(self, response: requests.Response, reference: Reference, scopes: Scopes, sent: str | None) -> None:
        """Learn from a 401, so that `header` gives something new; RegistryError when there is nothing new."""
        challenge = Challenge.parse(response.headers.get("WWW-Authenticate", ""))
        if challenge.scheme not in ("basic", "bearer"):
            raise refusal(response.request.method or "", response, str(reference))
        with self._lock:
            self._challenge = challenge
            known = self._tokens.get(scopes)
            if known and known.header != sent:
                return  # another thread has logged in meanwhile
            token = self._log_in(challenge, reference, scopes)
            if token.header == sent:
                raise not_logged_in(reference.name, had_credentials=True)
            self._tokens[scopes] = token

    def rejected(self, reference: Reference) -> RefusedError:
        """The error for a registry that has taken our login and still answers 401."""
        return not_logged_in(reference.name, had_credentials=self._credentials(reference) is not None)

    def _log_in(self, challenge: Challenge, reference: Reference, scopes: Scopes) -> _Token:
        credentials = self._credentials(reference)
        if challenge.scheme == "basic":
            if credentials is None or credentials.basic is None:
                raise not_logged_in(reference.name, had_credentials=False)
            return _Token(f"Basic {credentials.basic}", float("inf"))
        value = self._fetch_token(challenge, reference, credentials, scopes)
        text = value.get("token") or value.get("access_token")
        if not isinstance(text, str) or not text.isascii() or not text.isprintable():
            raise RegistryError("the login server gave no token", place=reference.name)
        # Counted from now: `issued_at` is the time of another clock.
        life = value.get("expires_in")
        seconds = min(life, _LONGEST_LIFE) if isinstance(life, int | float) and life > 0 else _SHORTEST_LIFE
        return _Token(f"Bearer {text}", time.monotonic() + seconds * 0.75)

    def _fetch_token(
        self, challenge: Challenge, reference: Reference, credentials: Credentials | None, scopes: Scopes
    ) -> dict[str, Any]:
        wanted = scopes or tuple(filter(None, (challenge.scope,)))
        realm, place = challenge.realm, reference.name
        if not realm.startswith("https://") and not (self._plain_login and realm.startswith("http://")):
            raise RegistryError(f"expected a login server with https, got `{redacted(realm)}`", place=place)
        if credentials and credentials.identity_token:
            data = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token}
            data |= {"service": challenge.service, "scope": " ".join(wanted), "client_id": "assemble"}
            answer = self._send("POST", realm, place, data=data)
        else:
            basic = credentials.basic if credentials else None
            headers = {"Authorization": f"Basic {basic}"} if basic else {}
            query = [("service", challenge.service)] if challenge.service else []
            query += [("scope", scope) for scope in wanted]
            answer = self._send("GET", realm, place, headers=headers, params=query)
        if answer.status in (400, 401, 403):
            raise not_logged_in(place, had_credentials=credentials is not None)
        if answer.refused:
            raise answer.refused
        try:
            value = json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            fact = f"expected JSON from the login server `{redacted(realm)}`, got something else"
            raise RegistryError(fact, place=place, detail=[str(error)[:200]]) from None
        return value if isinstance(value, dict) else {}
