"""A server before a real registry that wants tokens, or fails on purpose. It passes everything else on.

The token scheme is docker's: a 401 names the login server (here the same host, `/token`) and a scope; the login
server gives a token for the scopes that the user may have.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from assembler.oci.reference import Reference

BASIC = base64.b64encode(b"robot:secret").decode()
IDENTITY_TOKEN = "long-lived"


@dataclass
class Front:
    """What the server does, and what it saw. Change it while it runs.

    `tokens` is None for no login at all, or maps each token that counts to its scopes; `fail` may answer a
    request instead of the registry with (status, headers), or by breaking the connection (status 0). For each
    number in `cuts` one PATCH reaches the registry with so many bytes only, and gets no answer.
    """

    upstream: str
    host: str = ""
    login: bool = False
    uses: int | None = None  # how often a token may be used before it expires
    fail: Callable[[str, str], tuple[int, dict[str, str]] | None] | None = None
    cuts: list[int] = field(default_factory=list)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    logins: list[list[str]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    counter: Iterator[int] = field(default_factory=itertools.count)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reference(self, text: str) -> Reference:
        """`name:tag` as seen through this server."""
        return Reference.parse(f"{self.host}/{text}")

    def give_token(self, scopes: list[str]) -> str:
        """A new token."""
        with self.lock:
            self.logins.append(scopes)
            token = f"token-{next(self.counter)}"
            self.tokens[token] = self.uses if self.uses is not None else 1_000_000
            return token

    def counts(self, authorization: str) -> bool:
        """Does this header let its bearer in?"""
        token = authorization.removeprefix("Bearer ")
        with self.lock:
            left = self.tokens.get(token, 0)
            self.tokens[token] = left - 1
            return left > 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: Front

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _handle(self) -> None:
        front, path = self.front, urlsplit(self.path).path
        if path == "/token":
            self._token()
            return
        front.seen.append((self.command, self.path, self.headers.get("Authorization", "")))
        failure = front.fail(self.command, self.path) if front.fail else None
        if failure is not None:
            status, headers = failure
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            self._answer(status, headers, b'{"errors":[{"code":"FAILED","message":"on purpose"}]}')
            return
        if front.login and not front.counts(self.headers.get("Authorization", "")):
            challenge = f'Bearer realm="http://{front.host}/token",service="tests",scope="repository:x:pull"'
            self._answer(401, {"WWW-Authenticate": challenge}, b"{}")
            return
        self._forward()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def _token(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked = parse_qs(self.rfile.read(length).decode() if length else urlsplit(self.path).query)
        given = self.headers.get("Authorization")
        if given not in (None, f"Basic {BASIC}") or asked.get("refresh_token", [IDENTITY_TOKEN]) != [
            IDENTITY_TOKEN
        ]:
            self._answer(401, {}, b"{}")
            return
        token = self.front.give_token([scope for text in asked.get("scope", []) for scope in text.split()])
        self._answer(200, {}, json.dumps({"token": token}).encode())

    def _forward(self) -> None:
        cut = self.front.cuts.pop(0) if self.front.cuts and self.command == "PATCH" else None
        body = self._body(cut)
        connection = http.client.HTTPConnection(self.front.upstream, timeout=30)
        ours = ("authorization", "connection", "transfer-encoding", "content-length")
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ours}
        connection.request(self.command, self.path, body=body, headers=kept)
        answer = connection.getresponse()
        data = answer.read()
        if cut is not None:
            self.close_connection = True
            connection.close()
            return
        size = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in ("content-length", "connection")}
        self._answer(answer.status, headers, data, size)
        connection.close()

    def _body(self, most: int | None = None) -> bytes | None:
        """The body of the request, or as much of it as is wanted."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(length if most is None else min(most, length)) if length else None
        data = b""
        while (size := int(self.rfile.readline(), 16)) and (most is None or len(data) < most):
            data += self.rfile.read(size)
            self.rfile.readline()
        if not size:
            self.rfile.readline()
        return data[:most]

    def _answer(self, status: int, headers: dict[str, str], data: bytes, size: str | None = None) -> None:
        if status in (401, 405, 429, 503) and self.command in ("PUT", "PATCH"):
            self._body()  # the body of a refused request is still on its way
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", size or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextlib.contextmanager
def running_front(upstream: str) -> Iterator[Front]:
    """Start a front before the registry at `upstream`, and end it with the block."""
    front = Front(upstream)
    handler = type("Handler", (_Handler,), {"front": front})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    front.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield front
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
