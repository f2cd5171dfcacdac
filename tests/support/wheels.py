"""Wheels for tests, and a package index on loopback that serves them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MadeWheel:
    """A wheel file."""

    filename: str
    data: bytes

    @property
    def sha256(self) -> str:
        """Its hash in hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()


def make_wheel(
    name: str,
    version: str = "1.0",
    tag: str = "py3-none-any",
    *,
    requires: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    scripts: Mapping[str, str] | None = None,
    extras: Sequence[str] = (),
) -> MadeWheel:
    """A small wheel with a package of its name, whose `__init__.py` knows the version."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    content = dict(files or {f"{module}/__init__.py": f"VERSION = {version!r}\n"})
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requires] + [f"Provides-Extra: {each}" for each in extras]
    content[f"{info}/METADATA"] = "\n".join(lines) + "\n"
    content[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {str(tag.endswith('any')).lower()}\n"
        + "".join(f"Tag: {each}\n" for each in _expanded(tag))
    )
    if scripts:
        points = "".join(f"{key} = {value}\n" for key, value in scripts.items())
        content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{points}"
    record = "".join(f"{path},sha256={_hash(text)},{len(text.encode())}\n" for path, text in content.items())
    content[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in content.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return MadeWheel(f"{module}-{version}-{tag}.whl", buffer.getvalue())


def _expanded(tag: str) -> list[str]:
    python, abi, platform = tag.split("-")
    return [f"{a}-{b}-{c}" for a in python.split(".") for b in abi.split(".") for c in platform.split(".")]


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@dataclass
class Index:
    """A package index: `url` is that of its simple API, `asked` what it was asked (method and path).

    `login` makes it ask for user and password; paths in `gone` are not there although the pages name them;
    `broken` maps a path to how many bytes come before the connection breaks, the first time.
    """

    root: str
    files: dict[str, MadeWheel] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    login: str = ""
    gone: set[str] = field(default_factory=set)
    broken: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The simple API."""
        return f"{self.root}/simple"

    def add(self, *wheels: MadeWheel) -> None:
        """Offer wheels."""
        for wheel in wheels:
            self.files[wheel.filename] = wheel

    def address(self, wheel: MadeWheel) -> str:
        """Where a wheel is."""
        return f"{self.root}/files/{wheel.filename}"

    def downloads(self) -> list[str]:
        """The wheels that were fetched whole or in part, in order."""
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET /files/")]


class _Handler(http.server.BaseHTTPRequestHandler):
    index: Index
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        index = self.index
        index.asked.append(f"{self.command} {self.path}")
        given = self.headers.get("Authorization", "")
        if index.login and given != "Basic " + base64.b64encode(index.login.encode()).decode():
            self._answer(401, b"", {"WWW-Authenticate": "Basic"})
        elif self.path.startswith("/simple/"):
            self._page(self.path.split("/")[2])
        elif self.path in index.gone or self.path.rpartition("/")[2] not in index.files:
            self._answer(404, b"")
        else:
            self._file(index.files[self.path.rpartition("/")[2]])

    def do_HEAD(self) -> None:
        self.do_GET()

    def _page(self, project: str) -> None:
        links = [
            f'<a href="/files/{wheel.filename}#sha256={wheel.sha256}">{wheel.filename}</a>'
            for wheel in self.index.files.values()
            if wheel.filename.split("-")[0].lower().replace("_", "-") == project
        ]
        body = ("<!DOCTYPE html><html><body>" + "<br>".join(links) + "</body></html>").encode()
        self._answer(200 if links else 404, body, {"Content-Type": "text/html"})

    def _file(self, wheel: MadeWheel) -> None:
        headers = {"ETag": f'"{wheel.sha256}"', "Accept-Ranges": "bytes", "Content-Type": "application/zip"}
        wanted = self.headers.get("Range", "")
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        if not wanted:
            self._answer(200, wheel.data, headers)
            return
        first = int(start) if start else max(0, len(wheel.data) - int(end))
        last = min(int(end), len(wheel.data) - 1) if start and end else len(wheel.data) - 1
        headers["Content-Range"] = f"bytes {first}-{last}/{len(wheel.data)}"
        self._answer(206, wheel.data[first : last + 1], headers)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.index.broken.pop(self.path, None)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body if limit is None else body[:limit])
        if limit is not None:
            self.close_connection = True

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextlib.contextmanager
def running_index() -> Iterator[Index]:
    """An empty index on loopback."""
    handler = type("Handler", (_Handler,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        index = Index(root=f"http://127.0.0.1:{server.server_port}")
        handler.index = index  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield index
        finally:
            server.shutdown()
            thread.join()
