"""The recipes of servers that other images stand on: assembled on Debian, and asked for their versions."""

from __future__ import annotations

import json

import pytest
from support.cli import ROOT, Program
from support.needs import need, need_root
from support.podman import output_of_image
from support.registry import RunningRegistry

pytestmark = [pytest.mark.tools, pytest.mark.slow]

PROGRAMS = (
    "nats-server --version; /usr/bin/nats-server --version; etcd --version; etcdctl version; "
    "for name in etcd etcdctl etcdutl; do test -x /usr/local/bin/etcd/$name || echo $name; done"
)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, registry: RunningRegistry) -> list[str]:
    """What the programs of both recipes say in one image; the base is that of the library, without its lock."""
    need_root()
    need("buildah", "mmdebstrap")
    directory = tmp_path_factory.mktemp("services")
    (directory / "base.yaml").write_text((ROOT / "manifests/bases/debian-python.yaml").read_text())
    manifest = {
        "manifest": 1,
        "name": "services",
        "runtime": "base.yaml",
        "layers": [{"uses": "nats-server"}, {"uses": "etcd"}],
        "image": {"cmd": ["sh", "-ec", PROGRAMS]},
    }
    (directory / "services.yaml").write_text(json.dumps(manifest))
    pushed = f"{registry.host}/e2e/services:1"
    image = Program(directory / "cache").ok(directory / "services.yaml", "--push", pushed).splitlines()[-1]
    return output_of_image(image).splitlines()


def test_nats_server_runs_in_both_places(output: list[str]) -> None:
    first, second = output[:2]
    assert first.startswith("nats-server: v2.")
    assert second == first


def test_etcd_runs_and_is_where_dynamo_looks(output: list[str]) -> None:
    assert output[2].startswith("etcd Version: 3.")
    assert output[-2].startswith("etcdctl version: 3."), "a name after it is one that is missing"
    assert output[-1].startswith("API version: 3.")
