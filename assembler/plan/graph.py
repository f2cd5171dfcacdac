"""The plan: a printable value that says, before anything runs, which steps there are, under which key, and what
of them is done already.

`build_plan` is pure. What had to be asked of the world (bases, source digests, locked packages, which keys the
store knows) comes in as `Facts`; a fact that is not known yet gives a step without a key, and so do the steps
that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from assembler.manifest.library import BoundLayer, LoadedManifest, Scope
from assembler.manifest.models import CompileStep, LayerEntry
from assembler.plan.key import key_of, subset

StepKind = Literal["base", "toolchain", "compile", "packages", "run", "pack", "image", "index"]
StepState = Literal["cached", "todo", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node of the plan.

    `key` is None while a fact is missing (an unlocked package list, say); `state` is then `unknown`, unless it is
    known all the same that there is work. `needs` names steps that come before. `bytes_download` is what must be
    fetched, None when it is not known.
    """

    id: str
    kind: StepKind
    name: str
    key: str | None
    needs: tuple[str, ...] = ()
    state: StepState = "todo"
    where: str = ""
    detail: str = ""
    bytes_download: int | None = None
    layer: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The step as `plan --json` prints it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "key": self.key,
            "needs": list(self.needs),
            "state": self.state,
            "where": self.where or None,
            "detail": self.detail or None,
            "bytes_download": self.bytes_download,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFact:
    """What is known of a base: its key (an image digest, or the key of what makes it), and how it is called."""

    key: str | None
    name: str
    state: StepState = "cached"
    detail: str = ""
    bytes_download: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the world answered.

    `sources` maps (scope name, source name) to the digest of its content, `files` (scope name, host file) to that
    of a file which a `files` layer takes in. `trees` maps the number of a layer that is copied from a directory of
    this host to its diff ID, which says it all; None stands for one that was never packed before. `packages` maps
    a step id to the SHA-256 digests of its .debs in installation order, None while they are not locked. `images`
    maps the number of a layer to the image that it copies out of.
    """

    platform: str
    runtime: BaseFact
    devel: BaseFact | None
    sources: Mapping[tuple[str, str], str | None]
    files: Mapping[tuple[str, str], str]
    trees: Mapping[int, str | None]
    packages: Mapping[str, Sequence[str] | None]
    compressor: str
    images: Mapping[int, BaseFact] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    known: Callable[[str], bool] = lambda _key: False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in an order in which they can run; the last one is the image."""

    manifest: str
    platform: str
    steps: tuple[Step, ...]

    def step(self, identifier: str) -> Step:
        """The step of this id; KeyError when there is none."""
        for step in self.steps:
            if step.id == identifier:
                return step
        raise KeyError(identifier)

    @property
    def image(self) -> Step:
        """The step that stacks the image."""
        return self.steps[-1]

    @property
    def work(self) -> tuple[Step, ...]:
        """What would have to be done: steps not cached that the image still needs."""
        if self.image.state == "cached":
            return ()
        by_id = {step.id: step for step in self.steps}
        wanted: dict[str, Step] = {}
        queue = [self.image.id]
        while queue:
            step = by_id[queue.pop()]
            if step.state == "cached" or step.id in wanted:
                continue
            wanted[step.id] = step
            queue += step.needs
        return tuple(step for step in self.steps if step.id in wanted)

    def to_json(self) -> dict[str, Any]:
        """The plan as `plan --json` prints it."""
        return {
            "manifest": self.manifest,
            "platform": self.platform,
            "key": self.image.key,
            "work": [step.id for step in self.work],
            "steps": [step.to_json() for step in self.steps],
        }


def toolchain_id(scope: Scope, name: str) -> str:
    """Id of the step that installs a compile step's packages into the devel base."""
    return f"toolchain:{_qualified(scope, name)}"


def compile_id(scope: Scope, name: str) -> str:
    """Id of a compile step."""
    return f"compile:{_qualified(scope, name)}"


def layer_id(index: int) -> str:
    """Id of the step that makes layer number `index`, counted from 0 at the bottom."""
    return f"layer:{index}"


def image_id(facts: Facts, index: int) -> str:
    """Id of the step that has the image which layer number `index` copies out of; layers may share it."""
    first = next(number for number, image in facts.images.items() if image == facts.images[index])
    return f"base:copy-{first}"


def used_compile_steps(loaded: LoadedManifest) -> Iterator[tuple[Scope, str, CompileStep]]:
    """The compile steps that some layer ships something of, each once, in layer order."""
    seen: set[str] = set()
    for layer in loaded.layers:
        if layer.entry.copy_ and layer.entry.copy_.artifact:
            name = layer.entry.copy_.artifact.partition(".")[0]
            identifier = compile_id(layer.scope, name)
            if identifier not in seen:
                seen.add(identifier)
                yield layer.scope, name, layer.scope.compile[name]


def build_plan(loaded: LoadedManifest, facts: Facts) -> Plan:
    """Lay out the steps of one manifest for one platform."""
    steps: list[Step] = [_base_step("runtime", facts.runtime)]
    keys: dict[str, str | None] = {"base:runtime": facts.runtime.key}
    if facts.devel is not None:
        steps.append(_base_step("devel", facts.devel))
        keys["base:devel"] = facts.devel.key
    for index, image in facts.images.items():
        if image_id(facts, index) not in keys:
            steps.append(_base_step(image_id(facts, index).partition(":")[2], image))
            keys[steps[-1].id] = image.key
    for scope, name, compile_step in used_compile_steps(loaded):
        for step in _compile_steps(loaded, facts, scope, name, compile_step, keys):
            steps.append(step)
            keys[step.id] = step.key
    for index, layer in enumerate(loaded.layers):
        step = _layer_step(facts, index, layer, loaded.layers, keys)
        steps.append(step)
        keys[step.id] = step.key
    layer_ids = tuple(layer_id(index) for index in range(len(loaded.layers)))
    needs = ("base:runtime", *layer_ids)
    image_facts = {"settings": facts.settings, "platform": facts.platform, "epoch": loaded.manifest.epoch}
    key = _key("image", needs, keys, image_facts)
    steps.append(_step(facts, "image", "image", loaded.manifest.name, key, needs))
    return Plan(manifest=str(loaded.path), platform=facts.platform, steps=tuple(steps))


def _qualified(scope: Scope, name: str) -> str:
    return f"{scope.name}.{name}" if scope.name else name


def _base_step(role: str, fact: BaseFact) -> Step:
    return Step(
        id=f"base:{role}",
        kind="base",
        name=fact.name,
        key=fact.key,
        state=fact.state if fact.key else "unknown",
        detail=fact.detail or role,
        bytes_download=fact.bytes_download,
    )


def _key(kind: str, needs: Sequence[str], keys: Mapping[str, str | None], facts: Mapping[str, Any]) -> str | None:
    """The key of a step from the keys that it needs; None when one of them is not known."""
    inputs = [keys[need] for need in needs]
    return None if None in inputs else key_of(kind, {"inputs": inputs, **facts})


def _step(
    facts: Facts,
    identifier: str,
    kind: StepKind,
    name: str,
    key: str | None,
    needs: Sequence[str],
    *,
    detail: str = "",
    layer: int | None = None,
) -> Step:
    state: StepState = "unknown" if key is None else "cached" if facts.known(key) else "todo"
    return Step(
        id=identifier,
        kind=kind,
        name=name,
        key=key,
        needs=tuple(needs),
        state=state,
        where="store" if state == "cached" else "",
        detail=detail,
        layer=layer,
    )


def _compile_steps(
    loaded: LoadedManifest,
    facts: Facts,
    scope: Scope,
    name: str,
    step: CompileStep,
    keys: dict[str, str | None],
) -> Iterator[Step]:
    """The toolchain step, where packages are asked for, and the compile step."""
    label = _qualified(scope, name)
    needs: tuple[str, ...] = ("base:devel",)
    if step.packages.apt:
        identifier = toolchain_id(scope, name)
        packages = facts.packages.get(identifier)
        key = None if packages is None else _key("toolchain", needs, keys, {"packages": list(packages)})
        count = f"{len(packages)} packages" if packages is not None else "packages are not locked yet"
        yield _step(facts, identifier, "toolchain", label, key, needs, detail=count)
        keys[identifier] = key
        needs = (identifier,)
    source = facts.sources.get((scope.name, step.source)) if step.source else ""
    accelerator = loaded.manifest.accelerator
    description = step.model_dump(mode="json", exclude={"source", "packages", "jobs_memory", "secrets", "ssh"})
    compile_facts = {
        "step": description,
        "source": source,
        "platform": facts.platform,
        "accelerator": accelerator.model_dump(mode="json") if accelerator else None,
    }
    key = None if source is None else _key("compile", needs, keys, compile_facts)
    yield _step(facts, compile_id(scope, name), "compile", label, key, needs, detail=step.toolchain)


def _layer_step(
    facts: Facts,
    index: int,
    layer: BoundLayer,
    layers: Sequence[BoundLayer],
    keys: Mapping[str, str | None],
) -> Step:
    entry = layer.entry
    identifier = layer_id(index)
    common = {"compressor": facts.compressor}
    if index in facts.trees:
        diff_id = facts.trees[index]
        key = None if diff_id is None else copied_key(facts.compressor, diff_id)
        step = _step(facts, identifier, "pack", layer_name(entry), key, (), layer=index)
        return step if key else replace(step, state="todo", detail="new")
    if entry.packages:
        needs = ("base:runtime", *_earlier(layers, index, packages_only=True))
        packages = facts.packages.get(identifier)
        key = None
        if packages is not None:
            key = _key("packages", needs, keys, {**common, "packages": list(packages)})
        count = f"{len(packages)} packages" if packages is not None else "packages are not locked yet"
        return _step(facts, identifier, "packages", layer_name(entry), key, needs, detail=count, layer=index)
    if entry.run:
        needs = ("base:runtime", *_earlier(layers, index, packages_only=False))
        description = entry.run.model_dump(mode="json")
        key = _key("run", needs, keys, {**common, "run": description, "platform": facts.platform})
        return _step(facts, identifier, "run", layer_name(entry), key, needs, layer=index)
    needs = ()
    content: Any = None
    if entry.files:
        content = [
            {
                **item.model_dump(mode="json", exclude={"from_file"}, exclude_none=True),
                "digest": facts.files[layer.scope.name, item.from_file] if item.from_file else None,
            }
            for item in entry.files
        ]
    elif entry.copy_:
        copy = entry.copy_
        content = subset(copy.model_dump(mode="json"), "artifact", "path", "to", "mode", "user", "group")
        if copy.artifact:
            needs = (compile_id(layer.scope, copy.artifact.partition(".")[0]),)
            content["artifact"] = copy.artifact.partition(".")[2]
        elif copy.source:
            digest = facts.sources.get((layer.scope.name, copy.source))
            if digest is None:
                return _step(facts, identifier, "pack", layer_name(entry), None, needs, layer=index)
            content["source"] = digest
        else:
            needs = (image_id(facts, index),)
    key = _key("pack", needs, keys, {**common, "content": content})
    return _step(facts, identifier, "pack", layer_name(entry), key, needs, layer=index)


def copied_key(compressor: str, diff_id: str) -> str:
    """The key of a layer whose diff ID is known before it is made: of files on this host."""
    return key_of("pack", {"compressor": compressor, "diff_id": diff_id})


def _earlier(layers: Sequence[BoundLayer], index: int, *, packages_only: bool) -> tuple[str, ...]:
    """Layers below that a step in the runtime base sees: for packages only those which can change packages."""
    return tuple(
        layer_id(number)
        for number, layer in enumerate(layers[:index])
        if not packages_only or layer.entry.packages or layer.entry.run
    )


def layer_name(entry: LayerEntry) -> str:
    """What a layer is called in tables and in the image's history.

    It says what the manifest says, without host paths, so that it is the same on every machine.
    """
    if entry.packages:
        return "packages " + " ".join(entry.packages.apt)
    if entry.run:
        return "run " + " ".join(entry.run.command)
    if entry.files:
        paths = [item.path for item in entry.files]
        return "files " + " ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    if entry.copy_:
        image = entry.copy_.image
        what = entry.copy_.artifact or entry.copy_.source or (image.label if image else "")
        path = f"/{entry.copy_.path.lstrip('/')}" if entry.copy_.path else ""
        return f"copy {what}{path} to {entry.copy_.to}"
    return "layer"
