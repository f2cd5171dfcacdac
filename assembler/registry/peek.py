"""One question, asked fast: which digest does this tag name?

`assemble` asks it when everything else is unchanged, so this module must import in a few milliseconds: a socket
and one line each way, because importing `http.client` alone costs more than the question. It answers only where
that is plain; whoever gets None asks the real client.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from assembler.errors import NodeError
from assembler.oci import media_types
from assembler.oci.digest import Digest
from assembler.oci.reference import Reference
from assembler.registry.registries_conf import RegistriesConf, mentions, read_registries
from assembler.registry.settings import Endpoint, Settings, certificate_roots

_TIMEOUT_SECONDS = 5.0
_LONGEST_HEAD = 64 << 10
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_ACCEPT = ", ".join(
    (media_types.MANIFEST, media_types.INDEX, media_types.DOCKER_MANIFEST, media_types.DOCKER_INDEX)
)


def peek_digest(
    reference: Reference, insecure: Collection[str] = (), *, environment: Mapping[str, str] | None = None
) -> Digest | None:
    """The digest that the registry has under this tag (or digest), or None whenever anything is not plain.

    Not plain are: a login, a redirect, a proxy, trouble with TLS or the network, an answer without digest, a
    missing image, and what `registries.conf` or `certs.d` say about the registry, but that it is insecure.
    `insecure` names registries that are asked with plain HTTP, beside those on loopback.
    """
    environment = os.environ if environment is None else environment
    target = reference.tag or reference.digest
    settings = _settings(reference, frozenset(insecure), environment)
    if target is None or settings is None or not settings.is_plain(reference):
        return None
    endpoint = settings.home(reference).endpoint
    plain = endpoint.security == "insecure"
    if not endpoint.loopback and any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return None
    request = (
        f"HEAD /v2/{reference.repository}/manifests/{target} HTTP/1.1\r\n"
        f"Host: {endpoint.host}\r\nAccept: {_ACCEPT}\r\nUser-Agent: assemble\r\nConnection: close\r\n\r\n"
    )
    try:
        return _digest_of(_exchange(endpoint, plain, request.encode("ascii")))
    except (OSError, ValueError):
        return None


def _settings(reference: Reference, insecure: frozenset[str], environment: Mapping[str, str]) -> Settings | None:
    """The settings as far as they can matter here; TOML is read only where the registry is named in it."""
    conf = RegistriesConf()
    if mentions(environment, reference):
        try:
            conf = read_registries(environment)
        except NodeError:  # the real client tells it
            return None
    return Settings(insecure, registries=conf, certificate_roots=certificate_roots(environment))


def _exchange(endpoint: Endpoint, plain: bool, request: bytes) -> bytes:
    """Send, and return everything that comes back; OSError for every trouble, TLS's included."""
    parts = urlsplit(f"//{endpoint.host}")
    host = parts.hostname or ""
    with socket.create_connection((host, parts.port or (80 if plain else 443)), timeout=_TIMEOUT_SECONDS) as bare:
        if plain:
            return _converse(bare, request)
        import ssl

        with ssl.create_default_context().wrap_socket(bare, server_hostname=host) as tls:
            return _converse(tls, request)


def _converse(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _LONGEST_HEAD:
        block = connection.recv(1 << 14)
        if not block:
            break
        answer += block
    return answer


def _digest_of(answer: bytes) -> Digest | None:
    """The digest that the head of an HTTP answer names; None for any status but 200."""
    head, end, _ = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    if not end or status.split(" ")[1:2] != ["200"]:
        return None
    fields = (line.partition(":") for line in lines)
    found = {name.strip().lower(): value.strip() for name, _, value in fields}
    return Digest.parse(found.get("docker-content-digest"))
