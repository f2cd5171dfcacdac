"""What uv leaves behind in a real virtual environment, against what is in our layer.

Accepted differences, and no others:

- INSTALLER says `assemble`, not `uv`; so its line in RECORD has another hash and size.
- Scripts for entry points have the same first line and call the same object, in our words; so their lines in
  RECORD have other hashes and sizes.
- The lines of RECORD stand in another order, and RECORD is not executable where the wheel's was.
- `uv_cache.json` and `.lock` are uv's notes to itself about a local file.
- Directories in which there is no file: uv makes those that a wheel lists as entries, RECORD knows nothing of
  them.
- Modes are 0644 or 0755 by the executable bit, which is compared; the rest is the umask's in a real environment.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from assembler.manifest.wheels import LockedWheel
from assembler.oci.image import BlobLayer
from assembler.oci.layout import Store
from assembler.oci.media_types import LAYER_ZSTD
from assembler.pack.wheel_environment import Environment, environment_of
from assembler.pack.wheel_groups import WheelGroup
from assembler.pack.wheel_layer import pack_group

_CALL = re.compile(rb"sys\.exit\(([\w.]+)\(\)\)")
_IMPORT = re.compile(rb"^from ([\w.]+) import (\w+)", re.MULTILINE)
_SCRIPT = re.compile(rb"\A(#!.*\n)(?:'''exec'.*\n' '''\n)?(?:.*\n)*?import sys\n")
_CACHE_NOTE = ".dist-info/uv_cache.json"
_LOOKED_INTO = re.compile(r"\.dist-info/(?:RECORD|INSTALLER)\Z|(?:\A|/)bin/[^/]+\Z")
_SMALL = 1 << 20


@dataclass(frozen=True)
class Thing:
    """A path of a tree: a file by hash and executable bit (some with their bytes), or a link by target."""

    kind: str
    executable: bool = False
    digest: str = ""
    link: str = ""
    data: bytes = b""


def locked(path: Path) -> LockedWheel:
    """A wheel file as the lock would know it."""
    name, version, *_ = path.name.split("-")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_SMALL):
            digest.update(data)
    return LockedWheel(
        name=re.sub(r"[-_.]+", "-", name).lower(),
        version=version,
        filename=path.name,
        url="",
        sha256=digest.hexdigest(),
        size=path.stat().st_size,
    )


def make_environment(directory: Path) -> None:
    """An empty virtual environment, made by uv."""
    _uv("venv", "--python", sys.executable, str(directory))


def install(directory: Path, wheels: Sequence[Path]) -> None:
    """Have uv install these wheels in the environment, and nothing else."""
    asked = [f"{wheel.name}=={wheel.version}" for wheel in map(locked, wheels)]
    links = [argument for place in {wheel.parent for wheel in wheels} for argument in ("--find-links", str(place))]
    python = ("--python", str(directory / "bin/python"))
    _uv("pip", "install", *python, "--no-deps", "--no-index", *links, "--link-mode", "copy", *asked)


def our_environment(directory: Path) -> Environment:
    """The environment at the same place, so that scripts name the same interpreter."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return environment_of(str(directory), python, sys.executable, bytecode=False)


def packed_environment(directory: Path, wheels: Sequence[Path], store: Store) -> dict[str, Thing]:
    """The same wheels in a layer, as a tar reader sees it; paths are relative to `directory`."""
    paths = {locked(wheel): wheel for wheel in wheels}
    group = WheelGroup(name="all", wheels=tuple(paths))
    packed = pack_group(
        group,
        our_environment(directory),
        lambda wheel: paths[wheel],
        store,
        compression="zstd",
        epoch=0,
        created_by="",
    )
    prefix = str(directory)[1:] + "/"
    return {name.removeprefix(prefix): thing for name, thing in layer_things(store, packed.layer).items()}


def layer_things(store: Store, layer: BlobLayer, looked_into: re.Pattern[str] = _LOOKED_INTO) -> dict[str, Thing]:
    """Files and links of a layer in the store; with the bytes of files whose names are `looked_into`."""
    assert layer.descriptor.media_type == LAYER_ZSTD
    found = {}
    with (
        store.open(layer.descriptor.digest) as blob,
        zstandard.ZstdDecompressor().stream_reader(blob) as plain,
        tarfile.open(fileobj=plain, mode="r|") as archive,
    ):
        for member in archive:
            if member.issym():
                found[member.name] = Thing("link", link=member.linkname)
            elif member.isreg():
                file = archive.extractfile(member)
                assert file is not None
                found[member.name] = _file(file, bool(member.mode & 0o111), bool(looked_into.search(member.name)))
                assert member.mode in {0o644, 0o755}
    return found


def directory_things(directory: Path) -> dict[str, Thing]:
    """Files and links of a directory."""
    found = {}
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        state = path.lstat()
        if stat.S_ISLNK(state.st_mode):
            found[name] = Thing("link", link=str(path.readlink()))
        elif stat.S_ISREG(state.st_mode):
            with path.open("rb") as file:
                found[name] = _file(file, bool(state.st_mode & 0o111), bool(_LOOKED_INTO.search(name)))
    return found


def differences(theirs: dict[str, Thing], ours: dict[str, Thing]) -> list[str]:
    """What is not accepted, a line each."""
    found = [f"{name}: is missing in ours" for name in sorted(theirs.keys() - ours.keys())]
    found += [f"{name}: is only in ours" for name in sorted(ours.keys() - theirs.keys())]
    for name in sorted(theirs.keys() & ours.keys()):
        their, our = theirs[name], ours[name]
        is_record = name.endswith(".dist-info/RECORD")
        was, now = ((thing.kind, thing.link, thing.executable and not is_record) for thing in (their, our))
        if was != now:
            found.append(f"{name}: is {was}, ours is {now}")
        elif is_record:
            found += [f"{name}: {line}" for line in _records_differ(their.data, our.data)]
        elif their.digest != our.digest and not _is_accepted(name, their.data, our.data):
            found.append(f"{name}: has another content")
    return found


def compare(directory: Path, wheels: Sequence[Path], store: Store) -> list[str]:
    """Install with uv at `directory` (which must not exist) and in a layer; what differs."""
    return differences(installed_environment(directory, wheels), packed_environment(directory, wheels, store))


def installed_environment(directory: Path, wheels: Sequence[Path]) -> dict[str, Thing]:
    """What uv puts into a new virtual environment at `directory` for these wheels."""
    make_environment(directory)
    before = directory_things(directory).keys()
    install(directory, wheels)
    return {
        name: thing
        for name, thing in directory_things(directory).items()
        if name not in before and name != ".lock" and not name.endswith(_CACHE_NOTE)
    }


def _is_accepted(name: str, theirs: bytes, ours: bytes) -> bool:
    if name.endswith(".dist-info/INSTALLER"):
        return (theirs, ours) == (b"uv", b"assemble\n")
    if name.startswith("bin/"):
        return _meaning(theirs) == _meaning(ours) != None  # noqa: E711
    return False


def _meaning(script: bytes) -> tuple[bytes, bytes, bytes, bytes] | None:
    """First line, module, name and call of a script for an entry point."""
    head, imported, call = _SCRIPT.search(script), _IMPORT.search(script), _CALL.search(script)
    return (head[1], imported[1], imported[2], call[1]) if head and imported and call else None


def _records_differ(theirs: bytes, ours: bytes) -> list[str]:
    one, other = _rows(theirs), _rows(ours)
    return [f"`{row}` only in theirs" for row in sorted(one - other)] + [
        f"`{row}` only in ours" for row in sorted(other - one)
    ]


def _rows(data: bytes) -> set[tuple[str, ...]]:
    rows: set[tuple[str, ...]] = set()
    for path, digest, size in csv.reader(io.StringIO(data.decode(), newline="")):
        if path.endswith(_CACHE_NOTE):
            continue
        made = path.endswith(".dist-info/INSTALLER") or path.startswith("../../../bin/")
        rows.add((path,) if made else (path, digest, size))
    return rows


def _file(file: IO[bytes], executable: bool, is_looked_into: bool) -> Thing:
    digest = hashlib.sha256()
    kept = []
    while data := file.read(_SMALL):
        digest.update(data)
        if is_looked_into:
            kept.append(data)
    return Thing("file", executable, digest.hexdigest(), data=b"".join(kept))


def _uv(*arguments: str) -> None:
    argv = [sys.executable, "-m", "uv", "--no-config", "--quiet", "--no-cache", "--offline", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
