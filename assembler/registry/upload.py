"""A blob that is sent in pieces, before its digest is known (distribution-spec, "Pushing a blob in chunks").

The monolithic way, one `PUT` of a finished blob, is `Client.upload`. This is for a blob that is still being made.
Registries must take chunks in order, but not all of them do; who sends has the other way to fall back on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin

from assembler.errors import RegistryError
from assembler.oci.digest import Digest, Readable
from assembler.oci.reference import Reference
from assembler.registry.authentication import push
from assembler.registry.connection import Body, Connection
from assembler.registry.refusal import discard

if TYPE_CHECKING:
    import requests

_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")


class UploadSession:
    """One upload that the registry opened. `offset` is how many bytes it has. For one thread at a time.

    Each method is one try: TransientError when it may go better after `recover`, RefusedError when the registry
    does not want it.
    """

    def __init__(self, connection: Connection, reference: Reference, opened: requests.Response) -> None:
        self._connection = connection
        self._reference = reference
        self._location = ""
        self.offset = 0
        least = opened.headers.get("OCI-Chunk-Min-Length", "")
        self.least = int(least) if least.isdigit() else 0
        """Bytes that a piece must have, unless it is the last one."""
        self._follow(opened)

    @property
    def location(self) -> str:
        """Where the next request of this upload goes. It may change with every answer."""
        return self._location

    def append(self, open_piece: Callable[[], Readable], size: int) -> None:
        """Send the next `size` bytes. The registry must say that it has them all."""
        expected = self.offset + size
        response = self._request(
            "PATCH",
            self._location,
            (202, 204),
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(size),
                "Content-Range": f"{self.offset}-{expected - 1}",
            },
            body=Body(open=open_piece, size=size),
        )
        self._follow(response)
        self.offset = self._stored(response, expected)
        if self.offset != expected:
            fact = f"expected the registry to have {expected} bytes of an upload, it has {self.offset}"
            raise RegistryError(fact, place=str(self._reference))

    def recover(self) -> None:
        """After a failure: ask how much the registry has."""
        response = self._request("GET", self._location, (200, 202, 204))
        self._follow(response)
        self.offset = self._stored(response, 0)

    def commit(self, digest: Digest) -> None:
        """Everything was sent. The registry checks the digest; RefusedError when it disagrees."""
        joint = "&" if "?" in self._location else "?"
        url = f"{self._location}{joint}digest={quote(digest, safe=':')}"
        self._request("PUT", url, (201, 204), headers={"Content-Length": "0"})

    def cancel(self) -> None:
        """Forget the upload. A courtesy, which may fail: registries drop abandoned uploads themselves."""
        with contextlib.suppress(RegistryError):
            self._request("DELETE", self._location, (200, 202, 204))

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
            self._location = urljoin(response.url, location)
        elif not self._location:
            raise RegistryError("the registry opened an upload and did not say where", place=str(self._reference))

    @staticmethod
    def _stored(response: requests.Response, default: int) -> int:
        """How many bytes the registry says it has. `0-0` is what registries say of none."""
        found = _RANGE.fullmatch(response.headers.get("Range", "").strip())
        if found is None:
            return default
        last = int(found[1])
        return last + 1 if last else min(default, 1)
