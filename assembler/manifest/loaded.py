"""What loading a manifest gives: its layers, each in the scope of the recipe that it came of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from assembler.manifest.models import CompileStep, LayerEntry, Manifest, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """One recipe instance, or the manifest itself (name and recipe are then empty and None).

    `directory` is what relative paths of its sources and files start from, `digest_place` its file as messages
    show it.
    """

    name: str
    directory: Path
    recipe: str | None
    sources: Mapping[str, Source]
    compile: Mapping[str, CompileStep]
    digest_place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundLayer:
    """One layer in its scope; `uses` entries are already replaced by what the recipe ships."""

    scope: Scope
    entry: LayerEntry
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedManifest:
    """Everything that the files and the overrides say.

    `manifest.image.env` holds the recipes' contributions too, as templates that the base's values complete.
    `overrides` is true when an argument, source or base was changed on the command line: such a load does not
    speak for the lock that lies beside the manifest. `files` are all files whose content went into this value,
    and those that `from-file` and `wheels.file` name. `bases` are the files of bases that are manifests, by role.
    `source_date_epoch` is what the request says for manifests without an `epoch` of their own, see `stamped`.
    """

    path: Path
    manifest: Manifest
    layers: tuple[BoundLayer, ...]
    scopes: tuple[Scope, ...]
    args: Mapping[str, str]
    overrides: bool
    files: tuple[Path, ...]
    bases: Mapping[str, Path] = field(default_factory=dict)
    source_date_epoch: int | None = None

    def stamped(self, epoch: int | None) -> LoadedManifest:
        """The same with this `epoch` (seconds since 1970), unless it says one itself."""
        if epoch is None or "epoch" in self.manifest.model_fields_set:
            return replace(self, source_date_epoch=epoch)
        manifest = self.manifest.model_copy(update={"epoch": epoch})
        return replace(self, manifest=manifest, source_date_epoch=epoch)
