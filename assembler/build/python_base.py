"""What Python and C library a base has: from the distribution packages it is made of, or from its layers.

Of bases that we make the packages are known by the lock, so nothing is read. Of others the version of glibc
stands in `libc.so.6` itself, the interpreters in the names of programs; that is found in the lowest layers, which
hold the distribution's own files, so the layers are read from the bottom until it is known. A later layer that
replaced the C library by another version would not be seen; within one release of a distribution none does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from assembler.build.debs import Package
from assembler.errors import UntrustedInputError
from assembler.tree.decompress import Stream, StreamError
from assembler.tree.tar_stream import TarError, TarReader

_UPSTREAM: Final = re.compile(r"(?:\d+:)?(\d+(?:\.\d+)+)")
_PYTHON_PACKAGE: Final = re.compile(r"python(3\.\d+)-minimal")
_LIBC: Final = re.compile(r"(?:\./)?(?:usr/)?lib(?:64)?/(?:[^/]+/)?libc(?:\.so\.6|-(2\.\d+)\.so)")
_LIBC_TARGET: Final = re.compile(r"libc-(2\.\d+)\.so")
_LIBC_SAYS: Final = re.compile(rb"GNU C Library [^\n\0]{0,120}version (2\.\d+)")
_MUSL: Final = re.compile(r"(?:\./)?(?:usr/)?lib/(?:ld-musl-[^/]+\.so\.1|libc\.musl-[^/]+)")
_INTERPRETER: Final = re.compile(r"(?:\./)?(?P<path>(?:[^/]+/){0,4}bin/python(?P<minor>3\.\d+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonBase:
    """`glibc` as `2.36`, or None when it is not known; `pythons` maps a minor version to the full one, as far as
    known; `interpreters` maps it to where its program lies in the image; `default` is the minor version that
    `python3` starts. `musl` says that the C library is that.
    """

    glibc: str | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)
    interpreters: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    musl: bool = False


def from_packages(packages: Iterable[Package]) -> PythonBase:
    """What Debian and Ubuntu packages, by name and version, bring."""
    glibc: str | None = None
    pythons: dict[str, str] = {}
    default: str | None = None
    for package in packages:
        match = _UPSTREAM.match(package.version)
        if match is None:
            continue
        version = match[1]
        if package.name == "libc6":
            glibc = ".".join(version.split(".")[:2])
        elif package.name == "python3-minimal":
            default = ".".join(version.split(".")[:2])
        elif found := _PYTHON_PACKAGE.fullmatch(package.name):
            pythons[found[1]] = version
    return PythonBase(glibc=glibc, pythons=pythons, default=default if default in pythons else None)


def read_layers(layers: Iterable[Path], *, glibc: bool, python: bool) -> PythonBase:
    """What the layers, lowest first, have; they are taken from the iterator only until all that is asked for is
    known. UntrustedInputError when one is damaged.
    """
    found = PythonBase()
    for path in layers:
        seen = _read_layer(path)
        found = PythonBase(
            glibc=seen.glibc or found.glibc,
            pythons={**found.pythons, **seen.pythons},
            interpreters={**found.interpreters, **seen.interpreters},
            musl=found.musl or seen.musl,
        )
        if (found.glibc or found.musl or not glibc) and (found.pythons or not python):
            break
    return found


def _read_layer(path: Path) -> PythonBase:
    glibc: str | None = None
    musl = False
    interpreters: dict[str, str] = {}
    try:
        with Stream(path) as stream:
            reader = TarReader(stream)
            for member in reader:
                name = member.name.decode(errors="replace")
                if (match := _LIBC.fullmatch(name)) and member.kind in {"file", "symlink"}:
                    linked = _LIBC_TARGET.search(member.link.decode(errors="replace"))
                    glibc = glibc or match[1] or (linked[1] if linked else _said(reader.content()))
                elif _MUSL.fullmatch(name):
                    musl = True
                elif (match := _INTERPRETER.fullmatch(name)) and member.kind == "file":
                    interpreters.setdefault(match["minor"], "/" + match["path"])
    except (StreamError, TarError, OSError) as error:
        raise UntrustedInputError(f"the layer cannot be read: {error}", place=str(path)) from error
    return PythonBase(
        glibc=glibc,
        pythons={minor: minor for minor in interpreters},
        interpreters=interpreters,
        musl=musl and glibc is None,
    )


def _said(chunks: Iterator[bytes]) -> str | None:
    """The version that a `libc.so.6` says of itself, wherever in it that stands."""
    rest = b""
    for chunk in chunks:
        match = _LIBC_SAYS.search(rest + chunk)
        if match:
            return match[1].decode()
        rest = chunk[-256:]
    return None
