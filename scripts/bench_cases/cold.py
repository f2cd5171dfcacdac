"""The case of a node that has nothing, and a registry that has everything.

An image of 1 GB of wheels on a base of 1 GB was assembled, pushed and kept in a shared cache elsewhere. Now
another node, with the manifest, its lock and nothing else, is to have the same image in another repository of that
registry. The index from which the wheels came is switched off by then. A relay before the registry counts bytes.

The peer, `buildah bud --layers --cache-from`, then `buildah push`, has a Containerfile whose one command makes as
many bytes; it was built with `--cache-to` before. It speaks to the registry directly.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bench_cases.builders import REPOSITORY_ROOT, Buildah, both
from bench_cases.cases import Result
from bench_cases.measure import BenchError, Run, passing_registry, read_result, timed
from bench_cases.wheels import PYTHON, REQUIREMENTS, download

_BASE_MEGABYTES = 1000
_LAYER_MEGABYTES = 1100
_BLOCK = 1 << 20


class ColdBench:
    """The case, below one directory. `pool` has the wheels."""

    def __init__(self, directory: Path, pool: Path, runs: int, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._pool = pool
        self._runs = runs
        self._say = say

    def prepare(self) -> None:
        """Have the wheels."""
        download(self._pool, self._say)

    def run(self, _case: str) -> Result:
        """Measure it."""
        work = self._directory / "cold"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with passing_registry(self._directory) as host, relay(host) as counted:
            self._warm(work, counted)
            ours, moved = self._ours(work, counted)
            peers = {"buildah": self._buildah(work, host)} if Buildah.is_there() else {}
        return Result(
            case="cold-node",
            ours_s=statistics.median(run.seconds for run in ours),
            peers={name: statistics.median(run.seconds for run in runs) for name, runs in peers.items()},
            peak_mib=max(run.peak_mib for run in ours),
            bytes_pushed=moved.up,
            bytes_pulled=moved.down,
        )

    def _warm(self, work: Path, registry: Relay) -> None:
        """Base and image in the registry, results in the cache, and the lock beside the manifest."""
        with (work / "filler").open("wb") as file:
            for _ in range(_BASE_MEGABYTES):
                file.write(os.urandom(_BLOCK))
        (work / "base.yaml").write_text(
            "manifest: 1\nname: bench-base\nruntime: {bootstrap: {suite: bookworm, packages: [ca-certificates]}}\n"
            "sources: {filler: {path: ., ignore: ['*', '!filler']}}\n"
            "layers: [{copy: {source: filler, path: filler, to: /opt/filler}}]\n"
        )
        self._assemble(work, "warm", "base.yaml", "--push", f"{registry.host}/bench/base:1")
        (work / "filler").unlink()
        requirements = ", ".join(REQUIREMENTS.read_text().split())
        (work / "image.yaml").write_text(
            f"manifest: 1\nname: bench-cold\nruntime: {registry.host}/bench/base:1\nlayers:\n"
            f'  - wheels: {{requirements: [{requirements}], python: "{PYTHON}", glibc: "2.36",'
            f" interpreter: /usr/bin/python{PYTHON}, dependencies: false}}\n"
        )
        with index(self._pool) as url:
            options = ["--push", f"{registry.host}/bench/warm:1", "--cache-to", f"{registry.host}/bench/cache"]
            self._assemble(work, "warm", "image.yaml", *options, index=url)
        shutil.rmtree(work / "warm")

    def _ours(self, work: Path, registry: Relay) -> tuple[list[Run], Moved]:
        runs = []
        for number in range(self._runs):
            before = registry.moved()
            target = f"{registry.host}/bench/cold-{number}:1"
            run = self._assemble(
                work, f"node-{number}", "image.yaml", "--push", target,
                "--cache-from", f"{registry.host}/bench/cache",
            )  # fmt: skip
            after = registry.moved()
            moved = Moved(after.up - before.up, after.down - before.down)
            if read_result(run.stdout).get("built") is not False:
                raise BenchError("the cold node built something")
            self._say(f"assemble: {run.seconds:.2f} s, {moved.up:,} bytes up, {moved.down:,} bytes down")
            runs.append(run)
        return runs, moved

    def _assemble(self, work: Path, node: str, *arguments: str, index: str = "http://127.0.0.1:1/") -> Run:
        paths = os.pathsep.join(filter(None, (str(REPOSITORY_ROOT), os.environ.get("PYTHONPATH"))))
        environment = {"ASSEMBLE_CACHE": str(work / node), "PYTHONPATH": paths, "UV_INDEX_URL": index}
        return timed([sys.executable, "-m", "assembler", *arguments, "--json"], env=environment, cwd=work)

    def _buildah(self, work: Path, host: str) -> list[Run]:
        (work / "Containerfile").write_text(
            f"FROM {host}/bench/base:1\nRUN dd if=/dev/urandom of=/opt/layer bs=1M count={_LAYER_MEGABYTES}\n"
        )
        (work / "empty").mkdir()
        self._build(work, host, "first", ["--cache-to", f"{host}/bench/peer-cache"])
        runs = []
        for number in range(self._runs):
            run = self._build(work, host, f"peer-{number}", ["--cache-from", f"{host}/bench/peer-cache"])
            self._say(f"buildah: {run.seconds:.2f} s")
            runs.append(run)
        return runs

    def _build(self, work: Path, host: str, name: str, caching: list[str]) -> Run:
        """Build and push with empty storage."""
        storage = ["--root", str(work / "storage"), "--runroot", str(work / "run")]
        reference, plain = f"{host}/bench/{name}:1", "--tls-verify=false"
        options = ["--isolation=chroot", plain, "--layers", *caching]
        containerfile = ["-f", str(work / "Containerfile"), str(work / "empty")]
        try:
            return both(
                timed(["buildah", *storage, "bud", *options, "-t", reference, *containerfile]),
                timed(["buildah", *storage, "push", plain, reference, f"docker://{reference}"]),
            )
        finally:
            subprocess.run(["buildah", *storage, "rmi", "--all", "--force"], capture_output=True, check=False)
            shutil.rmtree(work / "storage", ignore_errors=True)


class Moved:
    """Bytes that went through a relay: to the registry, and from it. Heads of requests are counted, too."""

    def __init__(self, up: int = 0, down: int = 0) -> None:
        self.up = up
        self.down = down


class Relay:
    """A place that passes everything on, and counts it."""

    def __init__(self, listening: socket.socket, target: str) -> None:
        self.host = f"127.0.0.1:{listening.getsockname()[1]}"
        self._listening = listening
        self._target = target.rpartition(":")
        self._moved = Moved()
        self._lock = threading.Lock()

    def moved(self) -> Moved:
        """What went through until now."""
        with self._lock:
            return Moved(self._moved.up, self._moved.down)

    def serve(self) -> None:
        """Take connections until the socket is closed."""
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection((self._target[0], int(self._target[2])))
                for pair in ((near, far, "up"), (far, near, "down")):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_BLOCK):
                with self._lock:
                    setattr(self._moved, way, getattr(self._moved, way) + len(data))
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay(target: str) -> Iterator[Relay]:
    """A relay before this HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = Relay(listening, target)
        threading.Thread(target=found.serve, daemon=True).start()
        yield found
        listening.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def index(directory: Path) -> Iterator[str]:
    """A package index (PEP 503) of the wheels in a directory; gives its URL."""
    wheels: dict[str, list[str]] = {}
    for path in directory.glob("*.whl"):
        name = path.name.partition("-")[0].lower().replace("_", "-").replace(".", "-")
        wheels.setdefault(name, []).append(path.name)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(directory))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            name = self.path.strip("/")
            if name.endswith(".whl"):
                super().do_GET()
                return
            body = "".join(f'<a href="/{each}">{each}</a>\n' for each in wheels.get(name, ())).encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
