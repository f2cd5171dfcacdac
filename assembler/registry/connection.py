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
from urllib.parse import urlsplit

from assembler.errors import RegistryError
from assembler.network import nobody_hint, reason
from assembler.oci.digest import Readable
from assembler.oci.reference import Reference
from assembler.registry.authentication import Authenticator, Credentials, Scopes
from assembler.registry.certificates import tls_hint
from assembler.registry.refusal import TransientError, discard, redacted, refusal
from assembler.registry.retry import TRANSIENT_STATUSES, RetryPolicy, asked_wait, retrying
from assembler.registry.settings import Endpoint, is_loopback

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS = 30.0  # urllib3 also applies this to each block that is sent
READ_SECONDS = 120.0
COMMIT_SECONDS = 900.0  # a registry may copy a blob of many gigabytes before it answers
_SMALL = 64 << 10
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
        block = self._stream.read(amount)
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
        self._policy = policy
        self._authenticator = Authenticator(
            self._send_to_login, credentials, plain_login=endpoint.security == "insecure"
        )
        self._scheme: str | None = None
        self._has_answered = False
        self._lock = threading.Lock()

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
    ) -> requests.Response:
        """Send until it is answered with one of `expect`. The answer's body is not read yet.

        Raises RefusedError for any other answer, TransientError when the tries are used up.
        """
        return retrying(
            self._policy,
            lambda: self.request_once(
                method, url, reference, scopes=scopes, expect=expect, headers=headers, body=body
            ),
        )

    def retrying(self, action: Callable[[], Any]) -> Any:
        """Retry several requests as one, with this connection's patience."""
        return retrying(self._policy, action)

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
                raise TransientError("the login expired", place=place, after=0.0)
        if response.status_code in expect:
            return response
        error = refusal(method, response, place)
        if response.status_code in TRANSIENT_STATUSES:
            after = asked_wait(response.headers.get("Retry-After"))
            raise TransientError(error.fact, place=place, hint=error.hint, after=after)
        raise error

    def _ours(self, url: str) -> bool:
        """Credentials go to the registry itself only, never to a store that it sends us to."""
        parts = urlsplit(url)
        return parts.scheme == self.scheme and parts.netloc == self._endpoint.host

    def _send_to_login(self, method: str, url: str, place: str, **options: Any) -> requests.Response:
        def once() -> requests.Response:
            response = self._send(method, url, place, **options)
            if response.status_code in TRANSIENT_STATUSES:
                after = asked_wait(response.headers.get("Retry-After"))
                raise TransientError(refusal(method, response, place).fact, place=place, after=after)
            return response

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
        """One exchange; connection trouble becomes TransientError, an untrusted certificate a plain error."""
        import requests.exceptions

        stream = body.open() if body else None
        try:
            if body and stream:
                sending = _Sending(stream, body) if body.size is None else _SizedSending(stream, body)
                options["data"] = sending.read() if _is_small(body) else sending
            response = self._session.request(
                method,
                url,
                headers=dict(headers or {}),
                auth=_as_it_is,
                stream=True,
                timeout=(CONNECT_SECONDS, COMMIT_SECONDS if method == "PUT" else READ_SECONDS),
                verify=self._session.verify if self._endpoint.security == "verified" else False,
                proxies=_NO_PROXY if is_loopback(urlsplit(url).netloc) else None,  # type: ignore[arg-type]
                **options,
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


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` that adds nothing: without one, `requests` replaces our header by what ~/.netrc says."""
    return request
