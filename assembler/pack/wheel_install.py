"""A wheel becomes the entries that an installer would leave behind: the binary distribution format, PyPA.

Nothing is unpacked. Files stay where they are in the wheel, and are inflated and compared with RECORD when the
layer is packed; only scripts that change are made in memory. What is decided here:

- RECORD must list every file of the wheel with a hash, as the specification wants, and no file that is not there.
- Every wheel gets REQUESTED, as uv gives it, whoever asked for the wheel. If it depended on that, torch would be
  one layer where the manifest names it and another where vllm brings it.
- The executable bit is the zip's; files are 0644 or 0755, scripts always 0755.
- A wheel cannot replace the environment's own interpreter and configuration.
"""

from __future__ import annotations

import email.parser
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from assembler.errors import UntrustedInputError
from assembler.manifest.wheels import LockedWheel
from assembler.pack.members import Archives, digest_text, read_member, read_start
from assembler.pack.wheel_archive import Archive, Listed, read_archive
from assembler.pack.wheel_environment import Environment, installed_path, reserved_paths
from assembler.pack.wheel_record import Row, format_record, parse_record
from assembler.pack.wheel_scripts import (
    PLACEHOLDER,
    entry_point_scripts,
    script_text,
    versioned_pip,
    with_interpreter,
)
from assembler.tree.entry import Entry, Slice, ZipMember

INSTALLER: Final = b"assemble\n"

_METADATA_LIMIT: Final = 64 << 20
_SCRIPT_LIMIT: Final = 16 << 20
_SUPPORTED: Final = 1  # the major version of the format
_SIGNATURES: Final = ("RECORD.jws", "RECORD.p7s")
_OURS: Final = ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")
"""Files of `.dist-info` that an installer writes, whatever the wheel has in their place."""
_SEPARATORS: Final = re.compile(r"[-_.]+")


Compile: TypeAlias = Callable[[Path, Sequence[tuple[str, str]]], Sequence[Slice | None]]
"""Compiles members of a wheel, each a name and the path that its code is to carry; None for what cannot be."""


def wheel_entries(
    wheel: LockedWheel, path: Path, environment: Environment, compiling: tuple[str, Compile] | None = None
) -> tuple[Entry, ...]:
    """The files of this wheel, installed; without directories. `compiling` is the tag of compiled files and a way
    to make them.

    UntrustedInputError naming the wheel, and the entry where it is one, when the wheel at `path` is not a sound
    wheel of this project; NodeError when it cannot be read.
    """
    archive = read_archive(path, wheel.filename)
    with Archives() as archives:
        return _Installation(wheel, archive, archives, environment, compiling).entries()


@dataclass(slots=True)
class _Installation:
    wheel: LockedWheel
    archive: Archive
    archives: Archives
    environment: Environment
    compiling: tuple[str, Compile] | None
    files: dict[str, Listed] = field(default_factory=dict)
    record: dict[str, Row] = field(default_factory=dict)
    info: str = ""
    reserved: frozenset[str] = frozenset()
    made: list[Entry] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def entries(self) -> tuple[Entry, ...]:
        self.reserved = reserved_paths(self.environment)
        self.files = {file.name: file for file in self.archive.files}
        self.info = self._info()
        self.record = parse_record(self._read("RECORD", listed=False), self.archive.name)
        packages = self._packages()
        scripts = self._scripts()
        data = f"{self.info.removesuffix('.dist-info')}.data/"
        written = {f"{self.info}/{name}" for name in _OURS}
        for file in self.archive.files:
            if file.name in written:
                self._drop(file)
            elif not file.name.startswith(data):
                self._keep(file, f"{packages}/{file.name}", file.name)
            else:
                self._place(file, file.name[len(data) :], packages, scripts)
        for directory in self.archive.directories:
            self._drop(directory)
        self._check_record()
        for name, (module, reference) in scripts.items():
            self._write(
                f"{self.environment.scripts}/{name}",
                script_text(self.environment.interpreter, module, reference),
                0o755,
            )
        if self.compiling:
            self._compile(packages, *self.compiling)
        self._finish(packages)
        return tuple(self.made)

    # what the wheel says about itself

    def _info(self) -> str:
        """The wheel's `.dist-info` directory."""
        found = {name.partition("/")[0] for name in self.files if "/" in name}
        infos = sorted(name for name in found if name.endswith(".dist-info"))
        if len(infos) != 1:
            names = ", ".join(f"`{name}`" for name in infos) or "none"
            raise self._refused(f"expected one `.dist-info` directory, got {names}")
        name = infos[0].removesuffix(".dist-info").rpartition("-")[0]
        if _SEPARATORS.sub("-", name).lower() != self.wheel.name:
            raise self._refused(f"expected a wheel of `{self.wheel.name}`, got `{infos[0]}`")
        return infos[0]

    def _packages(self) -> str:
        """Where the wheel's top directory goes: as its WHEEL file says, whose version we must know."""
        try:
            document = email.parser.Parser().parsestr(self._read("WHEEL").decode())
        except UnicodeDecodeError as error:
            raise self._refused(f"`{self.info}/WHEEL` is not UTF-8") from error
        version = document.get("Wheel-Version", "").strip()
        major = version.partition(".")[0]
        if not (major.isascii() and major.isdigit()) or int(major) > _SUPPORTED:
            raise self._refused(
                f"`{self.info}/WHEEL`: expected version {_SUPPORTED} of the format, got `{version}`"
            )
        pure = document.get("Root-Is-Purelib", "").strip().lower() == "true"
        return self.environment.purelib if pure else self.environment.platlib

    def _scripts(self) -> Mapping[str, tuple[str, str]]:
        if f"{self.info}/entry_points.txt" not in self.files:
            return {}
        scripts = entry_point_scripts(self._read("entry_points.txt"), self.archive.name)
        return versioned_pip(scripts, self.environment.python) if self.wheel.name == "pip" else scripts

    def _read(self, name: str, *, listed: bool = True) -> bytes:
        """A small file of `.dist-info`."""
        path = f"{self.info}/{name}"
        file = self.files.get(path)
        if file is None:
            raise self._refused(f"`{path}` is missing")
        if file.size > _METADATA_LIMIT:
            raise self._refused(f"`{path}` has {file.size} bytes, more than such a file can need")
        row = self.record.get(path) if listed else None
        return read_member(self._member(file, row.expected if row else ""), self.archives)

    def _check_record(self) -> None:
        """What is left in RECORD must be RECORD itself, which has no hash, or a directory."""
        for path in self.record:
            if not path.endswith("/") and path not in {f"{self.info}/{name}" for name in (*_OURS, *_SIGNATURES)}:
                raise self._refused(f"RECORD lists `{path}`, which is not in the wheel")

    def _drop(self, file: Listed) -> None:
        """Not installed, but read: nothing may hide behind what nobody looks at."""
        row = self.record.pop(file.name, None)
        if file.size > _METADATA_LIMIT:
            raise self._refused(f"`{file.name}` has {file.size} bytes, more than such a file can need")
        read_member(self._member(file, row.expected if row else ""), self.archives)

    # where its files go

    def _place(self, file: Listed, path: str, packages: str, scripts: Mapping[str, object]) -> None:
        """A file of the `.data` directory."""
        scheme, _, rest = path.partition("/")
        target = {
            "purelib": self.environment.purelib,
            "platlib": self.environment.platlib,
            "scripts": self.environment.scripts,
            "data": self.environment.data,
            "headers": f"{self.environment.headers}/{self.wheel.name}",
        }.get(scheme)
        if target is None or not rest:
            raise self._refused(
                f"`{file.name}`: expected purelib, platlib, scripts, data or headers below `.data`"
            )
        place = installed_path(self.environment, f"{target}/{rest}")
        if scheme == "scripts":
            if rest in scripts:  # an old wrapper of setuptools; the entry point says the same
                self._drop(file)
                return
            if file.size >= len(PLACEHOLDER):
                member = self._member(file, "")
                if read_start(member, len(PLACEHOLDER), self.archives) == PLACEHOLDER:
                    self._rewrite(file, place)
                    return
        self._keep(file, place, self._relative(place, packages), executable=scheme == "scripts")

    def _rewrite(self, file: Listed, place: str) -> None:
        if file.size > _SCRIPT_LIMIT:
            raise self._refused(f"`{file.name}` is a script of {file.size} bytes; at most {_SCRIPT_LIMIT} can be")
        script = read_member(self._member(file, self._row(file)), self.archives)
        self._write(place, with_interpreter(script, self.environment.interpreter), 0o755)

    def _keep(self, file: Listed, place: str, recorded: str, *, executable: bool = False) -> None:
        """A file that is installed as it is."""
        expected = self._row(file)
        self._add(
            Entry(
                path=place,
                kind="file",
                mode=0o755 if executable or file.executable else 0o644,
                size=file.size,
                content=self._member(file, expected),
            ),
            Row(recorded, expected, file.size if expected else None),
        )

    def _write(self, place: str, data: bytes, mode: int = 0o644) -> None:
        """A file that the installer makes."""
        recorded = self._relative(place, self.environment.purelib)
        row = Row(recorded, f"sha256={digest_text(hashlib.sha256(data).digest())}", len(data))
        self._add(Entry(path=place, kind="file", mode=mode, size=len(data), content=data), row)

    def _add(self, entry: Entry, row: Row) -> None:
        if entry.path in self.reserved:
            raise self._refused(f"would replace `/{entry.path}`, which makes the environment")
        self.made.append(entry)
        self.rows.append(row)

    def _finish(self, packages: str) -> None:
        """The files that say who installed this and what there is."""
        info = f"{packages}/{self.info}"
        self._write(f"{info}/INSTALLER", INSTALLER)
        self._write(f"{info}/REQUESTED", b"")
        if self.wheel.direct is not None:
            self._write(f"{info}/direct_url.json", json.dumps(dict(self.wheel.direct), sort_keys=True).encode())
        self.rows.append(Row(f"{self.info}/RECORD", "", None))
        data = format_record(self.rows)
        self.made.append(Entry(path=f"{info}/RECORD", kind="file", size=len(data), content=data))

    def _compile(self, packages: str, tag: str, compiled: Compile) -> None:
        """A compiled file beside each source that is a module or part of a package."""
        known = {entry.path for entry in self.made}
        places: list[str] = []
        sources: list[tuple[str, str]] = []
        for entry in sorted(self.made, key=lambda entry: entry.path):
            if not (entry.path.startswith(f"{packages}/") and entry.path.endswith(".py")):
                continue
            directory, _, name = entry.path.rpartition("/")
            place = f"{directory}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc"
            if place not in known and isinstance(entry.content, ZipMember):
                places.append(place)
                sources.append((entry.content.name, f"/{entry.path}"))
        for place, content in zip(places, compiled(self.archive.path, sources) if sources else (), strict=True):
            if content is not None:
                digest = digest_text(hashlib.sha256(_read_slice(content)).digest())
                self._add(
                    Entry(path=place, kind="file", size=content.size, content=content),
                    Row(self._relative(place, packages), f"sha256={digest}", content.size),
                )

    def _relative(self, place: str, packages: str) -> str:
        return posixpath.relpath(place, packages)

    def _row(self, file: Listed) -> str:
        """The hash that RECORD has for a file. It must have one for each but the signatures of RECORD itself."""
        row = self.record.pop(file.name, None)
        if file.name in {f"{self.info}/{name}" for name in _SIGNATURES}:
            return ""
        if row is None or not row.expected:
            raise self._refused(f"RECORD has no {'hash for' if row else 'line for'} `{file.name}`")
        if row.size not in {None, file.size}:
            raise self._refused(f"`{file.name}` has {file.size} bytes; RECORD says {row.size}")
        return row.expected

    def _member(self, file: Listed, expected: str) -> ZipMember:
        return ZipMember(
            path=self.archive.path,
            archive=self.archive.name,
            name=file.name,
            start=file.start,
            end=file.end,
            packed=file.packed,
            size=file.size,
            crc=file.crc,
            deflated=file.deflated,
            described=file.described,
            expected=expected,
        )

    def _refused(self, what: str) -> UntrustedInputError:
        return UntrustedInputError(what, place=self.archive.name)


def _read_slice(content: Slice) -> bytes:
    with content.path.open("rb") as file:
        file.seek(content.offset)
        return file.read(content.size)
