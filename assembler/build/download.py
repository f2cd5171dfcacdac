"""Files from the web into the store: streamed, resumed where the server can, retried, verified.

The bytes are taken as they are on the wire: a server that marks `x.tar.gz` as `Content-Encoding: gzip` must not
make us unpack it. Nothing enters the store before its hash is known to be the wanted one.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from assembler.errors import LockError, RegistryError, UntrustedInputError
from assembler.network import nobody_hint, reason
from assembler.oci.digest import Digest

if TYPE_CHECKING:
    import requests

    from assembler.oci.layout import BlobWriter, Store

T = TypeVar("T")

CHUNK: Final = 1 << 20
SIZE_LIMIT: Final = 64 << 30
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE: Final = frozenset({404, 410})
_TIMEOUT_SECONDS: Final = (15.0, 60.0)  # to connect, between two reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often to try, and how long to wait before the second attempt (seconds, doubling)."""

    attempts: int = 5
    first: float = 0.5
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download gave: a blob of the store."""

    digest: Digest
    size: int


class _TransientError(Exception):
    """Worth another try; the message says what happened."""


def without_credentials(url: str) -> str:
    """The URL for messages: no user, no password, no query, which may hold a token."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def open_session() -> requests.Session:
    """A session with the user's own proxies, netrc and certificates, also those set for pip only."""
    import requests

    session = requests.Session()
    session.headers["User-Agent"] = "assemble"
    if not any(os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")):
        bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
        if bundle:
            session.verify = bundle
    return session


def get(
    session: requests.Session, url: str, *, accept: str, patience: Patience | None = None
) -> requests.Response:
    """A small document, whatever its status below 500. RegistryError when the server cannot be had."""
    import requests

    def attempt() -> requests.Response:
        try:
            response = session.get(url, headers={"Accept": accept}, timeout=_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            raise _trouble(error, url) from error
        if response.status_code in _TRANSIENT:
            raise _TransientError(f"the server answered {response.status_code}")
        return response

    return _patiently(attempt, url, patience or Patience())


def stated_size(session: requests.Session, url: str, *, patience: Patience | None = None) -> int | None:
    """How many bytes the server says that a file has; None when it does not say, or has no such file."""
    import requests

    def attempt() -> requests.Response:
        try:
            response = session.head(
                url, headers={"Accept-Encoding": "identity"}, timeout=_TIMEOUT_SECONDS, allow_redirects=True
            )
        except requests.RequestException as error:
            raise _trouble(error, url) from error
        if response.status_code in _TRANSIENT:
            raise _TransientError(f"the server answered {response.status_code}")
        return response

    response = _patiently(attempt, url, patience or Patience())
    length = response.headers.get("Content-Length", "")
    return int(length) if response.status_code == 200 and length.isdigit() and int(length) else None


def download(
    session: requests.Session,
    url: str,
    store: Store,
    *,
    digest: Digest | None,
    size: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    patience: Patience | None = None,
) -> Downloaded:
    """Fetch a URL into the store; with `digest`, exactly these bytes.

    Raises LockError when the file is not there (any more), UntrustedInputError when it is another one, and
    RegistryError when the server refuses or keeps failing.
    """
    if digest and store.has(digest):
        return Downloaded(digest, store.blob_path(digest).stat().st_size)
    with store.writer() as blob:
        transfer = _Transfer(session, url, blob, size, progress)
        _patiently(transfer.attempt, url, patience or Patience(), transfer.position)
        found = Digest("sha256:" + transfer.hash.hexdigest())
        if digest and found != digest:
            raise UntrustedInputError(
                f"expected `{digest}`, got `{found}` ({transfer.done} bytes)",
                place=without_credentials(url),
                hint="the file was replaced, or a proxy answered in its place; look before you update the hash",
            )
        blob.commit(found)
        return Downloaded(found, transfer.done)


class _Transfer:
    """One download across its attempts: `done` bytes are in the blob and in the hash."""

    def __init__(
        self,
        session: requests.Session,
        url: str,
        blob: BlobWriter,
        size: int | None,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self._session = session
        self._url = url
        self._blob = blob
        self._size = size
        self._progress = progress
        self._validator = ""
        self._has_answered = False
        self.hash = hashlib.sha256()
        self.done = 0

    def position(self) -> int:
        """How far it is: an attempt that got further does not count as a failed one."""
        return self.done

    def attempt(self) -> None:
        """Get what is still missing. _TransientError when it is worth another try."""
        import requests
        import urllib3

        headers = {"Accept-Encoding": "identity"}
        if self.done and self._validator:
            headers |= {"Range": f"bytes={self.done}-", "If-Range": self._validator}
        try:
            with self._session.get(self._url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
                total = self._begin(response)
                while data := response.raw.read(CHUNK, decode_content=False):
                    self._take(data, total)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            trouble = _TransientError(reason(error)) if self._has_answered else _trouble(error, self._url)
            raise trouble from error
        if total is not None and self.done != total:
            raise _TransientError(f"the connection ended after {self.done} of {total} bytes")

    def _begin(self, response: requests.Response) -> int | None:
        """Judge the answer; the total size when the server says it. Starts over unless it resumes as asked."""
        place = without_credentials(self._url)
        self._has_answered = True
        status = response.status_code
        if status == 416:  # the file is shorter than what we have of it
            self._restart()
        if status in _TRANSIENT or status == 416:
            raise _TransientError(f"the server answered {status}")
        if status in _GONE:
            raise LockError(f"the server answered {status}: there is no such file", place=place)
        if status not in {200, 206}:
            hint = "credentials are taken from ~/.netrc" if status in {401, 403} else None
            raise RegistryError(f"the server answered {status} {response.reason}", place=place, hint=hint)
        if status == 200 or not response.headers.get("Content-Range", "").startswith(f"bytes {self.done}-"):
            self._restart()
            if status == 206:
                raise _TransientError("the server sent another part than was asked for")
        etag = response.headers.get("ETag", "")
        # a weak validator does not promise the same bytes (RFC 9110 13.1.5)
        self._validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
        length = response.headers.get("Content-Length", "")
        total = self.done + int(length) if length.isdigit() else None
        if self._size is not None and total is not None and total != self._size:
            raise UntrustedInputError(f"expected {self._size} bytes, the server has {total}", place=place)
        return total if total is not None else self._size

    def _take(self, data: bytes, total: int | None) -> None:
        self._blob.write(data)
        self.hash.update(data)
        self.done += len(data)
        limit = self._size if self._size is not None else SIZE_LIMIT
        if self.done > limit:
            place = without_credentials(self._url)
            raise UntrustedInputError(f"expected at most {limit} bytes, the server sent more", place=place)
        if self._progress:
            self._progress(self.done, total)

    def _restart(self) -> None:
        if self.done:
            os.lseek(self._blob.fileno(), 0, os.SEEK_SET)
            os.ftruncate(self._blob.fileno(), 0)
        self.hash = hashlib.sha256()
        self.done = 0


def _trouble(error: Exception, url: str) -> Exception:
    """What to raise when a server has not answered yet: where nobody is, trying again helps nobody."""
    hint = nobody_hint(error)
    if hint:
        return RegistryError(reason(error), place=without_credentials(url), hint=hint)
    return _TransientError(reason(error))


def _patiently(
    action: Callable[[], T], url: str, patience: Patience, position: Callable[[], int] = lambda: 0
) -> T:
    failures = 0
    reached = 0
    while True:
        try:
            return action()
        except _TransientError as error:
            failures = 0 if position() > reached else failures
            reached = max(reached, position())
            failures += 1
            if failures >= patience.attempts:
                raise RegistryError(
                    str(error), place=without_credentials(url), detail=[f"tried {failures} times"]
                ) from error
            patience.sleep(min(patience.first * 2.0 ** (failures - 1), 30.0) * random.uniform(0.5, 1.0))  # noqa: S311
