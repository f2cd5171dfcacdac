"""Wheels of this host in the store: those of a directory, and those that a compile step made.

What a wheel says of itself is kept in records, by what identifies it (a file by its stat data, an artifact by the
digest of its bundle), so that a plan opens no wheel.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assembler.build.wheelhouse import HouseWheel, house_wheel
from assembler.errors import LockError, ManifestError
from assembler.manifest.environments import House
from assembler.oci.digest import Digest
from assembler.oci.layout import CHUNK, Store
from assembler.plan.key import key_of
from assembler.plan.names import compile_id
from assembler.tree.entry import Entry, Slice
from assembler.tree.fingerprint import RACY_NANOSECONDS

if TYPE_CHECKING:
    from assembler.steps.assembly import Assembly

_HASHERS = 8

PATTERNS = ("*", "!*.whl")
"""What of a wheelhouse does not count, as patterns of .gitignore."""


def directory_wheels(store: Store, directory: Path, place: str) -> tuple[HouseWheel, ...]:
    """The wheels of a wheelhouse, by file name; ManifestError when there are none."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.name.endswith(".whl") and path.is_file())
        if not paths:
            raise ManifestError(f"there are no wheels in `{directory.name}`", place=place)
        with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _HASHERS)) as pool:
            return tuple(pool.map(partial(wheel_of_file, store), paths))
    except OSError as error:
        raise ManifestError(f"`{directory.name}` cannot be read: {error.strerror}", place=place) from error


def wheel_of_file(store: Store, path: Path) -> HouseWheel:
    """A wheel of this host; hashed and read once, and known by its stat data from then on."""
    now = time.time_ns()
    status = path.stat()
    identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    key = key_of("house-wheel", {"path": str(path.absolute()), "identity": identity})
    if found := _from_record(store.record(key), path):
        return found
    with path.open("rb") as file:
        digest = Digest.from_hex(hashlib.file_digest(file, "sha256").hexdigest())
    wheel = house_wheel(path, digest, path.name)
    if max(status.st_mtime_ns, status.st_ctime_ns) < now - RACY_NANOSECONDS:
        store.put_record(key, _record(wheel))
    return wheel


def _record(wheel: HouseWheel) -> dict[str, Any]:
    # Hexadecimal, not a digest: the record keeps no blob from being freed, for the directory has the file.
    return {
        "filename": wheel.filename,
        "sha256": wheel.digest.hex,
        "size": wheel.size,
        "name": wheel.name,
        "version": wheel.version,
        "requires": list(wheel.requires),
    }


def _from_record(record: Mapping[str, Any] | None, path: Path) -> HouseWheel | None:
    try:
        return None if record is None else HouseWheel(
            name=record["name"],
            version=record["version"],
            filename=record["filename"],
            requires=tuple(record["requires"]),
            digest=Digest.from_hex(record["sha256"]),
            size=record["size"],
            path=path,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def built_wheels(assembly: Assembly, house: House) -> tuple[HouseWheel, ...]:
    """The wheels of an artifact, in the store; its compile step is run now when it has not been.

    LockError when that cannot be done yet, ManifestError when the artifact has no wheels.
    """
    from assembler.build.harvest import bundle_entries
    from assembler.steps import compiling

    store = assembly.session.store
    plan = assembly.plan()
    step = plan.step(compile_id(house.layer.scope, house.step))
    if step.key is None:
        raise LockError(f"`{step.name}` cannot be compiled before it is locked", place=house.layer.place)
    record = store.record(step.key)
    if record is None or not store.has(Digest.parse(record["bundle"])):
        compiling.compile_all(assembly, plan, [step])
        record = store.record(step.key) or {}
    bundle = Digest.parse(record["bundle"])
    artifact = house.artifact.partition(".")[2]
    key = key_of("built-wheels", {"bundle": str(bundle), "artifact": artifact})
    kept = store.record(key) or {}
    wheels = [_from_record(each, _blob(store, each)) for each in kept.get("wheels", ())]
    if not wheels or not all(wheel and store.has(wheel.digest) for wheel in wheels):
        made = [_of_entry(store, each) for each in bundle_entries(store, bundle, artifact) if _is_wheel(each)]
        if not made:
            raise ManifestError(f"the artifact `{house.artifact}` has no wheels", place=house.layer.place)
        blobs = [str(wheel.digest) for wheel in made]
        store.put_record(key, {"wheels": [_record(wheel) for wheel in made], "blobs": blobs})
        return tuple(made)
    return tuple(wheel for wheel in wheels if wheel)


def _blob(store: Store, record: Mapping[str, Any]) -> Path:
    return store.blob_path(Digest.from_hex(record["sha256"]))


def _is_wheel(entry: Entry) -> bool:
    return entry.kind == "file" and entry.path.endswith(".whl")


def _of_entry(store: Store, entry: Entry) -> HouseWheel:
    """A wheel of a bundle, as a blob of its own."""
    digest = hashlib.sha256()
    with store.writer() as blob:
        for chunk in _content(entry):
            digest.update(chunk)
            blob.write(chunk)
        found = Digest.from_hex(digest.hexdigest())
        blob.commit(found)
    return house_wheel(store.blob_path(found), found, entry.path.rpartition("/")[2])


def _content(entry: Entry) -> Iterator[bytes]:
    if not isinstance(entry.content, Slice):
        raise LockError(f"expected `{entry.path}` to be a part of a bundle")
    with entry.content.path.open("rb") as file:
        file.seek(entry.content.offset)
        missing = entry.content.size
        while missing and (chunk := file.read(min(CHUNK, missing))):
            missing -= len(chunk)
            yield chunk
