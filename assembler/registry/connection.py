"""One registry, spoken to: every request with authentication, timeouts and retries, every failure a RegistryError.

Bodies are streamed both ways. A body is given as something that opens it, so that a second try starts over.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from assembler.errors import RegistryError
from assembler.network import nobody_hint, reason
from assembler.oci.digest import Readable
from assembler.oci.reference import Reference
from assembler.registry.authentication import Authenticator, Credentials, LoginAnswer, Scopes
from assembler.registry.certificates import tls_hint
from assembler.registry.receiving import bounded_body, discard
from assembler.registry.refusal import RefusedError, TransientError, redacted, refusal
from assembler.registry.retry import TRANSIENT_STATUSES, RetryPolicy, asked_wait, retrying
from assembler.registry.settings import Endpoint, is_loopback

if TYPE_CHECKING:
    import requests

_SMALL = 64 << 10
_SENT_AT_ONCE = 64 << 10  # a block has to be through within `RetryPolicy.connect` seconds, on slow links as well
_LOGIN_LIMIT = 1 << 20
_MOST_REDIRECTS = 10
_RACE_CHANCES = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})
_PROBE_SECONDS = 10.0
_NO_PROXY: Mapping[str, Any] = {"http": None, "https": None, "all": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a request carries: `size` bytes of what `open` gives, `progress` told how many are through.

    A size of None says that it is not known before the end: the body goes out in chunks (RFC 9112 7.1).
    """

    open: Callable[[], Readable]
    size: int | None
    progress: Callable[[int], None] | None = None

    @classmethod
    def of(cls, data: bytes) -> Body:
        """These bytes."""
        return cls(open=lambda: io.BytesIO(data), size=len(data))


class _Sending:
    """A body on its way, read in blocks by urllib3. Without a length, `requests` sends it in chunks."""

    def __init__(self, stream: Readable, body: Body) -> None:
        self._stream = stream
        self._body = body
        self._done = 0

    def __iter__(self) -> Iterator[bytes]:  # `requests` takes only iterables for streams; urllib3 calls read
        while block := self.read(1 << 20):
            yield block

    def read(self, amount: int = -1) -> bytes:
        block = self._stream.read(min(amount, _SENT_AT_ONCE))
        self._done += len(block)
        if block and self._body.progress:
            self._body.progress(self._done)
        return block


class _SizedSending(_Sending):
    """A body whose length is announced."""

    def __len__(self) -> int:
        return self._body.size or 0


class Connection:
    """The session to one endpoint. Safe to use from several threads."""

    def __init__(
        self,
        endpoint: Endpoint,
        session: requests.Session,
        credentials: Callable[[Reference], Credentials | None],
        policy: RetryPolicy,
    ) -> None:
        self._endpoint = endpoint
        self._session = session
        # `requests` prepares a redirect, with all of its body in memory, even where it may not follow.
        session.get_redirect_target = _nowhere  # type: ignore[method-assign,assignment]
        self._policy = policy
        self._authenticator = Authenticator(
            self._send_to_login, credentials, plain_login=endpoint.security == "insecure"
        )
        self._scheme: str | None = None
        self._has_answered = False
        self._lock = threading.Lock()
        self.part_bytes: int | None = None
        """The largest request that gets through, once one was refused for its size (413); else None."""

    def url(self, path: str) -> str:
        """The full URL of `host/v2/…`."""
        return f"{self.scheme}://{path}"

    def close(self) -> None:
        """Let go of the connections that nobody uses now."""
        self._session.close()

    @property
    def scheme(self) -> str:
        """`https`, or what an insecure registry speaks."""
        with self._lock:
            if self._scheme is None:
                self._scheme = "https"
                if self._endpoint.security == "insecure":
                    self._scheme = "https" if speaks_tls(self._endpoint.host) else "http"
                    _expect_no_certificates()
            return self._scheme

    def request(
        self,
        method: str,
        url: str,
        reference: Reference,
        *,
        scopes: Scopes,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        races: Collection[str] = (),
    ) -> requests.Response:
        """Send until it is answered with one of `expect`. The answer's body is not read yet.

        `races` are codes of refusals that another writer's unfinished work may cause: they are tried again.
        Raises RefusedError for any other answer, TransientError when the tries are used up.
        """
        chances = iter(range(_RACE_CHANCES))

        def once() -> requests.Response:
            try:
                return self.request_once(
                    method, url, reference, scopes=scopes, expect=expect, headers=headers, body=body
                )
            except RefusedError as error:
                if error.code not in races or next(chances, None) is None:
                    raise
                raise TransientError(error.fact, place=error.place, hint=error.hint) from None

        return retrying(self._policy, once)

    def document(
        self,
        url: str,
        reference: Reference,
        limit: int,
        *,
        scopes: Scopes,
        expect: Collection[int] = (200,),
        headers: Mapping[str, str] | None = None,
    ) -> tuple[requests.Response, bytes]:
        """Get a document of at most `limit` bytes, with its body: a try that breaks off in it is no answer."""

        def once() -> tuple[requests.Response, bytes]:
            response = self.request_once("GET", url, reference, scopes=scopes, expect=expect, headers=headers)
            return response, self._whole(response, limit, str(reference))

        return retrying(self._policy, once)

    def retrying(self, action: Callable[[], Any]) -> Any:
        """Retry several requests as one, with this connection's patience."""
        return retrying(self._policy, action)

    @property
    def policy(self) -> RetryPolicy:
        """The patience of this connection."""
        return self._policy

    def _whole(self, response: requests.Response, limit: int, place: str) -> bytes:
        try:
            return bounded_body(response, limit, self._policy.slowest)
        except ValueError as error:
            raise RegistryError(str(error), place=place) from None
        except OSError as error:
            response.close()
            raise TransientError(f"the answer broke off: {error}", place=place) from None

    def request_once(
        self,
        method: str,
        url: str,
        reference: Reference,
        *,
        scopes: Scopes,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> requests.Response:
        """One try. A 401 is answered by logging in; a big body is then left to the next try, from its start."""
        place = str(reference)
        for last in (False, True):
            sent = self._authenticator.header(reference, scopes) if self._ours(url) else None
            response = self._send(method, url, place, headers=_with(headers, sent), body=body)
            if response.status_code != 401 or not self._ours(response.url):
                break
            if last:
                discard(response)
                raise self._authenticator.rejected(reference)
            try:
                self._authenticator.answer(response, reference, scopes, sent)
            finally:
                discard(response)
            if body and not _is_small(body):
                hint = (
                    "tokens end before an upload does: are the clocks of the registry and its login server right?"
                )
                raise TransientError("the login expired", place=place, hint=hint, after=0.0, status=401)
        if response.status_code in expect:
            return response
        error = refusal(method, response, place)
        if response.status_code in TRANSIENT_STATUSES:
            after = asked_wait(response.headers.get("Retry-After"))
            raise TransientError(error.fact, place=place, hint=error.hint, after=after, status=error.status)
        raise error

    def _ours(self, url: str) -> bool:
        """Credentials go to the registry itself only, never to a store that it sends us to."""
        parts = urlsplit(url)
        return parts.scheme == self.scheme and parts.netloc == self._endpoint.host

    def _send_to_login(self, method: str, url: str, place: str, **options: Any) -> LoginAnswer:
        def once() -> LoginAnswer:
            response = self._send(method, url, place, **options)
            if response.status_code in TRANSIENT_STATUSES:
                after = asked_wait(response.headers.get("Retry-After"))
                raise TransientError(refusal(method, response, place).fact, place=place, after=after)
            if response.status_code == 200:
                return LoginAnswer(200, self._whole(response, _LOGIN_LIMIT, place))
            return LoginAnswer(response.status_code, b"", refusal(method, response, place))

        return retrying(self._policy, once)

    def _send(
        self,
        method: str,
        url: str,
        place: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        **options: Any,
    ) -> requests.Response:
        """One exchange and the redirects that it takes. A body starts over at each, without our credentials.

        `requests` would send what is left of a body, and read the bodies of redirects whatever their size.
        """
        sent = dict(headers or {})
        for _ in range(_MOST_REDIRECTS):
            response = self._exchange(method, url, place, sent, body, options)
            location = response.headers.get("Location")
            can_follow = method in ("GET", "HEAD") or (
                response.status_code in _SAME_METHOD and options.get("data") is None  # which is a login
            )
            if not location or response.status_code not in _REDIRECTS or not can_follow:
                return response
            discard(response)
            before, url = urlsplit(url), joined(url, location, place)
            options.pop("params", None)  # they were for the first address
            if (before.scheme, before.netloc) != urlsplit(url)[:2]:
                sent.pop("Authorization", None)
        fact = f"`{method} {redacted(url)}`: more than {_MOST_REDIRECTS} redirects"
        raise RegistryError(fact, place=place, hint="the registry, or a proxy before it, sends in circles")

    def _exchange(
        self,
        method: str,
        url: str,
        place: str,
        headers: Mapping[str, str],
        body: Body | None,
        options: Mapping[str, Any],
    ) -> requests.Response:
        """One request; connection trouble becomes TransientError, an untrusted certificate a plain error."""
        import requests.exceptions

        policy = self._policy
        stream = body.open() if body else None
        try:
            data: Any = options.get("data")
            if body and stream:
                sending = _Sending(stream, body) if body.size is None else _SizedSending(stream, body)
                data = sending.read() if _is_small(body) else sending
            response = self._session.request(
                method,
                url,
                params=options.get("params"),
                data=data,
                headers=dict(headers),
                auth=_as_it_is,
                stream=True,
                allow_redirects=False,
                timeout=(policy.connect, policy.commit if method == "PUT" else policy.silence),
                verify=self._session.verify if self._endpoint.security == "verified" else False,
                proxies=_NO_PROXY if is_loopback(urlsplit(url).netloc) else None,  # type: ignore[arg-type]
            )
        except requests.exceptions.SSLError as error:
            advice = tls_hint(reason(error), self._endpoint.name)
            raise RegistryError(f"`{method} {redacted(url)}`: {reason(error)}", place=place, hint=advice) from None
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            fact, hint = f"`{method} {redacted(url)}`: {reason(error)}", nobody_hint(error)
            if hint and not self._has_answered:
                raise RegistryError(fact, place=place, hint=hint) from None
            raise TransientError(fact, place=place, hint=hint) from None
        except requests.exceptions.RequestException as error:
            raise RegistryError(f"`{method} {redacted(url)}`: {type(error).__name__}", place=place) from None
        finally:
            if stream:
                stream.close()
        self._has_answered = True
        return response


def joined(url: str, location: str, place: str) -> str:
    """Where a `Location` leads; RegistryError for one that is no address.

    A registry behind a proxy that ends TLS may not know it, and call itself by `http`: that is the same host.
    """
    try:
        target = urljoin(url, location)
        here, there = urlsplit(url), urlsplit(target)
        if here.scheme == "https" and there.scheme == "http" and here.netloc == there.netloc:
            return target.replace("http", "https", 1)
    except ValueError:
        there = None
    if there is None or there.scheme not in ("http", "https") or not there.netloc:
        raise RegistryError(
            f"the registry sends us to `{redacted(location)[:200]}`, which is no address", place=place
        )
    return target


def _is_small(body: Body) -> bool:
    """Is it so small that it can be sent again at once?"""
    return body.size is not None and body.size <= _SMALL


def speaks_tls(host: str) -> bool:
    """Does this host (with port, else 443) answer a TLS greeting? Nothing of HTTP is sent."""
    parts = urlsplit(f"//{host}")
    context = ssl._create_unverified_context()  # noqa: S323  (only a greeting; nothing is trusted)
    try:
        with (
            socket.create_connection((parts.hostname or "", parts.port or 443), timeout=_PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname),
        ):
            return True
    except OSError:
        return False


def _expect_no_certificates() -> None:
    """The user's configuration calls the registry insecure; urllib3 need not warn at each request."""
    import urllib3

    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


def _with(headers: Mapping[str, str] | None, authorization: str | None) -> dict[str, str]:
    return {**(headers or {}), **({"Authorization": authorization} if authorization else {})}


def _nowhere(response: requests.Response) -> None:
    """Where a redirect leads, for `requests`: `Connection` follows them itself."""


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` that adds nothing: without one, `requests` replaces our header by what ~/.netrc says."""
    return request
