"""The manifests that come with assemble: each has a lock that answers everything, and images are introduced."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.cli import Program

from assembler.manifest.lock import lock_path

ROOT = Path(__file__).parents[1]
MANIFESTS = sorted(path for path in ROOT.glob("manifests/**/*.yaml") if path.with_suffix("").suffix != ".lock")
IMAGES = [path for path in MANIFESTS if path.parent.name == "manifests"]
PUBLIC = {"http://deb.debian.org", "https://files.pythonhosted.org"}

parametrized = pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.stem))


@parametrized
def test_the_lock_answers_everything(path: Path, tmp_path: Path) -> None:
    """Asking nobody, with an empty cache: all steps have keys."""
    ended = Program(tmp_path)("plan", path, "--locked", "--offline", "--json")
    assert ended.code == 10, ended.stderr
    (plan,) = json.loads(ended.stdout)
    assert [step["id"] for step in plan["steps"] if not step["key"]] == []


@parametrized
def test_the_lock_names_public_places_only(path: Path) -> None:
    assert set(re.findall(r"https?://[^/\s\"]+", lock_path(path).read_text())) <= PUBLIC


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: str(path.stem))
def test_an_image_says_for_whom_it_is(path: Path) -> None:
    comment = path.read_text().partition("manifest: 1")[0]
    assert all(word in comment for word in ("For whom: ", "Size: ", "GPU: "))
