"""A proxy before a real registry, in which everything that goes wrong on networks goes wrong on purpose.

A test gives a rule, from a request to a fault or None; what has no fault reaches the registry and comes back as it
is. It can be a login server as well (`Tokens`), a proxy that limits the size of requests (`largest`), and a
registry whose uploads go on after a break (`resumes`), which the distribution project's 2.8 does not have.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, TypeAlias
from urllib.parse import parse_qs, urlsplit

from assembler.oci.reference import Reference

Stage: TypeAlias = Literal["before", "head", "body", "sent", "answer"]
STAGES: tuple[Stage, ...] = ("before", "head", "body", "sent", "answer")
_BLOCK = 1 << 16
_SESSION = re.compile(r"/v2/.+/blobs/uploads/([0-9a-f-]{36})")
_HOP = {"connection", "content-length", "transfer-encoding", "host", "keep-alive"}


@dataclass(frozen=True)
class Cut:
    """The connection is reset: before anything is passed on, after the head, in the middle of the request's body,
    when all was passed on and answered (and the answer is lost), or in the middle of the answer's body. `at` is
    the middle, in bytes. Without `reset` it is closed instead, so that what was sent arrives.
    """

    stage: Stage
    at: int | None = None
    reset: bool = True


@dataclass(frozen=True)
class Reply:
    """An answer. As a fault, it comes in place of the registry's, which hears nothing.

    `length` lies about the body's, and None tells the truth; `drip` is seconds between its bytes.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors":[{"code":"FAILED","message":"on purpose"}]}'
    length: int | None = None
    drip: float = 0.0


@dataclass(frozen=True)
class Change:
    """The registry's answer, but changed on its way."""

    edit: Callable[[Reply], Reply]


@dataclass(frozen=True)
class Garble:
    """The first byte of the request's body is another one when it reaches the registry."""


@dataclass(frozen=True)
class Hang:
    """Nothing is read and nothing answered for so many seconds; then the connection ends."""

    seconds: float


Fault: TypeAlias = Cut | Reply | Change | Garble | Hang


@dataclass(frozen=True)
class Request:
    """What was asked. `path` has its query; requests are counted from 0."""

    number: int
    method: str
    path: str
    authorization: str
    length: int
    range: str


Rule: TypeAlias = Callable[[Request], Fault | None]


@dataclass
class Tokens:
    """A login server that signs nothing: the proxy knows what it gave. `uses` is how often a token lets in.

    `fields` are added to its answers, `raw` replaces them.
    """

    uses: int = 1_000_000
    fields: dict[str, object] = field(default_factory=dict)
    raw: bytes | None = None
    logins: int = 0
    left: dict[str, int] = field(default_factory=dict)

    def give(self) -> str:
        token = f"s3cret-token-{self.logins}"
        self.logins += 1
        self.left[token] = self.uses
        return token

    def lets_in(self, authorization: str) -> bool:
        token = authorization.removeprefix("Bearer ")
        left = self.left.get(token, 0)
        self.left[token] = left - 1
        return left > 0


@dataclass
class FaultyProxy:
    """What it does, and what it saw. Change it while it runs."""

    upstream: str
    host: str = ""
    rule: Rule | None = None
    tokens: Tokens | None = None
    largest: int | None = None
    resumes: bool = False
    rude: bool = False
    """What is too large is not read: the connection ends right after the answer, and before it for some."""
    seen: list[Request] = field(default_factory=list)
    received: int = 0
    """Bytes of request bodies that came here."""
    latest: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reference(self, text: str) -> Reference:
        """`name:tag` as seen through this proxy."""
        return Reference.parse(f"{self.host}/{text}")

    def asked(self, *methods: str) -> list[str]:
        """Methods of the requests seen, of those named only."""
        return [request.method for request in self.seen if not methods or request.method in methods]


def once(fault: Fault, *, method: str = "", part: str = "", times: int = 1) -> Rule:
    """A rule for the first requests with this method and with `part` in their path."""
    left = threading.BoundedSemaphore(times)

    def rule(request: Request) -> Fault | None:
        fits = request.method == method or not method
        return fault if fits and part in request.path and left.acquire(blocking=False) else None

    return rule


def always(fault: Fault, *, method: str = "", part: str = "") -> Rule:
    """A rule for every request with this method and with `part` in its path."""
    return once(fault, method=method, part=part, times=1_000_000)


class _BreakError(Exception):
    """The connection ends here."""

    def __init__(self, reset: bool = True) -> None:
        super().__init__(reset)
        self.reset = reset


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _handle(self) -> None:
        try:
            self._answer(self._considered())
        except (_BreakError, OSError, http.client.HTTPException) as error:
            self.close_connection = True
            if isinstance(error, _BreakError) and not error.reset:
                return
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

    def _considered(self) -> Reply:
        self._body: io.BufferedIOBase = self.rfile
        proxy, self._left = self.proxy, int(self.headers.get("Content-Length") or 0)
        authorization, asked_range = self.headers.get("Authorization", ""), self.headers.get("Range", "")
        if proxy.tokens and urlsplit(self.path).path == "/token":
            return self._token(proxy.tokens)
        with proxy.lock:
            number = len(proxy.seen)
            request = Request(number, self.command, self.path, authorization, self._left, asked_range)
            proxy.seen.append(request)
            fault = proxy.rule(request) if proxy.rule else None
        if isinstance(fault, Cut) and fault.stage == "before":
            raise _BreakError
        if isinstance(fault, Hang):
            time.sleep(fault.seconds)
            raise _BreakError
        if isinstance(fault, Reply):
            return fault
        if proxy.tokens and not proxy.tokens.lets_in(authorization):
            challenge = f'Bearer realm="http://{proxy.host}/token",service="tests"'
            return Reply(401, {"WWW-Authenticate": challenge}, b"{}")
        if proxy.largest is not None and self._left > proxy.largest:
            return Reply(413, {}, b"<html>413 Request Entity Too Large</html>")
        cut = fault if isinstance(fault, Cut) else None
        reply = self._forward(cut, garble=isinstance(fault, Garble))
        if cut and cut.stage in ("sent", "answer"):
            self._partly(reply, cut)
        return fault.edit(reply) if isinstance(fault, Change) else reply

    def _partly(self, reply: Reply, cut: Cut) -> None:
        if cut.stage == "answer" and reply.body and self.command != "HEAD":
            half = len(reply.body) // 2 if cut.at is None else cut.at
            self._answer(replace(reply, body=reply.body[:half], length=len(reply.body)))
        raise _BreakError(cut.reset)

    def _token(self, tokens: Tokens) -> Reply:
        text = self._read(self._left).decode() if self._left else urlsplit(self.path).query
        if parse_qs(text).get("refresh_token", ["s3cret-identity"]) != ["s3cret-identity"]:
            return Reply(401)
        if tokens.raw is not None:
            return Reply(200, {}, tokens.raw)
        return Reply(200, {}, json.dumps({"token": tokens.give(), **tokens.fields}).encode())

    def _forward(self, cut: Cut | None, *, garble: bool = False) -> Reply:
        method, path, size = self.command, self._latest(self.path), self._left
        if self.headers.get("Transfer-Encoding") == "chunked":
            most = cut.at if cut and cut.stage == "body" and cut.at is not None else 1 << 62
            size = self._unchunk(most)
        wanted = size
        if cut and cut.stage == "body" and cut.at is not None:
            wanted = min(cut.at, size)
        elif cut and cut.stage == "body":
            wanted = size // 2
        keeps = self.proxy.resumes and cut is not None and cut.stage == "body" and size > 0
        if keeps and method == "PUT":  # what came of it is kept, which is a PATCH
            method, path = "PATCH", re.sub(r"&digest=[^&]*", "", path)
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            upstream.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            upstream.putheader("Host", self.proxy.host)
            for name, value in self.headers.items():
                if name.lower() not in {*_HOP, "authorization", "content-range"}:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(wanted if keeps else size))
            upstream.endheaders()
            if cut and cut.stage == "head":
                raise _BreakError
            left = wanted
            while left:
                data = self._read(min(left, _BLOCK))
                upstream.send(bytes([data[0] ^ 1]) + data[1:] if garble and left == wanted else data)
                left -= len(data)
            if cut and cut.stage == "body" and not keeps:
                raise _BreakError
            answer = upstream.getresponse()
            body = answer.read()
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            self._remember(headers)
            if keeps:
                raise _BreakError
            length = int(answer.headers.get("Content-Length") or 0) if method == "HEAD" else None
            return Reply(answer.status, headers, body, length)
        finally:
            upstream.close()

    def _unchunk(self, most: int) -> int:
        """Take a body without a length, or `most` bytes of it, to be read again as one that has a length."""
        data = bytearray()
        while len(data) < most and (size := int(self.rfile.readline(), 16)):
            data += self.rfile.read(size)
            self.rfile.readline()
        if len(data) < most:
            self.rfile.readline()
        del data[most:]
        self._body = io.BytesIO(data)
        self._left = len(data)
        return len(data)

    def _latest(self, path: str) -> str:
        """The address of an upload as the registry has it now: one that goes on forgets what addresses say."""
        match = _SESSION.match(path)
        if not self.proxy.resumes or match is None or match[1] not in self.proxy.latest:
            return path
        digest = parse_qs(urlsplit(path).query).get("digest")
        return self.proxy.latest[match[1]] + (f"&digest={digest[0]}" if digest else "")

    def _remember(self, headers: dict[str, str]) -> None:
        parts = urlsplit(headers.get("Location", ""))
        if match := _SESSION.match(parts.path):
            self.proxy.latest[match[1]] = f"{parts.path}?{parts.query}"

    def _read(self, amount: int) -> bytes:
        data = self._body.read(amount)
        self._left -= len(data)
        with self.proxy.lock:
            self.proxy.received += len(data)
        if len(data) < amount:
            raise _BreakError
        return data

    def _answer(self, reply: Reply) -> None:
        if reply.status == 413 and self.proxy.rude:
            self.close_connection = True
            self._left = 0
        while self._left:  # the body of a refused request is still on its way
            self._read(min(self._left, _BLOCK))
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status != 204:
            self.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if reply.drip:
            for position in range(len(reply.body)):
                self.wfile.write(reply.body[position : position + 1])
                time.sleep(reply.drip)
        else:
            self.wfile.write(reply.body)
        if reply.length is not None and reply.length != len(reply.body):
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what tests are about."""


@contextlib.contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Start a proxy before the registry at `upstream`, and end it with the block."""
    proxy = FaultyProxy(upstream)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = _Server(("127.0.0.1", 0), handler)
    proxy.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
