"""From a lock of PEP 751 to the wheels that a base takes: markers read for the target, the best file by its tags.

The document is uv's answer or a `pylock.toml` of the user's; either is foreign, so everything in it is checked.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from assembler.build.python_index import normalised
from assembler.build.wheel_tags import Target, best, why_not
from assembler.errors import ManifestError
from assembler.oci.digest import Digest

_SHOWN: Final = 6
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One wheel to install. `path` is set for a file of this host, `url` otherwise; `size` when it is stated.

    `direct` says that it was asked for by this URL, not by version from an index.
    """

    name: str
    version: str
    filename: str
    url: str
    path: Path | None
    digest: Digest
    size: int | None
    direct: bool


def choose(
    document: Mapping[str, Any],
    target: Target,
    *,
    directory: Path,
    exclude: Collection[str] = (),
    extras: Sequence[str] = (),
    groups: Sequence[str] = (),
    place: str = "",
) -> tuple[Chosen, ...]:
    """The wheels, sorted by name. `directory` is where relative paths of the document start,
    `exclude` the normalised names of projects that are left out.

    ManifestError names every package that has no wheel for the target, with the reasons.
    """
    _check_offer(document, "extras", extras, place)
    _check_offer(document, "dependency-groups", groups, place)
    _check_python(document.get("requires-python"), target, "the lock", place)
    environment = {
        **target.markers(),
        "extras": frozenset(normalised(each) for each in extras),
        "dependency_groups": frozenset(normalised(each) for each in groups),
    }
    found: dict[str, Chosen] = {}
    problems: list[str] = []
    for package in _packages(document, place):
        name = normalised(str(package.get("name", "")))
        if name in exclude or not _wanted(package, environment, place):
            continue
        if name in found:
            raise ManifestError(f"`{name}` is locked twice for {target.text}", place=place)
        try:
            found[name] = _choose(package, name, target, directory, place)
        except _NoWheelError as error:
            problems += error.lines
    if problems:
        raise ManifestError(
            "there is no wheel that the base can take",
            place=place,
            detail=problems,
            hint="choose a version that has one, compile it in a step and give it as `artifact`, or `exclude` it",
        )
    return tuple(found[name] for name in sorted(found))


class _NoWheelError(Exception):
    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__()
        self.lines = tuple(lines)


def _packages(document: Mapping[str, Any], place: str) -> Iterator[Mapping[str, Any]]:
    packages = document.get("packages", [])
    if not isinstance(packages, list) or not all(isinstance(each, dict) and "name" in each for each in packages):
        raise ManifestError("expected `packages`, a list of tables with names", place=place)
    yield from packages


def _check_offer(document: Mapping[str, Any], key: str, wanted: Sequence[str], place: str) -> None:
    offered = document.get(key)
    if offered is None:  # an exporter has applied them already
        return
    known = {normalised(str(each)) for each in offered}
    for name in wanted:
        if normalised(name) not in known:
            shown = ", ".join(f"`{each}`" for each in sorted(known)) or "none"
            raise ManifestError(f"the lock has no `{name}` among its {key}", place=place, hint=f"it has {shown}")


def _check_python(wanted: object, target: Target, who: str, place: str) -> None:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    if not wanted:
        return
    try:
        fits = SpecifierSet(str(wanted)).contains(target.markers()["python_full_version"], prereleases=True)
    except InvalidSpecifier as error:
        raise ManifestError(f"{who} asks for the Python `{wanted}`, which cannot be read", place=place) from error
    if not fits:
        raise ManifestError(f"{who} asks for Python `{wanted}`, the base has {target.python}", place=place)


def _wanted(package: Mapping[str, Any], environment: Mapping[str, Any], place: str) -> bool:
    from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName

    text = package.get("marker")
    if not text:
        return True
    try:
        return Marker(str(text)).evaluate(dict(environment), context="lock_file")
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName) as error:
        name = package.get("name")
        raise ManifestError(f"the marker `{text}` of `{name}` cannot be read", place=place) from error


def _choose(package: Mapping[str, Any], name: str, target: Target, directory: Path, place: str) -> Chosen:
    version = str(package.get("version") or "")
    label = f"{name} {version}".rstrip()
    _check_python(package.get("requires-python"), target, f"`{label}`", place)
    direct = isinstance(package.get("archive"), dict)
    files: list[Mapping[str, Any]] = [package["archive"]] if direct else list(package.get("wheels") or ())
    names = [_filename(each) for each in files]
    if not files:
        for kind, why in (
            ("vcs", "comes from version control"),
            ("directory", "is a directory"),
            ("sdist", "has source distributions only"),
        ):
            if package.get(kind):
                raise _NoWheelError([f"{label}: {why}"])
        raise _NoWheelError([f"{label}: no file is named"])
    filename = best(names, target)
    if filename is None:
        raise _NoWheelError(_reasons(label, names, target))
    file = files[names.index(filename)]
    return _chosen(name, version or filename.split("-")[1], filename, file, directory, direct, place)


def _reasons(label: str, names: Sequence[str], target: Target) -> list[str]:
    """Why no file fits, the nearest first: those for the same machine."""
    near = sorted(names, key=lambda each: (target.machine not in each, each))
    lines = [f"{label}: `{each}`: {why_not(each, target)}" for each in near[:_SHOWN]]
    more = len(names) - _SHOWN
    return [*lines, f"{label}: and {more} more"] if more > 0 else lines


def _filename(file: Mapping[str, Any]) -> str:
    text = str(file.get("name") or "")
    if not text:
        path = urlsplit(str(file["url"])).path if file.get("url") else str(file.get("path") or "")
        text = unquote(posixpath.basename(path.replace("\\", "/")))
    return text


def _chosen(
    name: str,
    version: str,
    filename: str,
    file: Mapping[str, Any],
    directory: Path,
    direct: bool,
    place: str,
) -> Chosen:
    digits = (file.get("hashes") or {}).get("sha256")
    if not isinstance(digits, str) or not _SHA256.fullmatch(digits):
        raise ManifestError(f"expected the SHA-256 of `{filename}`, the lock has none", place=place)
    size = file.get("size")
    url, path = str(file.get("url") or ""), None
    if url.startswith("file:"):
        url, path = "", Path(unquote(urlsplit(url).path))
    elif not url:
        path = directory / str(file.get("path") or "")
    return Chosen(
        name=name,
        version=version,
        filename=filename,
        url=public(url),
        path=path,
        digest=Digest.from_hex(digits),
        size=size if isinstance(size, int) and size > 0 else None,
        direct=direct,
    )


def public(url: str) -> str:
    """The URL for the lock: no user and password, and no query, which may hold a signature that expires.

    >>> public("https://me:secret@example.org/a.whl?token=x#sha256=0")
    'https://example.org/a.whl'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
