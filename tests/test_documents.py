"""The documents are what the program is: generated parts are current, examples load, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from assembler import cli_arguments
from assembler.manifest.library import load
from assembler.manifest.reference import type_text
from assembler.manifest.steps import CompileStep

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_generated_parts_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/generate"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["manifest", "bases"])
def test_examples_load(name: str) -> None:
    assert load(ROOT / f"docs/examples/{name}.yaml").manifest.name


def anchors(path: Path) -> set[str]:
    """How the headings of a document are linked to."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    kept = ("".join(c for c in title.lower() if c.isalnum() or c in " -_") for title in titles)
    return {title.replace(" ", "-") for title in kept}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    lost = []
    for target in _LINK.findall(path.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            lost.append(target)
    assert not lost


def test_types_are_told_in_words() -> None:
    fields = CompileStep.model_fields
    assert type_text(fields["network"].annotation) == "`none`, `host`"
    assert type_text(fields["cmake"].annotation) == "mapping"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_that_documents_name_exist(path: Path) -> None:
    """Every long option in a line that runs `assemble` is one of its options."""
    known = set(re.findall(r'"(--[a-z-]+)"', Path(cli_arguments.__file__).read_text()))
    lines = [line for line in path.read_text().splitlines() if re.search(r"[$`] ?assemble ", line)]
    for line in lines:
        for command in re.findall(r"assemble [^`|]*", line):
            assert set(re.findall(r"(?<![\w-])--[a-z-]+", command)) <= known, line
