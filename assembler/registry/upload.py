"""A blob that is sent before its digest is known (distribution-spec, "Pushing a blob in chunks").

The monolithic way, one `PUT` of a finished blob, is `Client.upload`. This is for a blob that is still being made:
one `PATCH` whose length is not known at its start, which is how docker sends every layer, so that registries know
it; then a `PUT` with the digest. Pieces with ranges, which could be resumed, are not worth their requests: the
distribution project's registry gives up an upload whose `PATCH` broke off. Who sends has the other way left.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin

from assembler.errors import RegistryError
from assembler.oci.digest import Readable
from assembler.oci.reference import Reference
from assembler.registry.authentication import push
from assembler.registry.connection import Body, Connection
from assembler.registry.refusal import discard

if TYPE_CHECKING:
    import requests

_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")


class UploadSession:
    """One upload that the registry opened. For one thread at a time.

    Each method is one try: TransientError when another upload may go better, RefusedError when the registry does
    not want it.
    """

    def __init__(self, connection: Connection, reference: Reference, opened: requests.Response) -> None:
        self._connection = connection
        self._reference = reference
        self._location = ""
        self._follow(opened)

    @property
    def location(self) -> str:
        """Where the next request of this upload goes. It may change with every answer."""
        return self._location

    def stream(self, open_body: Callable[[], Readable]) -> None:
        """Send everything, until the body ends. RegistryError when the registry got less."""
        sent = 0

        def progress(done: int) -> None:
            nonlocal sent
            sent = done

        response = self._request(
            "PATCH",
            self._location,
            (202, 204),
            headers={"Content-Type": "application/octet-stream"},
            body=Body(open=open_body, size=None, progress=progress),
        )
        self._follow(response)
        stored = _RANGE.fullmatch(response.headers.get("Range", "").strip())
        if stored and int(stored[1]) + 1 != sent:
            fact = f"expected the registry to have {sent} bytes of an upload, it has {int(stored[1]) + 1}"
            raise RegistryError(fact, place=str(self._reference))

    def commit(self, digest: str) -> None:
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
