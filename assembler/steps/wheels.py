"""`wheels` layers: from locked environments to the layers of the image, and the wheels that they are made of.

An environment becomes many layers, planned one by one: a layer that is known by its key is made of nothing, so its
wheels are neither read nor downloaded. What must be downloaded is on its way while the first layers are packed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from assembler.errors import LockError, ManifestError
from assembler.events import Note, StepFinished, StepStarted
from assembler.manifest.environments import House, PythonEnvironment, python_environments
from assembler.manifest.wheels import LockedWheel
from assembler.pack.wheel_environment import Environment, environment_of
from assembler.pack.wheel_groups import THRESHOLD, WheelGroup, layer_plan
from assembler.plan.graph import Plan, Step, WheelFact
from assembler.plan.names import compile_id, wheel_layer_id
from assembler.steps.wheel_lock import EnvironmentLock, LockedEnvironment
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.build.fetching import Fetching
    from assembler.build.wheel_files import WheelPlaces
    from assembler.pack.wheel_collisions import Collisions
    from assembler.steps.assembly import Assembly
    from assembler.tree.entry import Entry

LAYER_LIMIT: Final = 100
"""Layers in an image: overlay file systems and some registries end at 127 or so, and others may stack on ours."""
_THREADS: Final = 8
_COLLISIONS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What is packed by one step: the wheels of a group, or those that a compile step makes."""

    python: PythonEnvironment
    locked: LockedEnvironment
    environment: Environment
    group: WheelGroup
    house: House | None = None


class WheelLayers:
    """The Python environments of one assembly."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._places: dict[str, _Place] = {}
        self._fetching: Fetching | None = None
        self._seen: dict[str, Collisions] = {}

    @cached_property
    def environments(self) -> tuple[tuple[PythonEnvironment, EnvironmentLock], ...]:
        """Each environment with its lock."""
        found = python_environments(self._assembly.loaded)
        return tuple((environment, EnvironmentLock(self._assembly, environment)) for environment in found)

    @property
    def files(self) -> Iterator[Path]:
        """The files of this host that environments were locked from."""
        for _, lock in self.environments:
            yield from lock.files

    @property
    def wheelhouses(self) -> Iterator[Path]:
        """The directories whose wheels went in."""
        for environment, _ in self.environments:
            yield from environment.wheelhouses

    def lock(self) -> None:
        """Make the lock of every environment complete."""
        for _, lock in self.environments:
            lock.answer(lock=True)

    # the plan

    def facts(self) -> dict[int, tuple[WheelFact, ...] | None]:
        """What each `wheels` entry becomes, by the number of its layer; None while that is not locked."""
        found: dict[int, tuple[WheelFact, ...] | None] = {}
        if not self.environments:
            return found
        room = self._room()
        for python, lock in self.environments:
            locked = lock.answer(lock=False)
            entries = [
                index
                for index, layer in enumerate(self._assembly.loaded.layers)
                if layer.entry.wheels and layer.entry.wheels.prefix == python.prefix
            ]
            if locked is None:
                found |= dict.fromkeys(entries)
            else:
                facts = self._environment_facts(python, locked, room)
                found |= {index: tuple(facts.get(index, ())) for index in entries}
        return found

    def _room(self) -> int:
        """How many layers an environment may have."""
        layers = self._assembly.loaded.layers
        houses = sum(len(python.houses) for python, _ in self.environments)
        others = sum(layer.entry.wheels is None for layer in layers)
        return (LAYER_LIMIT - self._assembly.runtime.depth() - others - houses) // len(self.environments)

    def _environment_facts(
        self, python: PythonEnvironment, locked: LockedEnvironment, room: int
    ) -> dict[int, list[WheelFact]]:
        from assembler.pack.wheel_layer import group_facts

        environment = self._environment(python, locked)
        threshold = THRESHOLD if python.split_bytes is None else python.split_bytes
        found: dict[int, list[WheelFact]] = {python.first: []}
        try:
            groups = layer_plan(locked.wheels, environment, threshold=threshold, available_layers=room)
        except ManifestError as error:
            raise ManifestError(error.fact, place=python.place, hint=error.hint) from error
        for group in groups:
            place = _Place(python=python, locked=locked, environment=environment, group=group)
            self._places[wheel_layer_id(python.first, group.name)] = place
            missing = [wheel for wheel in group.wheels if not self._is_here(wheel)]
            found[python.first].append(
                WheelFact(
                    name=group.name,
                    title=_title(group),
                    facts=group_facts(group, environment),
                    detail=_detail(group),
                    bytes_download=sum(wheel.size for wheel in missing),
                )
            )
        for house in python.houses:
            name = house.label
            group = WheelGroup(name=name, wheels=())
            place = _Place(python=python, locked=locked, environment=environment, group=group, house=house)
            self._places[wheel_layer_id(house.index, name)] = place
            facts = {**group_facts(group, environment), "built": house.artifact.partition(".")[2]}
            needs = (compile_id(house.layer.scope, house.step),)
            found.setdefault(house.index, []).append(
                WheelFact(name=name, title=name, facts=facts, needs=needs, detail=f"from `{house.step}`")
            )
        return found

    def _environment(self, python: PythonEnvironment, locked: LockedEnvironment) -> Environment:
        try:
            return environment_of(python.prefix, locked.target.minor, locked.interpreter, bytecode=python.bytecode)
        except ValueError as error:
            raise ManifestError(str(error), place=python.place) from error

    # the work

    def is_of_locked_wheels(self, step: Step) -> bool:
        """Does the step need nothing but wheels that the lock names: no compile step, no container?"""
        place = self._places.get(step.id)
        return place is not None and place.house is None

    def entries(self, step: Step) -> tuple[Entry, ...]:
        """The tree of the layer that a step of the plan makes."""
        from assembler.pack.wheel_collisions import Collisions
        from assembler.pack.wheel_layer import group_entries

        place = self._places[step.id]
        group = place.group
        if place.house is not None:
            group = WheelGroup(name=group.name, wheels=self._built(place, place.house))
        seen = self._seen.setdefault(place.python.prefix, Collisions())
        return group_entries(group, place.environment, self._open, self._assembly.session.store, seen)

    def _built(self, place: _Place, house: House) -> tuple[LockedWheel, ...]:
        """The wheels of a compile step, which must ask for what they asked for when the lock was made."""
        from assembler.build.wheelhouse import fitting
        from assembler.steps.wheelhouses import built_wheels

        wheels = fitting(built_wheels(self._assembly, house), place.locked.target, house.layer.place)
        said = [wheel.said() for wheel in wheels]
        before = place.locked.built.get(house.label)
        if said != before:
            raise LockError(
                f"the wheels of `{house.artifact}` ask for something else than when they were locked",
                place=house.layer.place,
                hint=f"`assemble lock --update {place.python.prefix}`",
                detail=_changes(before or [], said),
            )
        return tuple(wheel.locked for wheel in wheels)

    def _is_here(self, wheel: LockedWheel) -> bool:
        """Is the file on this host, by all that can be known without reading it?"""
        if self._assembly.session.store.has(wheel.digest):
            return True
        return any(path.is_file() and path.stat().st_size == wheel.size for path in self._local_paths(wheel))

    def _local_paths(self, wheel: LockedWheel) -> Iterator[Path]:
        for directory in self._directories:
            yield directory / wheel.filename

    @cached_property
    def _directories(self) -> tuple[Path, ...]:
        """The directories of this host in which wheels may lie."""
        from assembler.build.index_settings import read_settings

        return (*self.wheelhouses, *read_settings().local_directories())

    def _open(self, wheel: LockedWheel) -> Path:
        """The file of a wheel, when it is there. One that lies in a directory of this host is used where it is."""
        from assembler.steps.wheelhouses import wheel_of_file

        store = self._assembly.session.store
        if store.has(wheel.digest):
            return store.blob_path(wheel.digest)
        for path in self._local_paths(wheel):
            if path.is_file() and wheel_of_file(store, path).digest == wheel.digest:
                return path
        if self._fetching is None or not self._fetching.knows(wheel.digest):
            with self._started([wheel]) as fetching:
                return fetching.wait(wheel.digest)
        return self._fetching.wait(wheel.digest)

    @contextlib.contextmanager
    def fetching(self, plan: Plan) -> Iterator[None]:
        """In this block the wheels that the plan's work needs are on their way, in the order of its steps."""
        places = [self._places[step.id] for step in plan.work if step.id in self._places]
        wanted = {wheel.sha256: wheel for place in places for wheel in place.group.wheels}
        missing = [wheel for wheel in wanted.values() if not self._is_here(wheel)]
        if missing:
            with self._started(missing) as fetching:
                self._fetching = fetching
                try:
                    yield
                finally:
                    self._fetching = None
        else:
            yield
        self._tell_collisions()

    def _tell_collisions(self) -> None:
        """Warn of files that several of the wheels have that were packed."""
        for seen in self._seen.values():
            for collision in seen.found[:_COLLISIONS]:
                self._assembly.session.emit(Note(text=str(collision), level="warning"))
            if more := len(seen.found[_COLLISIONS:]):
                self._assembly.session.emit(Note(text=f"and {more} more such files", level="warning"))
        self._seen.clear()

    @contextlib.contextmanager
    def _started(self, wheels: Sequence[LockedWheel]) -> Iterator[Fetching]:
        from assembler.build.fetching import Fetching

        session = self._assembly.session
        total = sum(wheel.size for wheel in wheels)
        if session.options.offline:
            raise LockError(
                f"{_count(wheels)} not in the store, and `--offline` forbids to fetch",
                detail=[wheel.label for wheel in wheels],
            )
        started = time.monotonic()
        step = {"step": "fetch:wheels", "verb": "fetch", "name": f"{len(wheels)} wheels"}
        session.emit(StepStarted(**step))

        def done() -> None:
            seconds = time.monotonic() - started
            session.emit(StepFinished(**step, outcome="pulled", seconds=seconds, detail=size_text(total)))

        places = self._wheel_places()
        with contextlib.closing(places):
            items = [places.item(wheel) for wheel in wheels]
            with Fetching(
                items, session.store, session.emit, noun="wheel", step=step["step"], threads=_THREADS, done=done
            ) as fetching:
                yield fetching

    def _wheel_places(self) -> WheelPlaces:
        from assembler.build.index_settings import read_settings
        from assembler.build.wheel_files import WheelPlaces

        indexes = [url for python, _ in self.environments for url in python.indexes]
        return WheelPlaces(read_settings(), indexes=indexes, directories=list(self.wheelhouses))


def _title(group: WheelGroup) -> str:
    """What the layer holds, for people: a table, the image's history."""
    names = [wheel.label for wheel in group.wheels[:3]] or [group.name]
    more = len(group.wheels) - 3
    return " ".join(names) + (f" and {more} more" if more > 0 else "")


def _detail(group: WheelGroup) -> str:
    if not group.wheels:
        return "the environment itself"
    size = size_text(sum(wheel.size for wheel in group.wheels))
    return size if len(group.wheels) == 1 else f"{len(group.wheels)} wheels, {size}"


def _count(wheels: Sequence[LockedWheel]) -> str:
    return "1 wheel is" if len(wheels) == 1 else f"{len(wheels)} wheels are"


def _changes(before: Sequence[Any], after: Sequence[Any]) -> list[str]:
    """What wheels require now and did not before, and the other way round."""
    old = {(each["name"], text) for each in before for text in ("", *each["requires"])}
    new = {(each["name"], text) for each in after for text in ("", *each["requires"])}
    lines = [f"no more: {name} {text}".rstrip() for name, text in sorted(old - new)]
    return lines + [f"new: {name} {text}".rstrip() for name, text in sorted(new - old)]
