"""The lock of a Python environment: from what is asked for to wheels by URL, hash and size.

Either uv resolves the requirements (`uv.resolve`), or a lock that the user brings says everything (`pylock.toml`,
`uv.lock`); wheels of this host are laid beside. What an older lock chose stays, unless it must or may move.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from assembler.build import uv
from assembler.build.download import Patience, download, open_session, stated_size
from assembler.build.index_settings import read_settings
from assembler.build.pylock import Chosen, choose
from assembler.build.python_index import normalised, project_files, sdist_version
from assembler.build.requirement_files import requirement_lines
from assembler.build.wheel_tags import Target, is_for_python, rank_of
from assembler.build.wheelhouse import HouseWheel, write_stand_in
from assembler.errors import AssembleError, LockError, ManifestError, VerifyError
from assembler.manifest.wheels import LockedWheel
from assembler.oci.layout import Store

if TYPE_CHECKING:
    import requests

_THREADS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Workroom:
    """Where the work is done: an empty directory, uv's cache, the store, and whom to tell what is odd."""

    scratch: Path
    cache: Path
    store: Store
    warn: Callable[[str], None]
    patience: Patience | None = None


def lock_wheels(
    question: uv.Question,
    room: Workroom,
    *,
    lock_file: Path | None = None,
    extras: Sequence[str] = (),
    groups: Sequence[str] = (),
    house: Sequence[HouseWheel] = (),
    old: Sequence[LockedWheel] = (),
) -> tuple[LockedWheel, ...]:
    """Every wheel of the environment, sorted by name; those of `house` are among them.

    Raises what `uv.resolve` and `pylock.choose` raise.
    """
    names = {wheel.name for wheel in house}
    if lock_file is None:
        chosen = _resolved(question, room, house)
    else:
        document = _foreign(lock_file, question, room, extras, groups)
        excluded = {normalised(each) for each in question.exclude} | names
        chosen = choose(
            document,
            question.target,
            directory=lock_file.parent,
            exclude=excluded,
            extras=extras,
            groups=groups,
            place=question.place,
        )
    known = {(wheel.name, wheel.version, wheel.filename, wheel.sha256): wheel for wheel in old}
    requested = _requested(question) if lock_file is None else frozenset()
    with open_session() as session:
        work = _Work(session, room, known, requested)
        with ThreadPoolExecutor(_THREADS, "wheel-size") as pool:
            found = list(pool.map(work.locked, [each for each in chosen if each.name not in names]))
        if lock_file is None:
            for text in _overlooked(session, question, found, room):
                room.warn(text)
    return tuple(sorted([*found, *(wheel.locked for wheel in house)], key=lambda wheel: wheel.name))


def _resolved(question: uv.Question, room: Workroom, house: Sequence[HouseWheel]) -> tuple[Chosen, ...]:
    """uv's answer; wheels of this host go in by path, so that no index can put others in their place.

    They go in by stand-ins: uv unpacks what it is to hash, and their hashes are known.
    """
    lines = []
    (room.scratch / "house").mkdir(parents=True, exist_ok=True)
    for wheel in house:
        path = room.scratch / "house" / wheel.filename
        write_stand_in(wheel, path)
        lines.append(f"{wheel.name} @ {path.as_uri()}")
    asked = replace(question, requirements=(*question.requirements, *lines))
    told = uv.resolve(asked, room.scratch, room.cache)
    for text in told.warnings:
        room.warn(text)
    return choose(told.document, question.target, directory=room.scratch, place=question.place)


def _foreign(
    path: Path, question: uv.Question, room: Workroom, extras: Sequence[str], groups: Sequence[str]
) -> Mapping[str, Any]:
    """The document of a lock that the user brings."""
    if path.name == "uv.lock":
        return uv.export(path, extras=extras, groups=groups, cache=room.cache, place=question.place).document
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ManifestError(f"`{path.name}` cannot be read: {error}", place=question.place) from error
    if str(document.get("lock-version", "")).partition(".")[0] != "1":
        fact = f"expected `lock-version` `1.0` in `{path.name}`, got `{document.get('lock-version')}`"
        raise ManifestError(fact, place=question.place)
    return document


class _Work:
    """Completing what was chosen; shared by threads."""

    def __init__(
        self,
        session: requests.Session,
        room: Workroom,
        known: Mapping[tuple[str, str, str, str], LockedWheel],
        requested: frozenset[str],
    ) -> None:
        self._session = session
        self._room = room
        self._known = known
        self._requested = requested
        self._settings = read_settings()

    def locked(self, chosen: Chosen) -> LockedWheel:
        """The wheel with its size. The same file keeps the address that it was locked with: nothing has moved."""
        direct: dict[str, Any] | None = None
        if chosen.direct and chosen.url:
            direct = {"url": chosen.url, "archive_info": {"hashes": {"sha256": chosen.digest.hex}}}
        old = self._known.get((chosen.name, chosen.version, chosen.filename, chosen.digest.hex))
        is_kept = old is not None and (direct is None or old.url == chosen.url)
        try:
            return LockedWheel(
                name=chosen.name,
                version=chosen.version,
                filename=chosen.filename,
                url=old.url if old and is_kept else chosen.url,
                sha256=chosen.digest.hex,
                size=old.size if old else self._size(chosen),
                requested=chosen.name in self._requested,
                direct=direct,
            )
        except ValueError as error:
            raise ManifestError(f"`{chosen.filename}` cannot be locked: {error}") from error

    def _size(self, chosen: Chosen) -> int:
        if chosen.path is not None:
            return self._adopt(chosen, chosen.path)
        if chosen.size is not None:
            return chosen.size
        address = self._settings.with_credentials(chosen.url)
        size = stated_size(self._session, address, patience=self._room.patience)
        if size is None:  # the server does not say before it sends
            got = download(
                self._session, address, self._room.store, digest=chosen.digest, patience=self._room.patience
            )
            return got.size
        return size

    def _adopt(self, chosen: Chosen, path: Path) -> int:
        """Take a file of this host into the store, so that it is there whatever becomes of the directory."""
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                self._room.store.put_stream(stream, chosen.digest, size)
        except (OSError, VerifyError) as error:
            raise LockError(f"`{chosen.filename}` cannot be taken: {error}", place=str(path.parent)) from error
        return size


def _requested(question: uv.Question) -> frozenset[str]:
    """The projects that requirements name themselves."""
    from packaging.requirements import InvalidRequirement, Requirement

    found = set()
    for line in (*question.requirements, *(line for path in question.files for line in requirement_lines(path))):
        try:
            found.add(normalised(Requirement(line).name))
        except InvalidRequirement:
            continue
    return frozenset(found)


def _overlooked(
    session: requests.Session, question: uv.Question, found: Sequence[LockedWheel], room: Workroom
) -> Iterator[str]:
    """Warnings about projects whose newest version has no wheel for the base, so that an old one was taken.

    uv passes over such versions in silence; a project that has no wheels now comes years old that way.
    Only what was asked for by name and without an exact version is looked at.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    by_name = {wheel.name: wheel for wheel in found}
    loose: dict[str, Requirement] = {}
    for line in question.requirements:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.url is None and not any(each.operator in {"==", "==="} for each in requirement.specifier):
            loose[normalised(requirement.name)] = requirement
    settings = read_settings()
    indexes = (
        (*question.extra_index, question.index) if question.index else (*question.extra_index, *settings.urls())
    )

    def look(name: str) -> str:
        try:
            pages = [project_files(session, index, name, patience=room.patience) for index in indexes]
        except AssembleError:
            return ""
        files = [file.name for page in pages for file in page]
        return _newer_without_wheel(by_name[name], loose[name], files, question.target)

    with ThreadPoolExecutor(_THREADS, "wheel-look") as pool:
        yield from filter(None, pool.map(look, sorted(set(loose) & set(by_name))))


def _newer_without_wheel(wheel: LockedWheel, asked: Any, files: Sequence[str], target: Target) -> str:
    """The warning, when the requirement allows a newer final version that has no wheel for the target."""
    from packaging.version import InvalidVersion, Version

    offered: dict[Version, list[str]] = {}
    for file in files:
        text = file.split("-")[1] if file.endswith(".whl") and "-" in file else sdist_version(file, wheel.name)
        try:
            offered.setdefault(Version(text or ""), []).append(file)
        except InvalidVersion:
            continue
    taken = Version(wheel.version)
    allowed = [each for each in offered if not each.is_prerelease and asked.specifier.contains(each)]
    newest = max(allowed, default=taken)
    wheels = [file for file in offered.get(newest, ()) if file.endswith(".whl")]
    mine = [file for file in wheels if is_for_python(file, target)]
    # A project that has left this Python behind is no accident; one that has no wheels, or none for the base, is.
    if newest <= taken or (wheels and not mine) or any(rank_of(file, target) for file in mine):
        return ""
    return (
        f"`{wheel.name}` {newest} has no wheel for {target.text}: {taken} was locked, "
        "the newest that has one; pin it, or compile the newer one in a step"
    )
