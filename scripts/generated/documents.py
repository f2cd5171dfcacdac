"""What is in the documents between the marks, and the documents with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from assembler.manifest.library import load
from assembler.manifest.reference import reference
from assembler.manifest.source import Tree, read_document

_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents(root: Path) -> dict[Path, str]:
    """Every document with generated parts, as it should be."""
    parts = {"fields": reference(_trees(root)), "images": _images(root), "recipes": _recipes(root)}
    found = {}
    for path in sorted([*root.glob("docs/*.md"), root / "README.md"]):
        text = path.read_text()
        filled = _BLOCK.sub(lambda match: f"{match[1]}\n{parts[match[2]]}\n\n{match[3]}", text)
        if _BLOCK.search(text):
            found[path] = filled
    return found


def _trees(root: Path) -> Iterator[Tree]:
    """Files that examples are taken from: first those that are made for it, then the library."""
    for directory in ("docs/examples", "layers", "manifests"):
        for path in sorted((root / directory).rglob("*.yaml")):
            if not path.name.endswith(".lock.yaml"):
                yield read_document(path).tree


def _images(root: Path) -> str:
    rows = ["| image | what it is | platforms | compiled for |", "|---|---|---|---|"]
    for path in sorted((root / "manifests").rglob("*.yaml")):
        if path.name.endswith(".lock.yaml"):
            continue
        manifest = load(path).manifest
        name = path.relative_to(root / "manifests").with_suffix("")
        accelerator = manifest.accelerator
        architectures = " ".join([*accelerator.cuda, *accelerator.rocm]) if accelerator else ""
        rows.append(f"| `{name}` | {manifest.summary} | {' '.join(manifest.platforms)} | {architectures} |")
    return "\n".join(rows)


def _recipes(root: Path) -> str:
    rows = ["| recipe | what it is | inputs |", "|---|---|---|"]
    for path in sorted((root / "layers").glob("*.yaml")):
        tree = read_document(path).tree
        inputs = tree.get("inputs")
        names = " ".join(f"`{name}`" for name in inputs) if isinstance(inputs, dict) else ""
        rows.append(f"| `{path.stem}` | {tree.get('summary', '')} | {names} |")
    return "\n".join(rows)
