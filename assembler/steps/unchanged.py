"""The short way for a request whose inputs have not changed: remembered results, checked, not trusted.

After a build the result is remembered together with what it was made from: every file read (by content), every
source tree (by fingerprint), every blob that must be in the store. The next time, if all of that still holds and
each target registry still names the very digest under the tag, there is nothing to do, and nothing heavy is
imported to find that out: only the standard library and modules that do the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assembler import __version__

if TYPE_CHECKING:
    from assembler.steps.assembly import Assembly
    from assembler.steps.session import Session
    from assembler.steps.stacking import BuiltImage

_FORMAT = 3


def request_key(
    *,
    manifest: str,
    sets: Mapping[str, str],
    sources: Mapping[str, str],
    bases: Mapping[str, str],
    platforms: Sequence[str],
    push: Sequence[str],
    outputs: Sequence[str],
    compression: str | None,
    cache_to: Sequence[str] = (),
    epoch: int | None = None,
) -> dict[str, Any]:
    """The request as JSON; equal requests about equal inputs have equal results."""
    return {
        "format": _FORMAT,
        "version": __version__,
        "manifest": manifest,
        "sets": dict(sets),
        "sources": {name: str(Path(path).absolute()) for name, path in sources.items()},
        "bases": dict(bases),
        "platforms": list(platforms),
        "push": list(push),
        "outputs": list(outputs),
        "compression": compression,
        "cache_to": list(cache_to),
        "epoch": epoch,
    }


def memory_path(cache: Path, facts: Mapping[str, Any]) -> Path:
    """Where the result of this request is remembered."""
    text = json.dumps(facts, sort_keys=True)
    return cache / "memory" / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.json"


def remember(
    session: Session,
    facts: Mapping[str, Any],
    assemblies: Sequence[Assembly],
    built: Sequence[BuiltImage],
    result: Mapping[str, Any],
) -> None:
    """Keep the result of a request, unless something in it cannot be checked cheaply later."""
    from assembler.oci.layout import write_atomically

    path = memory_path(session.options.cache, facts)
    inputs = _inputs(assemblies, built)
    if inputs is None or facts["outputs"]:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({**inputs, "result": dict(result)}).encode())


def _inputs(assemblies: Sequence[Assembly], built: Sequence[BuiltImage]) -> dict[str, Any] | None:
    """Files, trees and blobs that the assemblies stand on; None when a tree is too young to be trusted."""
    files: dict[str, str] = {}
    trees: list[list[Any]] = []
    blobs: set[str] = set()
    for assembly in assemblies:
        for path in _files(assembly):
            files[str(path.absolute())] = hashlib.sha256(path.read_bytes()).hexdigest()
        for root, ignored, fingerprint in _trees(assembly):
            if not fingerprint:
                return None
            trees.append([str(root), list(ignored), fingerprint])
    for image in built:
        blobs.update(_blobs(image))
    keys = [str(assembly.plan().image.key) for assembly in assemblies]
    return {"files": files, "trees": trees, "blobs": sorted(blobs), "keys": keys}


def _files(assembly: Assembly) -> Iterator[Path]:
    """Every file whose content went in: manifests, recipes, locks, files taken in; those of bases too."""
    yield from assembly.loaded.files
    yield from assembly.locking.files
    for handle in assembly.handles:
        yield from handle.files
    if assembly.wheels:
        yield from assembly.wheels.files
    for nested in assembly.nested:
        yield from _files(nested)


def _trees(assembly: Assembly) -> Iterator[tuple[Path, tuple[str, ...], str]]:
    """(root, ignore rules, fingerprint) of every path source, the fingerprint empty where it may not be kept."""
    from assembler.steps.host_files import look_at
    from assembler.tree.fingerprint import survey

    for scope, name in assembly.used_sources():
        source = scope.sources[name]
        if source.path:
            look = look_at(assembly, scope, name)
            yield look.root.absolute(), source.ignore, look.survey.fingerprint if look.survey.settled else ""
    if assembly.wheels:
        from assembler.steps.wheelhouses import PATTERNS

        for directory in assembly.wheels.wheelhouses:
            seen = survey(directory, ignore=PATTERNS)
            yield directory.absolute(), PATTERNS, seen.fingerprint if seen.settled else ""
    for nested in assembly.nested:
        yield from _trees(nested)


def _blobs(built: BuiltImage) -> Iterator[str]:
    """Digests that must be in the store for the result to be there. Not those of layers that a cache has."""
    from assembler.oci.image import BlobLayer

    yield str(built.descriptor.digest)
    yield str(built.image.manifest()[0].config.digest)
    for layer in built.image.layers:
        if isinstance(layer, BlobLayer) and layer.origin is None:
            yield str(layer.descriptor.digest)


def recall(cache: Path, facts: Mapping[str, Any], insecure: Sequence[str] = ()) -> dict[str, Any] | None:
    """The remembered result, when everything that it stands on still holds; else None."""
    try:
        memory = json.loads(memory_path(cache, facts).read_bytes())
        if not _holds(cache, memory):
            return None
        result = memory["result"]
        if not all(_still_pushed(text, result["digest"], insecure) for text in facts["push"]):
            return None
        _mark_used(cache, facts, memory["keys"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    nothing = {"built": False, "bytes_pushed": 0, "bytes_pulled": 0, "compiler_caches": []}
    return {**result, **nothing, "shared_cache": {"found": 0, "written": 0}}


def _mark_used(cache: Path, facts: Mapping[str, Any], keys: Sequence[str]) -> None:
    """What is relied on every day is not old, though nobody looks into the store for it: see `assembler.gc`."""
    records = [cache / "store" / "keys" / key[:2] / f"{key}.json" for key in keys]
    for path in [memory_path(cache, facts), *records]:
        with contextlib.suppress(OSError):
            os.utime(path)


def _holds(cache: Path, memory: Mapping[str, Any]) -> bool:
    from assembler.errors import AssembleError
    from assembler.tree.fingerprint import fingerprint

    blobs = cache / "store" / "blobs" / "sha256"
    if not all((blobs / digest.partition(":")[2]).exists() for digest in memory["blobs"]):
        return False
    for path, digest in memory["files"].items():
        if hashlib.sha256(Path(path).read_bytes()).hexdigest() != digest:
            return False
    try:
        return all(fingerprint(Path(root), ignore=ignored) == before for root, ignored, before in memory["trees"])
    except AssembleError:
        return False


def _still_pushed(text: str, digest: str, insecure: Sequence[str]) -> bool:
    from assembler.oci.reference import Reference
    from assembler.registry.peek import peek_digest

    reference = Reference.parse(text)
    return peek_digest(reference, insecure) == digest
