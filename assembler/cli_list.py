"""The verb `list`: manifests and recipes of the library, with what each is for."""

from __future__ import annotations

import json
from typing import Any

from assembler.cli_text import table
from assembler.errors import AssembleError


def list_command(*, json_output: bool) -> int:
    """Print the library as a table or JSON."""
    rows = [*_manifests(), *_recipes()]
    if json_output:
        print(json.dumps(rows, indent=2))
        return 0
    cells = [[row["kind"], row["name"], row["accelerator"] or "", row["summary"]] for row in rows]
    print(table(cells, ["KIND", "NAME", "ACCELERATOR", "SUMMARY"]))
    return 0


def _manifests() -> list[dict[str, Any]]:
    from assembler.manifest.library import find_manifest, load
    from assembler.manifest.search import manifest_names

    rows = []
    for name in manifest_names():
        try:
            manifest = load(find_manifest(name)).manifest
            accelerator = manifest.accelerator
            names = [*accelerator.cuda, *accelerator.rocm] if accelerator else []
            rows.append(_row("manifest", name, manifest.summary, " ".join(names)))
        except AssembleError as error:
            rows.append(_row("manifest", name, f"cannot be loaded: {error}", ""))
    return rows


def _recipes() -> list[dict[str, Any]]:
    from assembler.manifest.search import recipe_names, shipped
    from assembler.manifest.source import read_document

    directory = shipped("layers")
    if directory is None:
        return []
    rows = []
    for name in recipe_names([directory]):
        tree = read_document(directory / f"{name}.yaml").tree
        summary = tree.get("summary") if isinstance(tree, dict) else ""
        rows.append(_row("recipe", name, str(summary or ""), ""))
    return rows


def _row(kind: str, name: str, summary: str, accelerator: str) -> dict[str, Any]:
    return {"kind": kind, "name": name, "summary": summary, "accelerator": accelerator or None}
