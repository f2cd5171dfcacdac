"""A real registry (docker-registry, the distribution project's) on loopback, with a log of what it was asked."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.needs import need

from assembler.oci.digest import Digest
from assembler.oci.reference import Reference

# "robot" with the password "secret", as `htpasswd -nbB` writes it
HTPASSWD = "robot:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
_START_SECONDS = 20.0
ELSEWHERE = "0.0.0.0"  # noqa: S104  (nobody binds to it; who connects to it gets to this host)


@dataclass(frozen=True)
class Asked:
    """One request that the registry answered. `path` has its query."""

    method: str
    path: str
    status: int
    sent_bytes: int


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RunningRegistry:
    """A registry that answers at `host` and keeps its blobs below `storage`."""

    def __init__(self, host: str, storage: Path, log: Path, child: subprocess.Popen[bytes]) -> None:
        self.host = host
        self.storage = storage
        self._log = log
        self._child = child

    def reference(self, text: str) -> Reference:
        """`name:tag` in this registry."""
        return Reference.parse(f"{self.host}/{text}")

    def blob_path(self, digest: Digest) -> Path:
        """The file in which the registry keeps a blob."""
        return self.storage / "docker/registry/v2/blobs/sha256" / digest.hex[:2] / digest.hex / "data"

    def mark(self) -> int:
        """A place in the log, for `asked`."""
        return self._log.stat().st_size

    def asked(self, since: int = 0) -> list[Asked]:
        """Requests answered since a mark. The registry logs after it answers, so wait for quiet first."""
        size = -1
        while size != (size := self._log.stat().st_size):
            time.sleep(0.05)
        with self._log.open("rb") as file:
            file.seek(since)
            lines = file.read().splitlines()
        requests = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError):
                entry = json.loads(line)
                if entry["msg"].startswith("response completed"):
                    requests.append(
                        Asked(
                            method=entry["http.request.method"],
                            path=entry["http.request.uri"],
                            status=int(entry["http.response.status"]),
                            sent_bytes=int(entry.get("http.response.written", 0)),
                        )
                    )
        return requests


@dataclass(frozen=True)
class Tls:
    """What a registry shows, and whose clients it lets in: anybody, or who shows a certificate of `clients`."""

    certificate: Path
    key: Path
    clients: Path | None = None


@contextlib.contextmanager
def running_registry(
    directory: Path, *, htpasswd: str | None = None, tls: Tls | None = None
) -> Iterator[RunningRegistry]:
    """Start a registry with its own storage below `directory`, and end it with the block.

    With TLS its host is written as ELSEWHERE, which is no name for loopback: what is there counts as insecure.
    """
    program = need("docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "registry.log"
    for _ in range(5):  # another process may take the port between choosing and listening
        host = f"127.0.0.1:{free_port()}"
        config = directory / "config.yml"
        config.write_text(json.dumps(_config(directory, host, htpasswd, tls)))
        with log.open("ab") as output:
            child = subprocess.Popen([program, "serve", str(config)], stdout=output, stderr=output)
        try:
            if listens(child, host):
                yield RunningRegistry(
                    host.replace("127.0.0.1", ELSEWHERE) if tls else host, directory / "storage", log, child
                )
                return
        finally:
            child.terminate()
            child.wait()
    raise AssertionError(f"docker-registry does not start:\n{log.read_text()[-2000:]}")


def _config(directory: Path, host: str, htpasswd: str | None, tls: Tls | None) -> dict[str, object]:
    http: dict[str, object] = {"addr": host, "secret": "for tests"}
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "storage")},
            "delete": {"enabled": True},
        },
        "http": http,
    }
    if tls is not None:
        clients = {"clientcas": [str(tls.clients)]} if tls.clients else {}
        http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key), **clients}
    if htpasswd is not None:
        path = directory / "htpasswd"
        path.write_text(htpasswd)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(path)}}
    return config


def listens(child: subprocess.Popen[bytes], host: str, seconds: float = _START_SECONDS) -> bool:
    """Wait until a registry answers; False when it ends before, or takes too long."""
    name, _, port = host.partition(":")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((name, int(port)), timeout=1):
            return True
        time.sleep(0.02)
    return False


def output_of(arguments: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Run a tool that must succeed and return what it printed."""
    done = subprocess.run(
        [need(arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
