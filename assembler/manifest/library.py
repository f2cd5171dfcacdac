"""Loading: a manifest with its recipes, expanded, validated, flattened and checked for dangling names.

Everything that is wrong is reported at once. A file that is partly wrong is still checked where it is right, so
that a typing error in one layer does not hide an unknown recipe in another.

A recipe that is used twice with the same inputs is one scope, and its layers are stacked once, where it is used
first: a second copy of the same files would change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel

from assembler.errors import ManifestError
from assembler.manifest.arguments import Given, values_of
from assembler.manifest.expand import Expander, overlay
from assembler.manifest.models import Base, CompileStep, LayerEntry, Manifest, Recipe, Source
from assembler.manifest.overrides import override_base, override_source
from assembler.manifest.problems import Problems, alternatives, did_you_mean
from assembler.manifest.search import display, find_manifest, find_recipe, recipe_directories, recipe_names
from assembler.manifest.source import Document, Steps, read_document
from assembler.manifest.validate import validate

__all__ = ["BoundLayer", "LoadedManifest", "Scope", "find_manifest", "load"]

SCOPE_LIMIT = 500
"""Recipe instances in one manifest; recipes that use each other twice would else grow without end."""

DEPTH_LIMIT = 30
"""Recipes within recipes, and manifests on manifests."""

_NONE: Mapping[str, str] = MappingProxyType({})


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
    """

    path: Path
    manifest: Manifest
    layers: tuple[BoundLayer, ...]
    scopes: tuple[Scope, ...]
    args: Mapping[str, str]
    overrides: bool
    files: tuple[Path, ...]
    bases: Mapping[str, Path] = field(default_factory=dict)


def load(
    path: Path,
    *,
    sets: Mapping[str, str] = _NONE,
    sources: Mapping[str, str] = _NONE,
    bases: Mapping[str, str] = _NONE,
    library: Sequence[Path] = (),
) -> LoadedManifest:
    """Load a manifest; InvalidManifestError with all errors of all files.

    `sets` are arguments, `sources` replace a source (NAME or SCOPE.NAME) by a local path, `bases` replace `devel`
    or `runtime`, `library` are further directories with recipes.
    """
    loader = _Loader(library)
    loaded: LoadedManifest | None = None
    try:
        loaded = loader.manifest(path, Given(sets), sources, bases)
    except ManifestError as error:
        loader.problems.add_error(error)
    loader.problems.raise_any()
    if loaded is None:
        raise ManifestError("cannot be loaded", place=display(path))
    return replace(loaded, files=tuple(loader.files))


Shape = TypeVar("Shape", bound=BaseModel)


@dataclass(slots=True)
class _Unit:
    """A document with its values put in, and what of it is valid."""

    document: Document
    path: Path
    tree: dict[str, Any]
    sources: dict[str, Source]
    compile: dict[str, CompileStep]
    layers: list[tuple[int, LayerEntry]]

    def names(self, key: str) -> list[str]:
        """Names below `key`, those of broken entries included."""
        value = self.tree.get(key)
        return list(value) if isinstance(value, dict) else []


@dataclass(slots=True)
class _Flat:
    """What flattening collects."""

    directories: tuple[Path, ...]
    scopes: dict[str, Scope] = field(default_factory=dict)
    layers: list[tuple[str, LayerEntry, str]] = field(default_factory=list)
    environments: list[Mapping[str, str]] = field(default_factory=list)
    instances: dict[tuple[Path, tuple[tuple[str, str | None], ...]], str] = field(default_factory=dict)
    first_compile: tuple[Document, Steps] | None = None


class _Loader:
    def __init__(self, library: Sequence[Path]) -> None:
        self.library = library
        self.problems = Problems()
        self.expander = Expander(self.problems)
        self.files: dict[Path, None] = {}
        self.documents: dict[Path, Document | None] = {}
        self.stack: list[Path] = []
        self.checked: set[tuple[Path, tuple[tuple[str, str], ...]]] = set()

    # -- files and values

    def document(self, path: Path) -> Document | None:
        """The parsed file, read once; None after noting why it is none."""
        key = path.resolve()
        if key not in self.documents:
            name = display(path)
            self.problems.open(name)
            self.files[path.absolute()] = None
            try:
                self.documents[key] = read_document(path, name)
            except ManifestError as error:
                self.documents[key] = None
                self.problems.add_error(error, name=name)
        return self.documents[key]

    def unit(
        self, model: type[Shape], document: Document, path: Path, values: Mapping[str, str | None], key: str
    ) -> tuple[_Unit, Shape | None]:
        """Expand and validate; when the whole is wrong, still keep the parts that are right."""
        other = "recipe" if model is Manifest else "manifest"
        if other in document.tree and model.__name__.lower() not in document.tree:
            fact = f"expected a {model.__name__.lower()}, got a {other}"
            self.problems.add(document, (other,), fact, of_key=True)
            return _Unit(document, path, {}, {}, {}, []), None
        if document.tree and not set(document.tree) & set(_keys_of(model)):
            kind = model.__name__.lower()
            self.problems.add(document, (), f"expected a {kind}, which has `{kind}: 1`; got other YAML")
            return _Unit(document, path, {}, {}, {}, []), None
        templates: Steps = ("image", "env") if model is Manifest else ("env",)
        tree = self.expander.tree(document.tree, values, document, skip=key, templates=templates)
        whole = validate(model, tree, document, self.problems)
        unit = _Unit(document, path, tree if isinstance(tree, dict) else {}, {}, {}, [])
        if isinstance(whole, Manifest | Recipe):
            unit.sources, unit.compile = dict(whole.sources), dict(whole.compile)
            unit.layers = list(enumerate(whole.layers))
            return unit, whole
        layers = unit.tree.get("layers")
        unit.sources = _valid(Source, unit.tree.get("sources"), document)
        unit.compile = _valid(CompileStep, unit.tree.get("compile"), document)
        if isinstance(layers, list):
            found = ((index, validate(LayerEntry, raw, document, Problems())) for index, raw in enumerate(layers))
            unit.layers = [(index, entry) for index, entry in found if entry is not None]
        return unit, whole

    # -- manifests

    def manifest(
        self,
        path: Path,
        given: Given,
        sources: Mapping[str, str],
        bases: Mapping[str, str],
    ) -> LoadedManifest | None:
        """Load one manifest, with recipes and bases; None after noting why that cannot be done."""
        document = self.document(path)
        if document is None:
            return None
        if len(self.stack) >= DEPTH_LIMIT:
            raise ManifestError(
                f"expected at most {DEPTH_LIMIT} manifests on each other, got more", place=document.name
            )
        self.stack.append(path.resolve())
        values = values_of(document, "args", given, self.expander)
        unit, manifest = self.unit(Manifest, document, path, values, "args")
        flat = _Flat(recipe_directories(path, self.library))
        self.flatten(unit, "", None, flat, ())
        override_source(sources, flat.scopes, self.problems)
        if manifest is not None:
            for role, text in bases.items():
                base = override_base(role, text, self.problems)
                manifest = manifest.model_copy(update={role: base}) if base else manifest
            if flat.first_compile and manifest.devel is None:
                self.problems.add(*flat.first_compile, "compiling needs a `devel` base, and the manifest has none")
        nested = self.nested(unit, manifest, bases)
        self.stack.pop()
        if manifest is None:
            return None
        env = overlay([*flat.environments, manifest.image.env])
        return LoadedManifest(
            path=path,
            manifest=manifest.model_copy(update={"image": manifest.image.model_copy(update={"env": env})}),
            layers=tuple(
                BoundLayer(scope=flat.scopes[scope], entry=entry, place=place)
                for scope, entry, place in flat.layers
            ),
            scopes=tuple(flat.scopes.values()),
            args={name: value for name, value in values.items() if value is not None},
            overrides=bool(given.values or sources or bases),
            files=(),
            bases=nested,
        )

    def nested(self, unit: _Unit, manifest: Manifest | None, bases: Mapping[str, str]) -> dict[str, Path]:
        """Check the bases that are manifests, by loading them; their files by role."""
        found: dict[str, Path] = {}
        for role in ("devel", "runtime"):
            base = (
                getattr(manifest, role)
                if manifest
                else validate(Base, unit.tree.get(role), unit.document, Problems())
            )
            if not isinstance(base, Base) or base.manifest is None:
                continue
            if role in bases and not (unit.path.parent / base.manifest).is_file():
                self.problems.add_error(ManifestError("no such file", place=f"--base {role}={bases[role]}"))
            elif path := self.base_manifest(unit, (role,), base):
                found[role] = path
        return found

    def base_manifest(self, unit: _Unit, at: Steps, base: Base) -> Path | None:
        """Check an image that is another manifest, by loading it; its file, None when there is none."""
        path = unit.path.parent / str(base.manifest)
        steps: Steps = (*at, "manifest")
        if not path.is_file():
            beside = [str(Path(str(base.manifest)).with_name(each.name)) for each in path.parent.glob("*.yaml")]
            hint = did_you_mean(str(base.manifest), [each for each in beside if each != unit.path.name])
            self.problems.add(unit.document, steps, f"no file `{base.manifest}`", hint=hint)
            return None
        if path.resolve() in self.stack:
            chain = [*self.stack[self.stack.index(path.resolve()) :], path.resolve()]
            shown = " → ".join(each.name for each in chain)
            self.problems.add(unit.document, steps, f"the manifest stands on itself: {shown}")
            return path
        key = (path.resolve(), tuple(sorted(base.with_.items())))
        if key not in self.checked:
            self.checked.add(key)
            self.manifest(path, Given(base.with_, unit.document, steps), _NONE, _NONE)
        return path

    # -- recipes

    def flatten(self, unit: _Unit, name: str, recipe: str | None, flat: _Flat, chain: tuple[str, ...]) -> None:
        """Enter a scope, check its names and append its layers."""
        flat.scopes[name] = Scope(
            name=name,
            directory=unit.path.absolute().parent,
            recipe=recipe,
            sources=unit.sources,
            compile=unit.compile,
            digest_place=unit.document.name,
        )
        for source_name, source in unit.sources.items():
            for index, patch in enumerate(source.patches):
                self.known_file(unit, ("sources", source_name, "patches", index), patch)
        for step_name, step in unit.compile.items():
            flat.first_compile = flat.first_compile or (unit.document, ("compile", step_name))
            self.known_source(unit, ("compile", step_name, "source"), step.source)
        for index, entry in unit.layers:
            steps: Steps = ("layers", index)
            if entry.uses is not None:
                self.use(unit, (*steps, "uses"), entry, flat, chain)
                continue
            self.known_names(unit, steps, entry)
            flat.layers.append((name, entry, unit.document.position(steps)))

    def use(self, unit: _Unit, steps: Steps, entry: LayerEntry, flat: _Flat, chain: tuple[str, ...]) -> None:
        """Replace a `uses` by the recipe's layers, unless the same instance is there already."""
        name = str(entry.uses)
        if self.problems.is_blamed(unit.document, steps):
            return
        if name in chain:
            shown = " → ".join([*chain[chain.index(name) :], name])
            self.problems.add(unit.document, steps, f"the recipe uses itself: {shown}")
            return
        path = find_recipe(name, flat.directories)
        if path is None:
            hint = did_you_mean(name, recipe_names(flat.directories))
            self.problems.add(unit.document, steps, f"no recipe `{name}`", hint=hint)
            return
        document = self.document(path)
        if document is None:
            return
        values = values_of(document, "inputs", Given(entry.with_, unit.document, steps), self.expander)
        instance = (path.resolve(), tuple(sorted(values.items())))
        if instance in flat.instances:
            return
        if len(flat.instances) >= SCOPE_LIMIT or len(chain) >= DEPTH_LIMIT:
            fact = f"expected at most {SCOPE_LIMIT} recipes, {DEPTH_LIMIT} within each other, got more"
            raise ManifestError(fact, place=unit.document.name)
        names = (name, *(f"{name}-{number}" for number in range(2, SCOPE_LIMIT + 2)))
        scope_name = next(each for each in names if each not in flat.scopes)
        flat.instances[instance] = scope_name
        inner, recipe = self.unit(Recipe, document, path, values, "inputs")
        self.flatten(inner, scope_name, name, flat, (*chain, name))
        if recipe is not None:
            flat.environments.append(recipe.env)

    def known_names(self, unit: _Unit, steps: Steps, entry: LayerEntry) -> None:
        """Check what a layer refers to: artifacts, sources, files beside the YAML file."""
        if entry.copy_ is not None and entry.copy_.artifact is not None:
            self.known_artifact(unit, (*steps, "copy", "artifact"), entry.copy_.artifact)
        if entry.copy_ is not None and entry.copy_.source is not None:
            self.known_source(unit, (*steps, "copy", "source"), entry.copy_.source)
        if entry.copy_ is not None and entry.copy_.image is not None and entry.copy_.image.manifest:
            self.base_manifest(unit, (*steps, "copy", "image"), entry.copy_.image)
        if wheels := entry.wheels:
            for name, kind in (("file", "file"), ("wheelhouse", "directory")):
                if text := getattr(wheels, name):
                    self.known_file(unit, (*steps, "wheels", name), text, kind)
            if wheels.artifact is not None:
                self.known_artifact(unit, (*steps, "wheels", "artifact"), wheels.artifact)
        for index, file in enumerate(entry.files):
            if file.from_file is not None:
                self.known_file(unit, (*steps, "files", index, "from-file"), file.from_file)

    def known_file(self, unit: _Unit, steps: Steps, text: str, kind: str = "file") -> None:
        path, is_there = unit.path.absolute().parent / text, Path.is_file if kind == "file" else Path.is_dir
        if is_there(path):
            self.files |= {path: None} if kind == "file" else {}
        elif not self.problems.is_blamed(unit.document, steps):
            hint = did_you_mean(path.name, [each.name for each in path.parent.glob("*") if is_there(each)])
            self.problems.add(unit.document, steps, f"no {kind} `{text}`", hint=hint)

    def known_source(self, unit: _Unit, steps: Steps, name: str) -> None:
        names = unit.names("sources")
        if name not in names and not self.problems.is_blamed(unit.document, steps):
            hint = alternatives(name, names, title="sources here", none="this file has no `sources`")
            self.problems.add(unit.document, steps, f"no source `{name}`", hint=hint)

    def known_artifact(self, unit: _Unit, steps: Steps, text: str) -> None:
        if self.problems.is_blamed(unit.document, steps):
            return
        artifacts: list[str] = []
        compile_tree = unit.tree.get("compile")
        broken = set()
        for step, raw in compile_tree.items() if isinstance(compile_tree, dict) else ():
            harvested = raw.get("artifacts") if isinstance(raw, dict) else None
            if isinstance(harvested, dict):
                artifacts += [f"{step}.{each}" for each in harvested]
            else:
                broken.add(step)
        if text not in artifacts and text.partition(".")[0] not in broken:
            hint = alternatives(text, artifacts, title="artifacts here", none="this file compiles nothing")
            self.problems.add(unit.document, steps, f"no artifact `{text}`", hint=hint)


def _keys_of(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _valid(model: type[Shape], tree: Any, document: Document) -> dict[str, Shape]:
    """The entries of a mapping that are valid; the errors of the others were noted with the whole."""
    if not isinstance(tree, dict):
        return {}
    found = ((name, validate(model, raw, document, Problems())) for name, raw in tree.items())
    return {name: shape for name, shape in found if shape is not None}
