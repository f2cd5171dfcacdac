"""Python environments: the `wheels` entries of a manifest and its recipes, joined by where they go.

A recipe may add to the environment that the manifest makes, so entries with the same `into` are resolved together:
two resolutions could choose two versions of one project, and the upper layer would win over half of the lower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from assembler.errors import ManifestError
from assembler.manifest.loaded import BoundLayer, LoadedManifest
from assembler.manifest.python import Wheels

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """Wheels that a compile step makes: its scope and step, the artifact, and the layer that ships them."""

    index: int
    layer: BoundLayer
    artifact: str

    @property
    def label(self) -> str:
        """`scope.step.artifact`, unique in a manifest."""
        return f"{self.layer.scope.name}.{self.artifact}" if self.layer.scope.name else self.artifact

    @property
    def step(self) -> str:
        """The compile step's name in its scope."""
        return self.artifact.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonEnvironment:
    """One environment. `first` is the number of the layer where it begins, `directory` where uv is run.

    Everything that entries list is joined in their order; what has one value is what those say that say it.
    """

    prefix: str
    first: int
    place: str
    directory: Path
    python: str | None
    interpreter: str | None
    glibc: str | None
    requirements: tuple[str, ...]
    files: tuple[Path, ...]
    lock_file: Path | None
    wheelhouses: tuple[Path, ...]
    houses: tuple[House, ...]
    index: str | None
    extra_index: tuple[str, ...]
    index_strategy: str | None
    constraints: tuple[str, ...]
    overrides: tuple[str, ...]
    exclude: tuple[str, ...]
    extras: tuple[str, ...]
    groups: tuple[str, ...]
    dependencies: bool
    split_bytes: int | None
    bytecode: bool

    @property
    def indexes(self) -> tuple[str, ...]:
        """The indexes that the manifest names, in the order in which they are asked."""
        return (*self.extra_index, *([self.index] if self.index else []))


@dataclass(frozen=True, slots=True)
class _Part:
    """One entry, and where it stands."""

    index: int
    layer: BoundLayer
    wheels: Wheels


def python_environments(loaded: LoadedManifest) -> tuple[PythonEnvironment, ...]:
    """The environments in the order in which they begin; ManifestError where entries of one contradict."""
    found: dict[str, list[_Part]] = {}
    for index, layer in enumerate(loaded.layers):
        if layer.entry.wheels is not None:
            part = _Part(index, layer, layer.entry.wheels)
            found.setdefault(part.wheels.prefix, []).append(part)
    return tuple(_join(prefix, parts) for prefix, parts in found.items())


def _join(prefix: str, parts: list[_Part]) -> PythonEnvironment:
    locks = [part for part in parts if part.wheels.locks_itself]
    open_ended = [part for part in parts if part.wheels.requirements or (part.wheels.file and part not in locks)]
    if len(locks) > 1 or (locks and open_ended):
        other = (open_ended or locks[1:])[0]
        raise ManifestError(
            f"`{locks[0].wheels.file}`, at {locks[0].layer.place}, says everything that goes into `{prefix}`",
            place=other.layer.place,
            hint="add it where that file is made, or use another `into`",
        )
    # What is laid as it is has no word in whether dependencies are wanted.
    resolved = open_ended or parts
    first = parts[0]
    return PythonEnvironment(
        prefix=prefix,
        first=first.index,
        place=first.layer.place,
        directory=first.layer.scope.directory,
        python=_python(parts),
        interpreter=_agreed(parts, "interpreter", lambda each: each.interpreter),
        glibc=_agreed(parts, "glibc", lambda each: each.glibc),
        requirements=_joined(part.wheels.requirements for part in parts),
        files=tuple(
            part.layer.scope.directory / part.wheels.file
            for part in parts
            if part.wheels.file and not part.wheels.locks_itself
        ),
        lock_file=locks[0].layer.scope.directory / str(locks[0].wheels.file) if locks else None,
        wheelhouses=_joined(
            [part.layer.scope.directory / part.wheels.wheelhouse] for part in parts if part.wheels.wheelhouse
        ),
        houses=tuple(
            House(index=part.index, layer=part.layer, artifact=part.wheels.artifact)
            for part in parts
            if part.wheels.artifact
        ),
        index=_agreed(parts, "index", lambda each: each.index),
        extra_index=_joined(part.wheels.extra_index for part in parts),
        index_strategy=_agreed(parts, "index-strategy", lambda each: each.index_strategy),
        constraints=_joined(part.wheels.constraints for part in parts),
        overrides=_joined(part.wheels.overrides for part in parts),
        exclude=_joined(part.wheels.exclude for part in parts),
        extras=_joined(part.wheels.extras for part in parts),
        groups=_joined(part.wheels.groups for part in parts),
        dependencies=bool(_agreed(resolved, "dependencies", lambda each: each.dependencies)),
        split_bytes=_agreed(parts, "split", lambda each: each.split_bytes),
        bytecode=any(part.wheels.bytecode for part in parts),
    )


def _joined(lists: Iterable[Iterable[T]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(each for some in lists for each in some))


def _agreed(parts: list[_Part], name: str, value_of: Callable[[Wheels], T | None]) -> T | None:
    """The value of those entries that say one; ManifestError when they say two."""
    said: tuple[T, str] | None = None
    for part in parts:
        value = value_of(part.wheels)
        if value is None:
            continue
        if said is not None and value != said[0]:
            raise ManifestError(
                f"`{name}` is `{_shown(value)}` here and `{_shown(said[0])}` at {said[1]}; "
                f"both are for `{part.wheels.prefix}`",
                place=part.layer.place,
            )
        said = said or (value, part.layer.place)
    return None if said is None else said[0]


def _python(parts: list[_Part]) -> str | None:
    """The version that entries agree on: `3.11` and `3.11.2` do, and the longer one says more."""
    versions = sorted((part.wheels.python for part in parts if part.wheels.python), key=len)
    if versions and all(_begins(versions[-1], each) for each in versions):
        return versions[-1]
    return _agreed(parts, "python", lambda each: each.python)


def _begins(long: str, short: str) -> bool:
    return long == short or long.startswith(f"{short}.")


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
