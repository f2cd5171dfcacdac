"""The JSON Schema accepts what loads, read as an editor reads it, and finds an editor's usual mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from support.manifests import MANIFEST, RECIPE

from assembler.manifest.library import load
from assembler.manifest.schema import json_schema

_TYPED = """
manifest: 1
name: typed
args: {cuda: 12.4, gpus: all, port: {default: 80, help: port, choices: [80, 81]}, none: {default: ""}}
platforms: [linux/amd64, linux/arm64]
devel: {bootstrap: {suite: bookworm, packages: [gcc]}}
runtime: {reference: "docker.io/a/b:${cuda}"}
epoch: 12
compression: both
sources:
  src: {archive: https://example.org/a.tar.gz, strip: 1, ignore: [.git]}
compile:
  one:
    toolchain: cmake
    source: src
    strip: false
    jobs-memory: 2g
    env: {N: 3, FLAG: true}
    cmake: {definitions: {GGML_NATIVE: OFF, LEVEL: 3}, install: true, build_type: Debug}
    artifacts: {bin: bin/x, lib: [lib/*.so, "lib/${gpus}.so"]}
  two: {toolchain: script, source: src, script: {commands: [[make, 3]]}, artifacts: {x: x}}
layers:
  - copy: {artifact: one.bin, to: /usr/local/bin/, mode: 0755, user: 1000}
  - files:
      - {path: /etc/a, content: 12}
      - {path: /data, directory: true, mode: "1777"}
      - {path: /b, link: /etc/a}
  - run: {command: [ldconfig], network: none}
  - wheels: {requirements: [torch], python: 3.11}
image:
  env: {PORT: "${port}", PATH: "/opt:${PATH}"}
  ports: [80, 81/udp]
  stop_signal: SIGTERM
  healthcheck: {test: curl localhost, interval: 30s, retries: 3, start-period: 5s}
run: {gpus: 2, shm-size: 1g, ulimit: [memlock=-1]}
"""


def _validator(kind: Literal["manifest", "recipe"]) -> Draft202012Validator:
    return Draft202012Validator(json_schema(kind))


@pytest.mark.parametrize("kind", ["manifest", "recipe"])
def test_is_a_schema(kind: Literal["manifest", "recipe"]) -> None:
    schema = json_schema(kind)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.dumps(schema) == json.dumps(json_schema(kind))


@pytest.mark.parametrize(("kind", "text"), [("manifest", MANIFEST), ("manifest", _TYPED), ("recipe", RECIPE)])
def test_accepts_what_is_good(kind: Literal["manifest", "recipe"], text: str) -> None:
    assert [error.message for error in _validator(kind).iter_errors(yaml.safe_load(text))] == []


def test_the_typed_sample_is_good(tmp_path: Path) -> None:
    (tmp_path / "typed.yaml").write_text(_TYPED)
    assert load(tmp_path / "typed.yaml").manifest.name == "typed"


@pytest.mark.parametrize(
    "text",
    [
        "manifest: 1\nname: x\n",
        "manifest: 2\nname: x\nruntime: scratch\n",
        "manifest: 1\nname: x\nruntime: scratch\nentrypoint: [a]\n",
        "manifest: 1\nname: x\nruntime: scratch\nimage: {cmd: a}\n",
        "manifest: 1\nname: x\nruntime: scratch\ncompression: bz2\n",
        "manifest: 1\nname: x\nruntime: {bootstrap: {}}\n",
        "manifest: 1\nname: x\nruntime: scratch\nlayers: [{files: [{path: /a, directory: maybe}]}]\n",
    ],
)
def test_finds_mistakes(text: str) -> None:
    assert not _validator("manifest").is_valid(yaml.safe_load(text))


def _properties(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        for name, value in schema.get("properties", {}).items():
            yield f"{path}.{name}", value
        for key, value in schema.items():
            yield from _properties(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for value in schema:
            yield from _properties(value, path)


@pytest.mark.parametrize("kind", ["manifest", "recipe"])
def test_every_key_is_described(kind: Literal["manifest", "recipe"]) -> None:
    found = list(_properties(json_schema(kind)))
    assert [path for path, value in found if not value.get("description")] == []
    assert len(found) > 60
