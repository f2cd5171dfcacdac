"""One upload that a registry has opened (distribution-spec, "Pushing blobs").

A finished blob is sent by one `PUT`, the fastest way, or in parts, by `PATCH` with ranges and a closing `PUT`. One
that is still being made goes by one `PATCH` whose length is not known at its start, which is how docker sends its
layers, so that registries know it. Which of them, and what to do when it breaks: `sending` and `following`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from assembler.errors import RegistryError
from assembler.oci.digest import Digest, Readable
from assembler.oci.reference import Reference
from assembler.registry.authentication import push
from assembler.registry.connection import Body, Connection, joined
from assembler.registry.receiving import discard
from assembler.registry.refusal import RefusedError, TransientError

if TYPE_CHECKING:
    import requests

_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
_OCTETS = {"Content-Type": "application/octet-stream"}


class UploadSession:
    """One upload. For one thread at a time.

    Each method is one try: TransientError when another one may go better, RefusedError when the registry does
    not want it.
    """

    def __init__(self, connection: Connection, reference: Reference, location: str, least: int = 0) -> None:
        """`least` is the size in bytes below which the registry takes no part but the last."""
        self._connection = connection
        self._reference = reference
        self._location = location
        self.least = least

    @classmethod
    def opened(cls, connection: Connection, reference: Reference, response: requests.Response) -> UploadSession:
        """The session that this answer opened."""
        location = response.headers.get("Location")
        if not location:
            raise RegistryError("the registry opened an upload and did not say where", place=str(reference))
        least = response.headers.get("OCI-Chunk-Min-Length", "").strip()
        where = joined(response.url, location, str(reference))
        return cls(connection, reference, where, int(least) if least.isdecimal() and len(least) < 16 else 0)

    @property
    def location(self) -> str:
        """Where the next request of this upload goes. It may change with every answer."""
        return self._location

    def put(self, body: Body, digest: Digest) -> None:
        """Send the whole blob. The registry checks the digest; RefusedError when it disagrees."""
        headers = {**_OCTETS, "Content-Length": str(body.size)}
        self._close(digest, headers=headers, body=body)

    def patch(self, body: Body, start: int) -> None:
        """Send the bytes from `start` on, as many as the body has."""
        size = body.size or 0
        headers = {**_OCTETS, "Content-Length": str(size), "Content-Range": f"{start}-{start + size - 1}"}
        self._patch(headers, body, lambda: start + size)

    def stream(self, open_body: Callable[[], Readable], start: int = 0) -> None:
        """Send everything from `start` on, which is what the registry has, until the body ends."""
        sent = 0

        def progress(done: int) -> None:
            nonlocal sent
            sent = done

        self._patch(_OCTETS, Body(open=open_body, size=None, progress=progress), lambda: start + sent)

    def offset(self) -> int:
        """How many bytes the registry has. RefusedError when it has forgotten the upload."""
        response = self._request("GET", self._location, (204,))
        self._follow(response)
        return _stored(response) or 0

    def commit(self, digest: Digest) -> None:
        """Everything was sent. The registry checks the digest; RefusedError when it disagrees."""
        self._close(digest, headers={"Content-Length": "0"})

    def cancel(self) -> None:
        """Forget the upload. A courtesy, which may fail: registries drop abandoned uploads themselves."""
        with contextlib.suppress(RegistryError):
            self._request("DELETE", self._location, (200, 202, 204))

    def _patch(self, headers: dict[str, str], body: Body, expected: Callable[[], int]) -> None:
        response = self._request("PATCH", self._location, (202, 204), headers=headers, body=body)
        self._follow(response)
        stored = _stored(response)
        if stored is not None and stored != expected():
            fact = f"expected the registry to have {expected()} bytes of an upload, it has {stored}"
            raise TransientError(fact, place=str(self._reference))

    def _close(self, digest: Digest, *, headers: dict[str, str], body: Body | None = None) -> None:
        joint = "&" if "?" in self._location else "?"
        url = f"{self._location}{joint}digest={quote(digest, safe=':')}"
        response = self._request("PUT", url, (201, 204), headers=headers, body=body)
        said = response.headers.get("Docker-Content-Digest", digest)
        if said != digest:
            raise RegistryError(f"expected {digest}, the registry stored `{said}`", place=str(self._reference))

    def _request(
        self,
        method: str,
        url: str,
        expect: tuple[int, ...],
        *,
        headers: dict[str, str] | None = None,
        body: Body | None = None,
    ) -> requests.Response:
        scopes = (push(self._reference.repository),)
        response = self._connection.request_once(
            method, url, self._reference, scopes=scopes, expect=expect, headers=headers, body=body
        )
        discard(response)
        return response

    def _follow(self, response: requests.Response) -> None:
        location = response.headers.get("Location")
        if location:
            self._location = joined(response.url, location, str(self._reference))


def is_forgotten(error: RefusedError) -> bool:
    """Has the registry lost the upload, in a restart say, or because a request of it broke?"""
    return error.code in ("BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "RANGE_INVALID") or error.status == 416


def _stored(response: requests.Response) -> int | None:
    """Bytes that the registry has, as its `Range` says; `0-0` is how the field says none."""
    match = _RANGE.fullmatch(response.headers.get("Range", "").strip())
    if match is None:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0
