"""`--source` and `--base`: what the command line puts in the place of what a manifest says.

Relative paths in them start from the current directory, those in manifests from the manifest's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from assembler.errors import ManifestError
from assembler.manifest.models import Base, Source, base_fields
from assembler.manifest.problems import Problems, alternatives, did_you_mean

if TYPE_CHECKING:
    from assembler.manifest.loaded import Scope

_ROLES = ("devel", "runtime")
_ARCHIVE = re.compile(r".*\.(?:zip|tar|tgz|tbz2|txz|tar\.(?:gz|bz2|xz|zst))")


def override_source(sources: Mapping[str, str], scopes: dict[str, Scope], problems: Problems) -> None:
    """Replace each named source, in `scopes`, by the local directory or archive.

    A bare NAME means the manifest's source of that name, else that of the one recipe which has it (in all its
    scopes); SCOPE.NAME always means one.
    """
    for name, text in sources.items():
        place = f"--source {name}={text}"
        path = Path(text).absolute()
        owners = _owners(name, scopes)
        if not owners:
            known = [
                f"{scope.name}.{each}" if scope.name else each
                for scope in scopes.values()
                for each in scope.sources
            ]
            hint = alternatives(name, known, title="sources", none="nothing here has sources")
            problems.add_error(ManifestError(f"no source `{name}`", place=place, hint=hint))
        elif len({scopes[scope].recipe for scope, _ in owners}) > 1:
            full = ", ".join(f"`{scope}.{source}`" for scope, source in owners)
            problems.add_error(ManifestError(f"expected one source, got {full}", place=place))
        elif not path.exists():
            problems.add_error(ManifestError("no such file or directory", place=place))
        elif not path.is_dir() and not _ARCHIVE.fullmatch(path.name):
            fact = "expected a directory or an archive (tar, zip), got another file"
            problems.add_error(ManifestError(fact, place=place))
        else:
            for scope, source in owners:
                changed = {**scopes[scope].sources, source: _local(scopes[scope].sources[source], path)}
                scopes[scope] = replace(scopes[scope], sources=changed)


def _owners(name: str, scopes: Mapping[str, Scope]) -> list[tuple[str, str]]:
    """Which (scope, source) a name means."""
    if name in scopes[""].sources:
        return [("", name)]
    exact = [
        (scope.name, each)
        for scope in scopes.values()
        for each in scope.sources
        if scope.name and name == f"{scope.name}.{each}"
    ]
    return exact or [(scope.name, name) for scope in scopes.values() if name in scope.sources]


def _local(source: Source, path: Path) -> Source:
    fields: dict[str, Any] = {"subdirectory": source.subdirectory, "ignore": source.ignore}
    if path.is_dir():
        return Source(path=str(path), **fields)
    return Source(archive=str(path), strip=source.strip, patches=source.patches, **fields)


def override_base(role: str, text: str, problems: Problems) -> Base | None:
    """The base that `--base ROLE=TEXT` means; None after noting why there is none."""
    place = f"--base {role}={text}"
    if role not in _ROLES:
        hint = did_you_mean(role, _ROLES)
        problems.add_error(ManifestError(f"expected `devel` or `runtime`, got `{role}`", place=place, hint=hint))
        return None
    fields = {"manifest": text} if Path(text).is_file() else base_fields(text)
    for key in ("oci", "manifest"):
        if fields.get(key):
            fields[key] = str(Path(fields[key]).absolute())
    try:
        return Base.model_validate(fields)
    except ValidationError as error:
        problems.add_error(ManifestError(error.errors()[0]["msg"], place=place))
        return None
