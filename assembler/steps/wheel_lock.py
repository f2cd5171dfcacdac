"""The lock of one Python environment: what it is asked for, and the answer, asked of uv when the lock has none.

The request says everything that the answer depends on and that can be known without reading the base or compiling
anything; so a lock is checked without either. What a base has that is not made of packages which we know is read
once, when its environment is locked, and kept in the answer; so is what the wheels of compile steps require.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assembler.build.python_base import PythonBase, from_packages, read_layers
from assembler.build.python_index import normalised
from assembler.build.requirement_files import requirement_files
from assembler.build.wheel_tags import Target, machine_of
from assembler.build.wheelhouse import HouseWheel, fitting
from assembler.errors import LockError, ManifestError
from assembler.events import Note
from assembler.manifest.environments import PythonEnvironment
from assembler.manifest.wheels import LockedWheel
from assembler.steps.bases import known_packages
from assembler.steps.wheelhouses import built_wheels, directory_wheels
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.steps.assembly import Assembly


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedEnvironment:
    """What an environment consists of. `built` says, by artifact, what wheels of compile steps said of themselves
    when it was locked; those wheels are not among `wheels`.
    """

    target: Target
    interpreter: str
    wheels: tuple[LockedWheel, ...]
    built: Mapping[str, Any]


class EnvironmentLock:
    """The lock of one environment on one platform."""

    def __init__(self, assembly: Assembly, environment: PythonEnvironment) -> None:
        self._assembly = assembly
        self._environment = environment
        self.name = assembly.locking.name_on(environment.prefix, assembly.platform)

    def answer(self, *, lock: bool) -> LockedEnvironment | None:
        """The locked environment. Without `lock`, None when it would have to be resolved."""
        assembly = self._assembly
        request = self._request()
        if request is None:
            if lock:
                raise LockError("the packages of the base are not locked", place=self._environment.place)
            return None
        old = self._old()
        names = {normalised(each): each for each in assembly.session.options.update}
        upgrade = [wheel.name for wheel in old if wheel.name in names]
        if lock:
            found: Mapping[str, Any] | None = assembly.locking.answer(
                "wheels", self.name, request, lambda: self._resolve(upgrade), renewed=bool(upgrade)
            )
        else:
            found = assembly.locking.peek("wheels", self.name, request, renewed=bool(upgrade))
        return None if found is None else self._read(found)

    def _read(self, found: Mapping[str, Any]) -> LockedEnvironment:
        try:
            target = Target(
                python=str(found["python"]), machine=machine_of(self._assembly.platform), glibc=str(found["glibc"])
            )
            return LockedEnvironment(
                target=target,
                interpreter=str(found["interpreter"]),
                wheels=tuple(LockedWheel.from_json(each) for each in found["wheels"]),
                built=found.get("built") or {},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LockError(
                f"the lock of `{self.name}` is damaged: {error}",
                place=str(self._assembly.locking.path),
                hint="`assemble lock --update`",
            ) from error

    def _old(self) -> tuple[LockedWheel, ...]:
        """The wheels of an older answer, whatever it was asked for."""
        found = self._assembly.locking.old("wheels", self.name)
        try:
            return tuple(LockedWheel.from_json(each) for each in (found or {}).get("wheels", ()))
        except LockError:
            return ()

    # the request

    @cached_property
    def house(self) -> tuple[HouseWheel, ...]:
        """The wheels of the wheelhouses, whatever base they are for."""
        return tuple(
            wheel
            for path in self._environment.wheelhouses
            for wheel in directory_wheels(self._assembly.session.store, path, self._environment.place)
        )

    @property
    def files(self) -> Iterator[Path]:
        """Every file that was read: requirements files with what they include, and locks of other tools."""
        for path in self._environment.files:
            yield from (file.path for file in requirement_files(path))
        if self._environment.lock_file:
            yield self._environment.lock_file

    def _request(self) -> dict[str, Any] | None:
        """What is asked for; None while the packages of the base are not known."""
        environment, assembly = self._environment, self._assembly
        base = self._known_base()
        if base is None:
            return None
        python, glibc = self._python(base), environment.glibc or base.glibc
        said = {
            "requirements": list(environment.requirements),
            "files": {os.path.relpath(path, environment.directory): _hash(path) for path in self.files},
            "wheelhouse": {wheel.filename: wheel.digest.hex for wheel in self.house},
            "artifacts": [house.label for house in environment.houses],
            "constraints": list(environment.constraints),
            "overrides": list(environment.overrides),
            "exclude": sorted(normalised(each) for each in environment.exclude),
            "extras": list(environment.extras),
            "groups": list(environment.groups),
            "index": environment.index,
            "extra-index": list(environment.extra_index),
            "index-strategy": environment.index_strategy,
            "interpreter": environment.interpreter,
        }
        request: dict[str, Any] = {"platform": str(assembly.platform)}
        request |= {name: value for name, value in said.items() if value}
        if not environment.dependencies:
            request["dependencies"] = False
        request |= {name: value for name, value in (("python", python), ("glibc", glibc)) if value}
        if not (python and glibc):
            if assembly.runtime.identity is None:
                return None
            request["base"] = assembly.runtime.identity
        return request

    def _known_base(self) -> PythonBase | None:
        """What the base has by its packages, as far as they are known; None while some are not locked."""
        packages = known_packages(self._assembly)
        return None if packages is None else from_packages(packages)

    def _python(self, base: PythonBase) -> str | None:
        """The full version of the base's Python, or as much of it as is known."""
        environment = self._environment
        wanted = (
            environment.python or base.default or (next(iter(base.pythons)) if len(base.pythons) == 1 else None)
        )
        if wanted is None:
            return None
        minor = ".".join(wanted.split(".")[:2])
        return wanted if wanted.count(".") == 2 else base.pythons.get(minor, wanted)

    # the answer

    def _resolve(self, upgrade: list[str]) -> Mapping[str, Any]:
        assembly = self._assembly
        title = f"wheels {self._environment.prefix}"
        built = {house.label: built_wheels(assembly, house) for house in self._environment.houses}
        with assembly.session.step(f"lock:{self.name}", "lock", title) as report:
            target, interpreter = self._target()
            made = [wheel for wheels in built.values() for wheel in wheels]
            house = fitting([*self.house, *made], target, self._environment.place)
            names = {wheel.name for wheel in made}
            wheels = [each for each in self._wheels(target, house, upgrade) if each.name not in names]
            report.outcome = "ok"
            report.detail = f"{len(wheels)} wheels, {size_text(sum(wheel.size for wheel in wheels))}"
        answer: dict[str, Any] = {
            "python": target.python,
            "glibc": target.glibc,
            "interpreter": interpreter,
            "wheels": [wheel.to_json() for wheel in wheels],
        }
        if built:
            answer["built"] = {label: [wheel.said() for wheel in wheels] for label, wheels in built.items()}
        return answer

    def _target(self) -> tuple[Target, str]:
        """What the wheels must fit, and the base's interpreter; the base's layers are read where it must be."""
        environment, assembly = self._environment, self._assembly
        base = self._known_base() or PythonBase()
        python, glibc = self._python(base), environment.glibc or base.glibc
        complete = assembly.runtime.packages() is not None
        if not complete and not (python and glibc):
            read = self._read_base(glibc=glibc is None, python=python is None)
            glibc = glibc or read.glibc
            pythons = {**read.pythons, **base.pythons}
            base = replace(base, pythons=pythons, interpreters=read.interpreters, musl=read.musl)
            python = self._python(base)
        self._check(base, python, glibc, complete=complete)
        target = Target(python=str(python), machine=machine_of(assembly.platform), glibc=str(glibc))
        known = base.interpreters.get(target.minor)
        return target, environment.interpreter or known or f"/usr/bin/python{target.minor}"

    def _check(self, base: PythonBase, python: str | None, glibc: str | None, *, complete: bool) -> None:
        """Is everything known, and is the Python there? ManifestError when not."""
        environment = self._environment
        found = ", ".join(sorted(base.pythons)) or "none"
        minor = ".".join((python or "").split(".")[:2])
        if python is None:
            several = len(base.pythons) > 1
            where = "add it with `packages: {apt: [python3]}`, or say with `python` and `interpreter` where it is"
            raise ManifestError(
                f"the base has several Pythons: {found}" if several else "the base has no Python",
                place=environment.place,
                hint='say which with `python: "3.11"`' if several else where,
            )
        if complete and minor not in base.pythons and environment.interpreter is None:
            raise ManifestError(
                f"expected Python {minor} in the base, found {found}",
                place=environment.place,
                hint=f"add `python{minor}` to its packages, or say with `interpreter` where it is",
            )
        if glibc is None:
            raise ManifestError(
                "the base has musl as its C library; wheels are locked for glibc"
                if base.musl
                else "the version of the base's C library is not known",
                place=environment.place,
                hint=None if base.musl else 'say it: `glibc: "2.36"`',
            )

    def _read_base(self, *, glibc: bool, python: bool) -> PythonBase:
        from assembler.steps.materialise import layer_paths

        session = self._assembly.session
        what = "C library and Python" if glibc and python else "C library" if glibc else "Python"
        session.emit(Note(text=f"reading the base's layers to learn its {what}, which the manifest does not say"))
        return read_layers(layer_paths(session, self._assembly.runtime.image()), glibc=glibc, python=python)

    def _wheels(
        self, target: Target, house: tuple[HouseWheel, ...], upgrade: list[str]
    ) -> tuple[LockedWheel, ...]:
        from assembler.build.uv import Question
        from assembler.build.wheel_lock import Workroom, lock_wheels

        environment, session = self._environment, self._assembly.session
        old = self._old()
        renewed = session.options.update & {"*", "wheels", self.name, environment.prefix}
        question = Question(
            directory=environment.directory,
            target=target,
            requirements=environment.requirements,
            files=environment.files,
            constraints=environment.constraints,
            overrides=environment.overrides,
            exclude=environment.exclude,
            index=environment.index,
            extra_index=environment.extra_index,
            index_strategy=environment.index_strategy,
            dependencies=environment.dependencies,
            preferences=() if renewed else [(wheel.name, wheel.version) for wheel in old],
            upgrade=upgrade,
            place=environment.place,
        )
        room = Workroom(
            scratch=session.run.scratch("wheels"),
            cache=session.options.cache / "uv",
            store=session.store,
            warn=lambda text: session.emit(Note(text=text, level="warning")),
        )
        return lock_wheels(
            question,
            room,
            lock_file=environment.lock_file,
            extras=environment.extras,
            groups=environment.groups,
            house=house,
            old=old,
        )


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ManifestError(f"`{path.name}` cannot be read: {error.strerror}", place=str(path)) from error
