"""Children with their wall time and peak memory, and a registry to push to."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class BenchError(Exception):
    """A measured command failed, or something to measure with is missing."""


@dataclass(frozen=True, slots=True)
class Run:
    """How a command ran. `peak_mib` is the largest resident set of it or of a child that it waited for."""

    seconds: float
    peak_mib: float
    stdout: str


def read_result(stdout: str) -> dict[str, Any]:
    """The one result of a command of ours with `--json`."""
    value = json.loads(stdout)
    result: dict[str, Any] = value[0] if isinstance(value, list) else value
    return result


def timed(argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Run:
    """Run a command to its end; BenchError with its output when it fails.

    A child starts with the peak of the process that it comes from, so this process must stay small: whatever
    needs memory runs as a child too.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if own > 60:
        raise BenchError(f"the benchmark itself uses {own:.0f} MiB; the peaks of its children would be wrong")
    # Output goes to an unnamed file: a pipe that nobody reads would stop the child.
    output = os.memfd_create("output")
    errors = os.memfd_create("errors")
    started = time.monotonic()
    child = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )
    try:
        _pid, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - started
    except BaseException:
        child.kill()
        child.wait()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    stdout, stderr = _read(output), _read(errors)
    if child.returncode:
        lines = "\n".join((stdout + stderr).splitlines()[-15:])
        raise BenchError(f"`{' '.join(argv)}` ended with {child.returncode}:\n{lines}")
    return Run(seconds, usage.ru_maxrss / 1024, stdout)


def _read(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor, "rb") as file:
        return file.read().decode(errors="replace")


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[str]:
    """An empty registry on a free loopback port; gives HOST:PORT."""
    directory.mkdir(parents=True)
    for _attempt in range(5):  # another process may take the port first
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{probe.getsockname()[1]}"
        config = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
            "http": {"addr": host},
        }
        (directory / "config.yml").write_text(json.dumps(config))
        try:
            child = subprocess.Popen(
                ["docker-registry", "serve", str(directory / "config.yml")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except FileNotFoundError:
            raise BenchError("`docker-registry` is not installed") from None
        try:
            if _listens(child, host):
                yield host
                return
        finally:
            child.terminate()
            child.wait()
    raise BenchError("docker-registry does not start")


@contextlib.contextmanager
def passing_registry(directory: Path) -> Iterator[str]:
    """An empty registry with a new directory below this one, which goes with it; gives HOST:PORT."""
    with (
        tempfile.TemporaryDirectory(dir=directory, prefix="registry-") as name,
        registry(Path(name) / "it") as host,
    ):
        yield host


def _listens(child: subprocess.Popen[bytes], host: str) -> bool:
    name, _, port = host.partition(":")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((name, int(port)), timeout=1):
            return True
        time.sleep(0.02)
    return False
