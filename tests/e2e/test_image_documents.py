"""What an image says of itself: its base, when it was made, and the history of its layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.cli import Program
from support.images import AMD64, ARM64, image_of
from support.registry import RunningRegistry, output_of

from assembler.oci.image import History, Image
from assembler.oci.layout import Store
from assembler.registry.client import Client
from assembler.registry.push import push, push_index

pytestmark = pytest.mark.registry
BASE = "org.opencontainers.image.base"
LAYERS = 'layers:\n  - files: [{path: /a, content: "x"}]\n  - files: [{path: /b, content: "y"}]\n'


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "cache")


def write(directory: Path, runtime: str, more: str = "", name: str = "on") -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(f"manifest: 1\nname: {name}\nruntime: {runtime}\n{LAYERS}{more}")
    return path


def document(target: str, *options: str) -> Any:
    """What skopeo reads: the manifest, or with `--config` the config."""
    return json.loads(
        output_of(["skopeo", "inspect", "--raw", "--tls-verify=false", *options, f"docker://{target}"])
    )


def without_history(image: Image) -> Image:
    return replace(image, config=replace(image.config, history=()))


def test_the_base_is_named_by_what_its_tag_meant(
    program: Program, registry: RunningRegistry, client: Client, store: Store, repository: str, tmp_path: Path
) -> None:
    """The digest is that of what the name names: the index, where it names one."""
    images = [image_of(store, {"usr/m": str(each).encode()}, platform=each) for each in (AMD64, ARM64)]
    base = registry.reference(f"{repository}/base")
    index = push_index(client, images, store, [base.tagged("latest")]).digest
    alone = push(client, images[0], store, [base.tagged("alone")]).digest
    target = f"{base.name}-on:1"
    for text, name, digest in (
        (f"{base.name}", f"{base.name}:latest", index),
        (f"{base.name}:alone", f"{base.name}:alone", alone),
        (f"{base.name}:gone@{alone}", f"{base.name}:gone@{alone}", alone),
        (f"{base.name}@{index}", f"{base.name}@{index}", index),
    ):
        program.ok(write(tmp_path, text), "--push", target)
        assert document(target)["annotations"] == {f"{BASE}.name": name, f"{BASE}.digest": digest}
    lock = (tmp_path / "on.lock.yaml").read_text()
    assert f"index: {index}" in lock
    assert f"manifest: {alone}" in lock


def test_images_that_stand_on_nothing_of_a_registry_name_no_base(program: Program, tmp_path: Path) -> None:
    program.ok(write(tmp_path, "scratch"), "--output", f"oci:{tmp_path / 'out'}")
    raw = json.loads(output_of(["skopeo", "inspect", "--raw", f"oci:{tmp_path / 'out'}:on"]))
    assert "annotations" not in raw


def test_history_has_a_line_for_each_layer_of_a_base_without_one(
    program: Program, registry: RunningRegistry, client: Client, store: Store, repository: str, tmp_path: Path
) -> None:
    base = registry.reference(f"{repository}/base:1")
    push(client, without_history(image_of(store, {"usr/m": b"m"}, {"usr/n": b"n"})), store, [base])
    target = f"{base.name}-on:1"
    program.ok(write(tmp_path, str(base)), "--push", target)
    history = document(target, "--config")["history"]
    assert [entry.get("created_by") for entry in history] == [None, None, "files /a", "files /b"]
    assert not any("empty_layer" in entry for entry in history)
    origins = [layer["origin"] for layer in program("inspect", target, "--json").json()["layers"]]
    assert origins == ["base", "base", "ours", "ours"]


def test_empty_layers_of_the_base_stay_empty(
    program: Program, registry: RunningRegistry, client: Client, store: Store, repository: str, tmp_path: Path
) -> None:
    image = image_of(store, {"usr/m": b"m"})
    lines = (
        *image.config.history,
        History(created_by="ENV A=b", empty_layer=True, created="2024-01-01T00:00:00Z"),
    )
    base = registry.reference(f"{repository}/base:1")
    push(client, replace(image, config=replace(image.config, history=lines)), store, [base])
    target = f"{base.name}-on:1"
    program.ok(write(tmp_path, str(base)), "--push", target)
    config = document(target, "--config")
    assert [entry.get("empty_layer", False) for entry in config["history"]] == [False, True, False, False]
    assert config["history"][1]["created"] == "2024-01-01T00:00:00Z", "the base's own"
    assert len(config["rootfs"]["diff_ids"]) == 3


def test_the_date_is_the_epoch_of_the_manifest_or_of_the_environment(program: Program, tmp_path: Path) -> None:
    path = write(tmp_path, "scratch")

    def made(manifest: Path, **environment: str) -> tuple[str, Any]:
        digest = program.ok(manifest, env=environment).rpartition("@")[2]
        return digest, program("inspect", manifest.stem, "--json").json()

    plain, image = made(path)
    assert image["created"] == "1970-01-01T00:00:00Z"
    stamped, image = made(path, SOURCE_DATE_EPOCH="1700000000")
    assert image["created"] == "2023-11-14T22:13:20Z"
    assert stamped != plain
    assert made(path)[0] == plain, "a result of another date is not remembered for this one"
    assert made(path, SOURCE_DATE_EPOCH="1700000000")[0] == stamped
    own = write(tmp_path, "scratch", "epoch: 86400\n", name="own")
    assert made(own, SOURCE_DATE_EPOCH="1700000000")[1]["created"] == "1970-01-02T00:00:00Z"
    above = write(tmp_path, "own.yaml", name="above")
    config = made(above, SOURCE_DATE_EPOCH="1700000000")[1]
    assert config["created"] == "2023-11-14T22:13:20Z"
    refused = program(path, env={"SOURCE_DATE_EPOCH": "yesterday"})
    assert (refused.code, refused.stderr.splitlines()[0]) == (
        2,
        "error: SOURCE_DATE_EPOCH: expected seconds since 1970, got `yesterday`",
    )


def test_an_image_on_a_manifest_on_a_registry_is_pushed_again_from_the_store(
    program: Program,
    registry: RunningRegistry,
    other_registry: RunningRegistry,
    client: Client,
    store: Store,
    repository: str,
    tmp_path: Path,
) -> None:
    """Where the layers of the lowest base lie is known also when nothing is stacked any more."""
    base = registry.reference(f"{repository}/base:1")
    push(client, image_of(store, {"usr/m": b"m"}), store, [base])
    write(tmp_path, str(base), name="middle")
    top = write(tmp_path, "middle.yaml", name="top")
    first = program.ok(top, "--push", f"{base.name}-top:1")
    again = program.ok(top, "--push", other_registry.reference(f"{repository}/top:1").name)
    assert again.rpartition("@")[2] == first.rpartition("@")[2]
    assert "annotations" not in document(f"{base.name}-top:1"), "its base is ours, and has no name in a registry"
