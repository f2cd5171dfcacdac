"""Registries of several makers, each started on loopback as its users start it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.go_programs import go_program
from support.registry import free_port, listens, running_registry

from assembler.process import which

_START_SECONDS = 30.0


@dataclass(frozen=True)
class Maker:
    """A kind of registry. `has_list` says whether it has the referrers API of distribution-spec 1.1 in some form,
    `says_so` whether it also answers with `OCI-Subject`, so that no tag is needed; `tells_types` whether the list
    has the type of what was attached, rather than that of a config.
    """

    name: str
    start: Callable[[Path], contextlib.AbstractContextManager[str]]
    has_list: bool
    says_so: bool
    tells_types: bool = True


@contextlib.contextmanager
def _debian(directory: Path) -> Iterator[str]:
    """The distribution project's registry, version 2.8, as Debian ships it."""
    with running_registry(directory) as running:
        yield running.host


@contextlib.contextmanager
def _distribution(directory: Path) -> Iterator[str]:
    """The same project's version 3."""
    program = go_program("distribution")

    def command(host: str) -> list[str]:
        config = directory / "config.yml"
        value = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
            "http": {"addr": host, "secret": "for tests"},
        }
        config.write_text(json.dumps(value))
        return [program, "serve", str(config)]

    with _answering(directory, command) as host:
        yield host


@contextlib.contextmanager
def _google(directory: Path) -> Iterator[str]:
    """go-containerregistry's, which keeps everything in memory."""
    program = go_program("google")
    with _answering(directory, lambda host: [program, host]) as host:
        yield host


@contextlib.contextmanager
def _zot(directory: Path) -> Iterator[str]:
    """Zot, where it is installed: it is in no package registry that tests could take it from."""
    program = which("zot")
    if program is None:
        pytest.skip("`zot` is not installed; no package registry has it")

    def command(host: str) -> list[str]:
        name, _, port = host.partition(":")
        config = directory / "config.json"
        value = {
            "storage": {"rootDirectory": str(directory / "storage")},
            "http": {"address": name, "port": port, "compat": ["docker2s2"]},
            "log": {"level": "error"},
        }
        config.write_text(json.dumps(value))
        return [program, "serve", str(config)]

    with _answering(directory, command) as host:
        yield host


MAKERS = (
    Maker("docker-registry", _debian, has_list=False, says_so=False),
    Maker("distribution-3", _distribution, has_list=False, says_so=False),
    Maker("google", _google, has_list=True, says_so=False, tells_types=False),
    Maker("zot", _zot, has_list=True, says_so=True),
)


@contextlib.contextmanager
def _answering(directory: Path, command: Callable[[str], list[str]]) -> Iterator[str]:
    """Run a registry until the block ends; gives HOST:PORT."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "registry.log"
    for _ in range(5):  # another process may take the port between choosing and listening
        host = f"127.0.0.1:{free_port()}"
        with log.open("ab") as output:
            child = subprocess.Popen(command(host), stdout=output, stderr=output, cwd=directory)
        try:
            if listens(child, host, _START_SECONDS):
                yield host
                return
        finally:
            child.terminate()
            child.wait()
    raise AssertionError(f"the registry does not start:\n{log.read_text()[-2000:]}")
