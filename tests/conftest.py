"""Fixtures for all tests: a home that is nobody's, a store, and real registries on loopback."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.registry import HTPASSWD, RunningRegistry, running_registry

from assembler.oci.layout import Store
from assembler.registry.client import Client
from assembler.registry.retry import RetryPolicy
from assembler.registry.settings import Settings

# Whoever runs the tests in the background of a script has interrupts ignored, and so would every child of ours.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store").create()


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A registry without login. Every test uses repositories of its own name in it."""
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def other_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A second registry, from which nothing can be mounted."""
    with running_registry(tmp_path_factory.mktemp("other-registry")) as running:
        yield running


@pytest.fixture(scope="session")
def login_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A registry that knows only the user `robot` with the password `secret`."""
    with running_registry(tmp_path_factory.mktemp("login-registry"), htpasswd=HTPASSWD) as running:
        yield running


@pytest.fixture
def client() -> Iterator[Client]:
    """A client without credentials that does not wait between its tries."""
    client = Client(Settings(), RetryPolicy(attempts=3, sleep=lambda _seconds: None))
    yield client
    client.close()


@pytest.fixture
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A repository name that no other test uses."""
    return "t/" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-").replace(
        "--", "-"
    )
