"""Answering from the lock, and asking the world when the lock does not know.

The lock beside the manifest is read first; with overrides on the command line, or where its directory cannot be
written, answers go to a lock in the cache, so that an experiment never rewrites what is committed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assembler.errors import LockError, RequestError
from assembler.manifest.loaded import LoadedManifest
from assembler.manifest.lock import KINDS, Kind, Lock, LockEntry, lock_path, read_lock, write_lock
from assembler.manifest.problems import alternatives
from assembler.oci.platform import Platform
from assembler.steps.session import Options

if TYPE_CHECKING:
    from assembler.steps.session import Session

_USUAL_PLATFORM = "linux/amd64"
_HINT_LOCKED = "run `assemble lock` and commit the lock, or leave `--locked` out"


class Locking:
    """The lock of one manifest during a run. `save` writes it when something new was answered."""

    def __init__(self, loaded: LoadedManifest, options: Options) -> None:
        self._options = options
        self._beside = lock_path(loaded.path)
        self._name = loaded.manifest.name
        self._platform = next(iter(loaded.manifest.platforms), _USUAL_PLATFORM)
        self._private = options.cache / "locks" / (_fingerprint(loaded) + ".lock.yaml")
        self._changed = False
        beside_writable = os.access(self._beside.parent, os.W_OK) and not loaded.overrides
        self._target = self._beside if beside_writable else self._private
        self._lock = self._read(self._beside)
        self._extra = self._read(self._private)
        with contextlib.suppress(OSError):
            os.utime(self._private)  # what is used is not old: nobody else has what this lock pins
        self._used: list[LockEntry] = []
        self._complete = True

    def _read(self, path: Path) -> Lock:
        """The lock in a file; one that is damaged is none where everything is to be resolved again anyway."""
        try:
            return read_lock(path)
        except LockError:
            if "*" not in self._options.update:
                raise
            self._changed = True
            return Lock()

    @property
    def names(self) -> frozenset[str]:
        """What can be renewed: all entries, those included that nothing asks for, and the wheels in them."""
        entries = [*self._lock.entries, *self._extra.entries, *self._used]
        wheels = [each for entry in entries if entry.kind == "wheels" for each in _wheel_names(entry)]
        return frozenset([*(name for entry in entries for name in _names(entry.name)), *wheels])

    @property
    def path(self) -> Path:
        """Where `save` writes."""
        return self._target

    @property
    def files(self) -> tuple[Path, ...]:
        """The lock files that were read."""
        return tuple(path for path in (self._beside, self._private) if path.exists())

    def name_on(self, name: str, platform: Platform) -> str:
        """The name of an entry whose answer depends on the platform, which all but the manifest's first add."""
        return name if str(platform) == self._platform else f"{name} {platform}"

    def peek(
        self, kind: Kind, name: str, request: Mapping[str, Any], *, renewed: bool = False
    ) -> Mapping[str, Any] | None:
        """The locked answer, or None when there is none for this request or it is to be renewed.

        `renewed` says that something in it is to be, by a name that only the caller knows.
        """
        if (renewed or self._options.update & {"*", kind, *_names(name)}) and not self._fresh(kind, name):
            return None
        for lock in (self._lock, self._extra):
            found = lock.answer(kind, name, request)
            if found is not None:
                self._note(LockEntry(kind=kind, name=name, request=dict(request), answer=dict(found)))
                return found
        self._complete = False
        return None

    def old(self, kind: Kind, name: str) -> Mapping[str, Any] | None:
        """The answer to whatever was asked for last, for who changes no more than must change."""
        found = self._extra.entry(kind, name) if self._target != self._beside else None
        found = found or self._lock.entry(kind, name)
        return found.answer if found else None

    def answer(
        self,
        kind: Kind,
        name: str,
        request: Mapping[str, Any],
        resolve: Callable[[], Mapping[str, Any]],
        *,
        renewed: bool = False,
    ) -> Mapping[str, Any]:
        """The locked answer, or what `resolve` finds now; LockError where asking is forbidden."""
        found = self.peek(kind, name, request, renewed=renewed)
        if found is not None:
            return found
        place = str(self._beside)
        if self._options.locked:
            known = any(entry.kind == kind and entry.name == name for entry in self._lock.entries)
            state = "answers another request" if known else "has no answer"
            raise LockError(f"the lock {state} for {kind} `{name}`", place=place, hint=_HINT_LOCKED)
        if self._options.offline:
            raise LockError(f"{kind} `{name}` is not locked, and `--offline` forbids to resolve it", place=place)
        resolved = dict(resolve())
        entry = LockEntry(kind=kind, name=name, request=dict(request), answer=resolved)
        self._note(entry)
        if self._target == self._beside:
            self._lock = self._lock.with_entry(entry)
        else:
            self._extra = self._extra.with_entry(entry)
        self._changed = True
        self.save()
        return resolved

    def save(self, *, prune: bool = False) -> bool:
        """Write what was answered; with `prune`, drop entries that nothing asked for. False when unchanged."""
        own = self._lock if self._target == self._beside else self._extra
        if prune and self._target == self._beside:
            kept = own.keeping(self._used)
            self._changed |= kept != own
            own = self._lock = kept
        if not self._changed:
            return False
        self._target.parent.mkdir(parents=True, exist_ok=True)
        write_lock(self._target, own)
        self._changed = False
        return True

    def _fresh(self, kind: str, name: str) -> bool:
        """Was this entry answered in this run already?"""
        return any(entry.kind == kind and entry.name == name for entry in self._used)

    def _note(self, entry: LockEntry) -> None:
        self._used.append(entry)


def _names(name: str) -> tuple[str, ...]:
    """What `--update` may call an entry: its name, and that without the platform."""
    return name, name.partition(" ")[0]


def _wheel_names(entry: LockEntry) -> list[str]:
    wheels = entry.answer.get("wheels")
    return [str(each["name"]) for each in wheels if isinstance(each, dict)] if isinstance(wheels, list) else []


def locking_of(session: Session, loaded: LoadedManifest) -> Locking:
    """The lock of a manifest, one in a run: what one platform or compression has resolved, the others know."""
    key = (loaded.path.absolute(), loaded.overrides)
    if key not in session.lockings:
        session.lockings[key] = Locking(loaded, session.options)
    return session.lockings[key]


def check_updates(session: Session) -> None:
    """RequestError when `--update` names what no lock of this run has."""
    names = {name for locking in session.lockings.values() for name in locking.names}
    for name in sorted(session.options.update - names - {"*", *KINDS}):
        hint = alternatives(name, sorted(names), title="entries", none="nothing here is locked")
        raise RequestError(f"the lock has no entry `{name}`", place="--update", hint=hint)


def _fingerprint(loaded: LoadedManifest) -> str:
    """A name for the private lock of this manifest: its place, not its overrides, which requests tell apart."""
    return hashlib.sha256(str(loaded.path.absolute()).encode()).hexdigest()[:32]
