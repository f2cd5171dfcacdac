"""What `plan --push` says of transfers, against what the push then does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.test_files_and_copies import write_project
from support.cli import Program
from support.registry import RunningRegistry, running_registry

pytestmark = pytest.mark.registry


@pytest.fixture
def other(tmp_path: Path) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path / "other") as registry:
        yield registry


def ways(program: Program, manifest: Path, *targets: str) -> dict[str, Counter[str]]:
    """Target → bytes by way, base and own layers together."""
    (plan,) = program(
        "plan", manifest, *[word for target in targets for word in ("--push", target)], "--json"
    ).json()
    found: dict[str, Counter[str]] = {}
    for transfer in plan["transfers"]:
        found.setdefault(transfer["target"], Counter())[transfer["way"]] += transfer["size"]
    return found


def test_the_plan_says_the_way_of_each_layer(
    tmp_path: Path, registry: RunningRegistry, other: RunningRegistry
) -> None:
    warm = Program(tmp_path / "warm")
    base = f"{registry.host}/plan/base:1"
    (made,) = warm(write_project(tmp_path / "base"), "--push", base, "--json").json()
    manifest = tmp_path / "on.yaml"
    manifest.write_text(
        f"manifest: 1\nname: on\nruntime: {base}\nlayers: [{{files: [{{path: /a, content: b}}]}}]\n"
    )
    near, far = f"{registry.host}/plan/on:1", f"{other.host}/plan/on:1"
    cold = Program(tmp_path / "cold")
    planned = ways(cold, manifest, near, far)
    assert planned == {near: Counter(mount=made["size"]), far: Counter(stream=made["size"])}
    assert ways(warm, manifest, far) == {far: Counter(push=made["size"])}, "the base's layers are in the store"
    text = cold("plan", manifest, "--push", near).stdout
    assert f"to {near}: {made['size']} B mounted" in text
    done = pushed(cold, manifest, far)
    assert done["bytes_pulled"] == planned[far]["stream"]
    assert ways(cold, manifest, far) == {far: Counter(present=done["size"])}


def pushed(program: Program, manifest: Path, target: str) -> dict[str, Any]:
    result: dict[str, Any] = program(manifest, "--push", target, "--json").json()[0]
    return result
