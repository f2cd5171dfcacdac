"""The quick look at a tag: right or silent, and cheap to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.images import image_of
from support.registry import RunningRegistry, free_port

from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.peek import peek_digest
from assembler.registry.push import push

pytestmark = pytest.mark.registry


def test_names_the_digest_with_one_question(
    client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    target = registry.reference(f"{repository}:1")
    digest = push(client, image_of(store, {"a": repository.encode()}), store, [target]).digest
    mark = registry.mark()
    assert peek_digest(target) == digest
    assert peek_digest(target.at(digest)) == digest
    assert [request.method for request in registry.asked(mark)] == ["HEAD", "HEAD"]


def test_is_silent_otherwise(registry: RunningRegistry, login_registry: RunningRegistry, repository: str) -> None:
    assert peek_digest(registry.reference(f"{repository}:missing")) is None
    assert peek_digest(registry.reference(repository)) is None
    assert peek_digest(login_registry.reference(f"{repository}:1")) is None
    assert peek_digest(Reference.parse(f"127.0.0.1:{free_port()}/x:1")) is None
    proxied = {"HTTPS_PROXY": "http://proxy.invalid"}
    assert peek_digest(Reference.parse("registry.invalid/x:1"), environment=proxied) is None


@pytest.mark.parametrize(
    ("conf", "answers"),
    [
        ('# location = "{host}"', True),
        ('[[registry]]\nlocation = "elsewhere.test"\nblocked = true', True),
        ('[[registry]]\nlocation = "{host}"\ninsecure = true', True),
        ('[[registry]]\nlocation = "{host}"\nblocked = true', False),
        ('[[registry]]\nprefix = "{host}"\nlocation = "elsewhere.test"', False),
        ('[[registry]]\nlocation = "{host}"\n[[registry.mirror]]\nlocation = "elsewhere.test"', False),
        ('[[registry]]\nlocation = "{host}"\ninsecure = 1', False),
    ],
)
def test_is_silent_where_registries_conf_says_more_of_the_registry(
    client: Client,
    registry: RunningRegistry,
    store: Store,
    repository: str,
    tmp_path: Path,
    conf: str,
    answers: bool,
) -> None:
    target = registry.reference(f"{repository}:1")
    digest = push(client, image_of(store, {"a": repository.encode()}), store, [target]).digest
    path = tmp_path / "registries.conf"
    path.write_text(conf.format(host=registry.host))
    mark = registry.mark()
    environment = {"HOME": str(tmp_path), "CONTAINERS_REGISTRIES_CONF": str(path)}
    assert peek_digest(target, environment=environment) == (digest if answers else None)
    assert len(registry.asked(mark)) == answers


def test_imports_nothing_heavy() -> None:
    heavy = (
        "requests",
        "oras",
        "urllib3",
        "pydantic",
        "yaml",
        "zstandard",
        "plumbum",
        "http.client",
        "ssl",
        "email",
        "tomllib",
    )
    code = f"import sys, assembler.registry.peek; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    )
