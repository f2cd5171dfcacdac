"""A `requests` session made fit for one registry: many threads, large blocks, its certificates, its patience.

The connections' patience is here and not in `connection`, since it is the adapter's: a mirror that is not there
must cost seconds, and there is always somebody else to ask.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.ssl_ import create_urllib3_context

from assembler.registry.certificates import Certificates, add_to
from assembler.registry.settings import Endpoint

_BLOCK = 1 << 20
_CONNECTIONS = 32
MIRROR_SECONDS = (5.0, 30.0)
"""How long a mirror may take: to accept a connection, and between two pieces of an answer."""


class _Adapter(HTTPAdapter):
    def __init__(self, context: ssl.SSLContext | None, seconds: tuple[float, float] | None) -> None:
        self._context = context
        self._seconds = seconds
        super().__init__(pool_connections=4, pool_maxsize=_CONNECTIONS)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> Any:
        """With our context and blocks."""
        if self._context:
            more["ssl_context"] = self._context
        return super().init_poolmanager(connections, maxsize, block, blocksize=_BLOCK, **more)

    def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
        """What is behind a proxy is trusted by the same rules."""
        if self._context:
            more["ssl_context"] = self._context
        return super().proxy_manager_for(proxy, **more)

    def send(self, request: Any, *arguments: Any, **more: Any) -> requests.Response:
        """With no more patience than a mirror gets."""
        if self._seconds:
            more["timeout"] = self._seconds
        return super().send(request, *arguments, **more)


def equip(
    session: requests.Session, endpoint: Endpoint, certificates: Certificates | None, *, mirror: bool
) -> None:
    """Make oras's session ours. NodeError names a certificate that cannot be used.

    The authorities of a registry also vouch for where it sends us: its login server, its store. Our own
    certificate is shown to the registry alone.
    """
    seconds = MIRROR_SECONDS if mirror else None
    session.mount("http://", _Adapter(None, seconds))
    session.mount("https://", _Adapter(_context(endpoint, certificates, own=False), seconds))
    if certificates and certificates.own:
        host = f"https://{endpoint.host}/"
        session.mount(host, _Adapter(_context(endpoint, certificates, own=True), seconds))
    session.verify = _trusted()


def _context(endpoint: Endpoint, certificates: Certificates | None, *, own: bool) -> ssl.SSLContext | None:
    if certificates is None:
        return None
    unverified = endpoint.security == "insecure"
    context = create_urllib3_context(cert_reqs=ssl.CERT_NONE if unverified else ssl.CERT_REQUIRED)
    add_to(context, certificates, own=own)
    return context


def _trusted() -> bool | str:
    """Whom to trust: the system's certificates, as podman does; `requests` alone would bring its own list."""
    if os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE"):
        return True  # `requests` reads these itself
    candidates = (
        os.environ.get("SSL_CERT_FILE"),
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
    )
    return next((path for path in candidates if path and Path(path).is_file()), True)
