"""One manifest for one platform: its bases, its lock, its plan, and the image that comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assembler.errors import LockError, ManifestError
from assembler.manifest.library import load
from assembler.manifest.loaded import LoadedManifest, Scope
from assembler.oci.image import BlobLayer, Image, append
from assembler.oci.platform import Platform
from assembler.pack.compress import Compression, other_than
from assembler.pack.tarball import compressor_id
from assembler.plan.graph import (
    Facts,
    Plan,
    Step,
    build_plan,
    used_compile_steps,
)
from assembler.plan.key import key_of
from assembler.plan.settings import run_facts, settings_facts
from assembler.steps import bases, compiling, host_files, image_files, layers, packing, records, stacking
from assembler.steps.bases import BaseHandle
from assembler.steps.locking import locking_of
from assembler.steps.package_lock import PackageLock
from assembler.steps.places import source_errors
from assembler.steps.stacking import BuiltImage

if TYPE_CHECKING:
    from assembler.registry.results import Kind
    from assembler.steps.sending import Sending
    from assembler.steps.session import Session
    from assembler.steps.wheels import WheelLayers
    from assembler.tree.directory import TreeState

_MAX_BASE_DEPTH = 8


class Assembly:
    """The work on one loaded manifest, platform and compression. Bases that are manifests have assemblies of
    their own.

    `also` is a second compression that layers are packed in while they are made, because the `sibling`, which is
    the same image in that compression, is wanted next.
    """

    def __init__(
        self,
        session: Session,
        loaded: LoadedManifest,
        platform: Platform,
        depth: int = 0,
        *,
        compression: Compression | None = None,
        also: Compression | None = None,
    ) -> None:
        if depth > _MAX_BASE_DEPTH:
            raise ManifestError("bases are nested too deep", place=str(loaded.path))
        self.session = session
        self.loaded = loaded
        self.platform = platform
        own = loaded.manifest.compression
        self.compression: Compression = compression or ("gzip" if own == "gzip" else "zstd")
        self.also = also
        self.locking = locking_of(session, loaded)
        self._depth = depth
        self.layers: dict[str, BlobLayer] = {}
        self.nested: list[Assembly] = []
        self.trees: dict[tuple[str, str], TreeState] = {}

    # what is known

    @property
    def is_base(self) -> bool:
        """Is this the base of another image, rather than what was asked for?"""
        return self._depth > 0

    @cached_property
    def sibling(self) -> Assembly:
        """The same image in the other compression."""
        other = other_than(self.compression)
        sibling = Assembly(self.session, self.loaded, self.platform, self._depth, compression=other)
        sibling.trees, sibling.sibling = self.trees, self
        return sibling

    @cached_property
    def sibling_plan(self) -> Plan:
        """Its plan, as it is when it is first asked for."""
        return self.sibling.plan(exact=False)

    @property
    def sending(self) -> Sending | None:
        """Where the layers go while they are packed. What a base is made of may be needed here only."""
        return self.session.sending if self._depth == 0 else None

    @cached_property
    def runtime(self) -> BaseHandle:
        """The runtime base."""
        return bases.base_handle(self, "runtime", self.loaded.manifest.runtime)

    @cached_property
    def devel(self) -> BaseHandle | None:
        """The devel base, when something is compiled."""
        if not any(True for _ in used_compile_steps(self.loaded)):
            return None
        base = self.loaded.manifest.devel
        if base is None:
            scope, name, _ = next(used_compile_steps(self.loaded))
            raise ManifestError(
                f"`{scope.recipe or self.loaded.manifest.name}` compiles `{name}`, but there is no base for that",
                place=f"{self.loaded.path}: devel",
                hint="add `devel:` to the manifest, or pass `--base devel=REFERENCE`",
            )
        return bases.base_handle(self, "devel", base)

    @cached_property
    def images(self) -> Mapping[int, BaseHandle]:
        """The images that `copy` layers take files out of, by the number of the layer."""
        return image_files.image_handles(self)

    @property
    def handles(self) -> tuple[BaseHandle, ...]:
        """Every image that this one is made with: bases, and what is copied out of."""
        return tuple(handle for handle in (self.runtime, self.devel, *self.images.values()) if handle)

    def base_of(
        self,
        manifest: Path,
        sets: Mapping[str, str],
        compression: Compression | None,
        also: Compression | None,
        epoch: int | None,
    ) -> Assembly:
        """The assembly of another manifest that this image stands on, or is compiled in."""
        loaded = load(manifest, sets=sets).stamped(epoch)
        nested = Assembly(self.session, loaded, self.platform, self._depth + 1, compression=compression, also=also)
        self.nested.append(nested)
        return nested

    @property
    def identity(self) -> str | None:
        """What this image is made of, for the locks of what stands on it; None while something is not locked."""
        digests = self.debs.digests()
        if self.runtime.identity is None or any(found is None for found in digests.values()):
            return None
        layers = [
            layer.entry.model_dump(mode="json", exclude_none=True)
            for layer in self.loaded.layers
            if layer.entry.run or layer.entry.files
        ]
        return key_of("identity", {"base": self.runtime.identity, "packages": digests, "layers": layers})

    # locking

    @cached_property
    def debs(self) -> PackageLock:
        """The packages that its steps ask for, and what the lock says of them."""
        return PackageLock(self)

    def source_answer(self, scope: Scope, name: str, *, lock: bool = True) -> Mapping[str, Any] | None:
        """The locked answer for a source; an empty one for a path, which is keyed by content."""
        from assembler.build import sources

        source = scope.sources[name]
        if source.path:
            return {}
        label = f"{scope.name}.{name}" if scope.name else name
        request = sources.request_of(source)
        if not lock:
            return self.locking.peek("source", label, request)

        def resolve() -> Mapping[str, Any]:
            with (
                source_errors(scope, name),
                self.session.step(f"lock:{label}", "lock", label) as report,
            ):
                answer = sources.lock_source(
                    source,
                    scope.directory,
                    cache=self.session.options.cache,
                    store=self.session.store,
                    emit=self.session.emit,
                    offline=self.session.options.offline,
                )
                report.outcome = "ok"
            return answer

        return self.locking.answer("source", label, request, resolve)

    def source_inputs(self, scope: Scope, name: str) -> tuple[str, ...]:
        """The digest (hexadecimal SHA-256) of the archive that a source is, if it is one."""
        digest = (self.source_answer(scope, name) or {}).get("sha256")
        return (digest,) if isinstance(digest, str) else ()

    def lock(self) -> None:
        """Make the lock complete, asking the world for what it does not answer, and save it.

        Resolving packages needs the base that they are installed into, which is made for it where it has to be.
        """
        unknown = [handle for handle in self.handles if handle.identity is None or handle.fact.key is None]
        for handle in unknown:
            handle.image()
        if unknown:  # what is known of them now was not when they were looked at first
            for name in ("runtime", "devel", "images"):
                self.__dict__.pop(name, None)
            self.nested.clear()
        for scope, name in self.used_sources():
            self.source_answer(scope, name)
        for step in self.debs.steps:
            self.debs.answer(step, lock=True)
        if self.wheels:
            self.wheels.lock()
        self.locking.save(prune=not self.loaded.overrides)

    @cached_property
    def wheels(self) -> WheelLayers | None:
        """The layers of wheels; None when there are none."""
        if not any(layer.entry.wheels for layer in self.loaded.layers):
            return None
        from assembler.steps.wheels import WheelLayers

        return WheelLayers(self)

    def used_sources(self) -> list[tuple[Scope, str]]:
        """Every source that a compile step or a copied layer reads, each once."""
        used: dict[tuple[str, str], tuple[Scope, str]] = {}
        for scope, _, step in used_compile_steps(self.loaded):
            if step.source:
                used[scope.name, step.source] = (scope, step.source)
        for layer in self.loaded.layers:
            if layer.entry.copy_ and layer.entry.copy_.source:
                used[layer.scope.name, layer.entry.copy_.source] = (layer.scope, layer.entry.copy_.source)
        return list(used.values())

    # the plan

    def plan(self, *, exact: bool = True) -> Plan:
        """The plan as far as the lock and the store can tell it without asking anyone.

        Unless `exact`, no file is read to find the key of a layer that cannot be in the store.
        """
        return build_plan(self.loaded, self._facts(exact=exact))

    def _facts(self, *, exact: bool) -> Facts:
        return Facts(
            platform=str(self.platform),
            runtime=self.runtime.fact,
            devel=self.devel.fact if self.devel else None,
            sources=self._source_facts(),
            files=layers.taken_files(self.loaded),
            trees=host_files.tree_facts(self, exact=exact),
            packages=self.debs.digests(),
            compressor=compressor_id(self.compression),
            images={index: handle.fact for index, handle in self.images.items()},
            wheels=self.wheels.facts() if self.wheels else {},
            settings={
                "image": settings_facts(self.loaded.manifest.image),
                "run": run_facts(self.loaded.manifest),
                "name": self.loaded.manifest.name,
                **({"base": dict(self.runtime.annotations)} if self.runtime.annotations else {}),
            },
            where=self._where,
        )

    def _where(self, key: str) -> str:
        """In which place the result of a key is; nothing when it is in none, or was not asked for."""
        return "store" if records.known(self.session.store, key) else self.session.shared.place_of(key)

    def consulted(self, plan: Plan) -> Plan:
        """The plan with what the shared cache has of the work: the image, else its layers, else what they need."""
        if not self.session.shared.is_read:
            return plan

        def ask(kinds: Sequence[Kind], steps: Iterable[Step]) -> Plan:
            self.session.shared.ask({step.key: kinds for step in steps if step.key})
            return plan.found(self._where)

        plan = ask(["image"], [plan.image] if plan.work else [])
        plan = ask(["layer"], [step for step in plan.work if step.layer is not None])
        plan = ask(["compile"], [step for step in plan.work if step.kind == "compile"])
        return ask(["image", "layer"], [step for step in plan.work if step.kind == "base"])

    def _source_facts(self) -> dict[tuple[str, str], str | None]:
        """Digests of the sources; of a directory of this host when it is compiled only."""
        from assembler.build import sources

        compiled = {(scope.name, step.source) for scope, _, step in used_compile_steps(self.loaded)}
        digests: dict[tuple[str, str], str | None] = {}
        for scope, name in self.used_sources():
            if scope.sources[name].path:
                if (scope.name, name) in compiled:
                    digests[scope.name, name] = self.tree(scope, name).digest
                continue
            answer = self.source_answer(scope, name, lock=False)
            digests[scope.name, name] = (
                None if answer is None else sources.source_digest(scope.sources[name], answer, scope.directory)
            )
        return digests

    def tree(self, scope: Scope, name: str) -> TreeState:
        """The content of a path source that is compiled, as it was when this assembly first looked at it."""
        if (scope.name, name) not in self.trees:
            from assembler.build.checkout import tree_path
            from assembler.tree.directory import tree_state

            source = scope.sources[name]
            with source_errors(scope, name):
                root = tree_path(source, scope.directory)
                state = tree_state(root, ignore=source.ignore, cache=self.session.stat_cache)
            self.trees[scope.name, name] = state
        return self.trees[scope.name, name]

    # the work

    def build(self) -> BuiltImage:
        """Do what the plan says and return the image; nothing is done for what the store has."""
        # The key of a layer that is new comes out of its packing; but a twin's key is asked for before that.
        # Nor can a shared cache be asked for a layer without its key.
        exact = self.loaded.manifest.compression == "both" or self.session.shared.is_read
        plan = self.consulted(self.plan(exact=exact))
        if any(step.kind not in ("base", "pack", "image") for step in plan.work):
            self.session.ready()
        if not self._is_locked(exact=exact):
            self.session.ready()
            self.lock()
            plan = self.consulted(self.plan(exact=exact))
        found = stacking.finished(self, plan, plan.image.key) if plan.image.key else None
        if found is not None:
            return found
        with self.wheels.fetching(plan) if self.wheels else nullcontext():
            needed = {need for step in plan.work for need in step.needs}
            compiling.compile_all(
                self, plan, [step for step in plan.steps if step.kind == "compile" and step.id in needed]
            )
            for beside, steps in groupby(plan.work, self._is_packed_beside_others):
                if beside:
                    self.layers |= packing.make_layers(self, plan, list(steps))
                    continue
                for step in steps:
                    if step.layer is not None and step.id not in self.layers:
                        self.layers[step.id] = packing.make_layer(self, plan, step)
                        if step.key is None:
                            plan = self.plan(exact=False)
        key = plan.image.key
        if key is None:
            missing = ", ".join(step.id for step in plan.steps if step.key is None)
            raise LockError(f"these steps have no key after locking: {missing}", place=str(self.loaded.path))
        return stacking.stack(self, plan, key)

    def _is_packed_beside_others(self, step: Step) -> bool:
        return self.wheels is not None and self.wheels.is_of_locked_wheels(step) and step.id not in self.layers

    def _is_locked(self, *, exact: bool) -> bool:
        """Does the lock know all that keys stand on? Layers whose key comes out of the packing do not count."""
        facts = self._facts(exact=exact)
        stand_ins = {index: diff_id or "new" for index, diff_id in facts.trees.items()}
        return build_plan(self.loaded, replace(facts, trees=stand_ins)).image.key is not None

    def blobs(self, plan: Plan, layers: Iterable[int] | None = None) -> list[BlobLayer]:
        """The blobs of these layers, of all when None; those that are not in the store are made now."""
        steps = plan.layer_steps()
        wanted = None if layers is None else set(layers)
        return [self._blob(plan, step) for step in steps if wanted is None or step.layer in wanted]

    def _blob(self, plan: Plan, step: Step) -> BlobLayer:
        if step.id not in self.layers:
            key = str(step.key)
            found = records.layer_from_record(self.session.store, key, step.name)
            if found is not None:
                self.cached(step.id, "pack", step.name, key)
            elif found := self.session.shared.layer(key, step.name):
                self.cached(step.id, "pack", step.name, key, f"from {found.origin.name}" if found.origin else "")
            self.layers[step.id] = found or packing.make_layer(self, plan, step)
        return self.layers[step.id]

    def stack(self, plan: Plan) -> Image:
        """The base with the layers on it."""
        return append(self.runtime.image(), self.blobs(plan), epoch=self.loaded.manifest.epoch)

    def cached(self, identifier: str, verb: str, name: str, key: str, detail: str = "") -> None:
        """Report a step whose result is there."""
        with self.session.step(identifier, verb, name, key) as report:
            report.outcome, report.detail = "cached", detail
