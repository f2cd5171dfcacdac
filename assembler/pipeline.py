"""The public Python API, and the story: load, lock, plan, compile, pack, stack, verify, publish.

    from assembler.pipeline import Request, build
    results = build(Request(manifests=("manifests/llama-cpp.yaml",), push=("localhost:5000/llama:1",)))

Each function takes a `Request`, what is wanted, and `Options`, under which circumstances; events go to `emit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assembler.errors import RegistryError, RequestError, VerifyError
from assembler.events import Emit, Note, ignore
from assembler.manifest.library import find_manifest, load
from assembler.manifest.loaded import LoadedManifest
from assembler.oci.digest import Digest
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.plan.graph import Plan
from assembler.plan.twins import plan_in_both
from assembler.sif.settings import SifSettings
from assembler.steps import publishing, unchanged
from assembler.steps.assembly import Assembly
from assembler.steps.locking import check_updates
from assembler.steps.session import Options, Session
from assembler.steps.stacking import BuiltImage

if TYPE_CHECKING:
    from assembler.manifest.models import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is wanted. `outputs` are `oci:DIR`, `oci-archive:FILE` and the like; `push` are references.

    `attach` are files, `[TYPE=]FILE`, that are pushed with the image as its referrers. `epoch` is the time, in
    seconds since 1970, of manifests that say none.
    `sif` says how the outputs `sif:` and `sqsh:` are wanted.
    """

    manifests: tuple[str, ...]
    sets: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[str, ...] = ()
    push: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    compression: str | None = None
    attach: tuple[str, ...] = ()
    epoch: int | None = None
    sif: SifSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One assembled image: its digest, where it was put, and what that moved.

    `referrers` are what was attached, by digest. `compiler_caches` has one object for each step that compiled with
    one: `step`, `cache`, `hits`, `misses`.
    `shared_cache` counts the results of steps that were `found` in a shared cache, and `written` to one.
    """

    name: str
    digest: Digest
    references: tuple[str, ...]
    outputs: tuple[str, ...]
    built: bool
    bytes_pushed: int = 0
    bytes_pulled: int = 0
    size: int = 0
    referrers: tuple[str, ...] = ()
    compiler_caches: tuple[Mapping[str, str | int], ...] = ()
    shared_cache: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The result as `--json` prints it."""
        return {
            "name": self.name,
            "digest": str(self.digest),
            "references": list(self.references),
            "outputs": list(self.outputs),
            "built": self.built,
            "bytes_pushed": self.bytes_pushed,
            "bytes_pulled": self.bytes_pulled,
            "size": self.size,
            "referrers": list(self.referrers),
            "compiler_caches": [dict(cache) for cache in self.compiler_caches],
            "shared_cache": dict(self.shared_cache),
        }


def build(request: Request, options: Options | None = None, emit: Emit = ignore) -> list[Result]:
    """Assemble every manifest of the request; push and write what was asked for.

    References and credentials are tried before anything is compiled.
    """
    options = options or Options()
    sif = replace(request.sif or SifSettings(), epoch=request.epoch or 0)
    targets = publishing.parse_targets(request.push, request.outputs, len(request.manifests), request.attach, sif)
    loaded = _load(request)
    with Session(options, emit) as session:
        for manifest in loaded:
            publishing.check_platforms(targets, list(_platforms(request, manifest.manifest)))
        publishing.check_targets(session, targets)
        if options.update:
            for manifest in loaded:
                for platform in _platforms(request, manifest.manifest):
                    Assembly(session, manifest, platform).lock()
            check_updates(session)
        return [_build_one(session, request, targets, manifest) for manifest in loaded]


def plan(request: Request, options: Options | None = None, emit: Emit = ignore) -> list[Plan]:
    """The plan of every manifest and platform; only what is cheap is asked, and nothing is made.

    With `push` in the request, also how the layers that are known would come there.
    """
    targets = publishing.parse_targets(request.push, (), len(request.manifests))
    loaded = _load(request)
    with Session(options or Options(), emit) as session:
        return [
            plan_in_both(*[_plan_one(assembly, targets) for assembly in _assemblies(session, manifest, platform)])
            for manifest in loaded
            for platform in _platforms(request, manifest.manifest)
        ]


def _plan_one(assembly: Assembly, targets: publishing.Targets) -> Plan:
    found = assembly.consulted(assembly.plan())
    if not targets.push:
        return found
    from assembler.steps.transfers import transfers

    return replace(found, transfers=transfers(assembly, found, targets.push))


def lock(request: Request, options: Options | None = None, emit: Emit = ignore) -> list[Path]:
    """Resolve and write the lock of every manifest; the paths of the locks. What pins nothing has none."""
    loaded = _load(request)
    paths = []
    with Session(options or Options(), emit) as session:
        for manifest in loaded:
            for platform in _platforms(request, manifest.manifest):
                assembly = Assembly(session, manifest, platform)
                assembly.lock()
                paths.append(assembly.locking.path)
                if not assembly.locking.path.exists():
                    emit(Note(text=f"{manifest.manifest.name}: there is nothing to lock"))
        check_updates(session)
    return [path for path in dict.fromkeys(paths) if path.exists()]


def _load(request: Request) -> list[LoadedManifest]:
    found = [
        load(find_manifest(text), sets=request.sets, sources=request.sources, bases=request.bases).stamped(
            request.epoch
        )
        for text in request.manifests
    ]
    if request.compression is None:
        return found
    changed = {"compression": request.compression}
    return [replace(loaded, manifest=loaded.manifest.model_copy(update=changed)) for loaded in found]


def _assemblies(session: Session, loaded: LoadedManifest, platform: Platform) -> list[Assembly]:
    """One, or with `compression: both` two, in the order in which they are built: the first packs for both."""
    if loaded.manifest.compression != "both":
        return [Assembly(session, loaded, platform)]
    first = Assembly(session, loaded, platform, also="gzip")
    return [first, first.sibling]


def _platforms(request: Request, manifest: Manifest) -> Iterator[Platform]:
    for text in request.platforms or manifest.platforms:
        try:
            yield Platform.parse(text)
        except ValueError as error:
            raise RequestError(str(error), place="--platform") from error


def _build_one(session: Session, request: Request, targets: publishing.Targets, loaded: LoadedManifest) -> Result:
    try:
        return _assembled(session, request, targets, loaded)
    except (RegistryError, VerifyError) as error:
        if not session.shared.is_to_blame(error):
            raise
        session.shared.do_without(error)
    return _assembled(session, request, targets, loaded)


def _assembled(session: Session, request: Request, targets: publishing.Targets, loaded: LoadedManifest) -> Result:
    assemblies = [
        assembly
        for platform in _platforms(request, loaded.manifest)
        for assembly in _assemblies(session, loaded, platform)
    ]
    built: list[BuiltImage] = [assembly.build() for assembly in assemblies]
    published = publishing.publish(session, targets, built)
    session.shared.export(assemblies, built, targets.push)
    references = tuple(str(reference.at(published.digest)) for reference in targets.push)
    result = Result(
        name=loaded.manifest.name,
        digest=published.digest,
        references=references,
        outputs=targets.texts,
        built=any(image.built for image in built),
        bytes_pushed=published.bytes_pushed,
        bytes_pulled=published.bytes_pulled,
        size=_size(built),
        referrers=tuple(map(str, published.referrers)),
        compiler_caches=tuple(session.compiler_caches),
        shared_cache=dict(session.shared.counts),
    )
    session.compiler_caches.clear()
    if not request.attach:  # whether files are still attached is no quick question: it is looked at each time
        facts = request_facts(request, session.options, loaded)
        unchanged.remember(session, facts, assemblies, built, result.to_json())
    return result


def _size(built: Sequence[BuiltImage]) -> int:
    """Bytes of all layers, each counted once."""
    descriptors = [layer.descriptor for image in built for layer in image.image.layers]
    return sum({descriptor.digest: descriptor.size for descriptor in descriptors}.values())


def request_facts(request: Request, options: Options, loaded: LoadedManifest) -> dict[str, Any]:
    """What a remembered result is remembered under, besides the files that were read."""
    return unchanged.request_key(
        manifest=str(loaded.path.absolute()),
        sets=request.sets,
        sources=request.sources,
        bases=request.bases,
        platforms=request.platforms,
        push=request.push,
        outputs=request.outputs,
        compression=request.compression,
        cache_to=options.cache_to,
        epoch=request.epoch,
    )


__all__ = ["Digest", "Options", "Plan", "Reference", "Request", "Result", "build", "lock", "plan"]
