"""Wheels that lie in a directory of this host: a wheelhouse of the user's, or what a compile step left.

Of each it is read what it says of itself (core metadata): its name, its version, and what it requires.
"""

from __future__ import annotations

import email.parser
import email.policy
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from assembler.build.python_index import normalised
from assembler.build.wheel_tags import Target, best, why_not
from assembler.errors import ManifestError, UntrustedInputError
from assembler.manifest.wheels import LockedWheel
from assembler.oci.digest import Digest

_METADATA_LIMIT: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HouseWheel:
    """A wheel of this host. `requires` are its `Requires-Dist` lines, sorted; `path` is where its bytes are."""

    name: str
    version: str
    filename: str
    requires: tuple[str, ...]
    digest: Digest
    size: int
    path: Path

    @property
    def locked(self) -> LockedWheel:
        """As the lock knows it: asked for, and from nowhere that others could reach."""
        return LockedWheel(
            name=self.name,
            version=self.version,
            filename=self.filename,
            url="",
            sha256=self.digest.hex,
            size=self.size,
            requested=True,
        )

    def said(self) -> dict[str, Any]:
        """What decides about the rest of the environment: the name and what is required, not the version."""
        return {"name": self.name, "requires": list(self.requires)}


def house_wheel(path: Path, digest: Digest, filename: str) -> HouseWheel:
    """Read what a wheel says of itself; UntrustedInputError when it is no wheel."""
    name, version, requires = _metadata(path, filename)
    parts = filename.split("-")
    if normalised(parts[0]) != name:
        raise UntrustedInputError(
            f"expected a wheel of `{normalised(parts[0])}`, its metadata says `{name}`", place=filename
        )
    return HouseWheel(
        name=name,
        version=version,
        filename=filename,
        requires=requires,
        digest=digest,
        size=path.stat().st_size,
        path=path,
    )


def write_stand_in(wheel: HouseWheel, path: Path) -> None:
    """Write a wheel that says of itself what this one says, and has nothing else in it.

    A resolver needs no more, and may unpack and hash the wheels of this host that it is given.
    """
    name, data = _read_metadata(wheel.path, wheel.filename)
    directory = name.partition("/")[0]
    others = {
        f"{directory}/WHEEL": "Wheel-Version: 1.0\nGenerator: assemble\nRoot-Is-Purelib: true\n",
        f"{directory}/RECORD": f"{name},,\n{directory}/WHEEL,,\n{directory}/RECORD,,\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)
        for each, text in others.items():
            archive.writestr(each, text)


def _read_metadata(path: Path, filename: str) -> tuple[str, bytes]:
    """The METADATA file of a wheel, and its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [
                each
                for each in archive.infolist()
                if each.filename.count("/") == 1 and each.filename.endswith(".dist-info/METADATA")
            ]
            if len(found) != 1 or found[0].file_size > _METADATA_LIMIT:
                raise UntrustedInputError("expected one METADATA file in the wheel", place=filename)
            return found[0].filename, archive.read(found[0])
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        raise UntrustedInputError(f"the wheel cannot be read: {error}", place=filename) from error


def _metadata(path: Path, filename: str) -> tuple[str, str, tuple[str, ...]]:
    """Name, version and requirements by the core metadata of a wheel."""
    _, data = _read_metadata(path, filename)
    message = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(data, headersonly=True)
    name, version = normalised(str(message.get("Name") or "")), str(message.get("Version") or "").strip()
    if not name or not version:
        raise UntrustedInputError("expected a name and a version in the wheel's METADATA", place=filename)
    requires = {" ".join(str(each).split()) for each in message.get_all("Requires-Dist") or ()}
    return name, version, tuple(sorted(requires))


def fitting(wheels: Sequence[HouseWheel], target: Target, place: str) -> tuple[HouseWheel, ...]:
    """Of each project the wheel that fits the base, sorted by name: a wheelhouse may serve several bases.

    ManifestError names every project of which no wheel fits, and one of which several versions do.
    """
    projects: dict[str, list[HouseWheel]] = {}
    for wheel in wheels:
        projects.setdefault(wheel.name, []).append(wheel)
    problems: list[str] = []
    chosen: list[HouseWheel] = []
    for _, offered in sorted(projects.items()):
        name = best([wheel.filename for wheel in offered], target)
        if name is None:
            problems += [f"`{wheel.filename}`: {why_not(wheel.filename, target)}" for wheel in offered]
            continue
        (first,) = (wheel for wheel in offered if wheel.filename == name)
        for other in offered:
            if other.version != first.version and not why_not(other.filename, target):
                raise ManifestError(
                    f"`{first.filename}` and `{other.filename}` are two versions of one project", place=place
                )
        chosen.append(first)
    if problems:
        raise ManifestError(
            "there is a wheel that the base cannot take",
            place=place,
            detail=problems,
            hint="compile it in a devel base with the same Python and a glibc that is not newer",
        )
    return tuple(chosen)
