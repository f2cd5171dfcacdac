"""The plan: a printable value that says, before anything runs, which steps there are, under which key, and what
of them is done already.

`build_plan` is pure. What had to be asked of the world (bases, source digests, locked packages, which keys the
store knows) comes in as `Facts`; a fact that is not known yet gives a step without a key, and so do the steps
that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from assembler.manifest.loaded import BoundLayer, LoadedManifest, Scope
from assembler.manifest.models import CompileStep, LayerEntry
from assembler.plan.key import key_of, subset
from assembler.plan.names import compile_id, layer_id, layer_name, qualified, toolchain_id, wheel_layer_id
from assembler.plan.plan import Plan, Step, StepKind, StepState

__all__ = [
    "BaseFact",
    "Facts",
    "Plan",
    "Step",
    "StepKind",
    "StepState",
    "WheelFact",
    "artifact_of",
    "build_plan",
    "compile_id",
    "layer_id",
    "layer_name",
    "toolchain_id",
    "used_compile_steps",
    "wheel_layer_id",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFact:
    """What is known of a base: its key (an image digest, or the key of what makes it), and how it is called."""

    key: str | None
    name: str
    state: StepState = "cached"
    detail: str = ""
    bytes_download: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFact:
    """One layer of Python packages: its name in ids, its title for people, what decides its bytes as JSON, and how
    much of it is to be fetched.

    `needs` are the compile steps whose wheels are in it.
    """

    name: str
    title: str
    facts: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    detail: str = ""
    bytes_download: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the world answered.

    `sources` maps (scope name, source name) to the digest of its content, `files` (scope name, host file) to that
    of a file which a `files` layer takes in. `trees` maps the number of a layer that is copied from a directory of
    this host to its diff ID, which says it all; None stands for one that was never packed before. `packages` maps
    a step id to the SHA-256 digests of its .debs in installation order, None while they are not locked. `images`
    maps the number of a layer to the image that it copies out of. `wheels` maps the number of a `wheels` layer to
    the layers of the image that it becomes, none or many, None while they are not locked. `where` says in which
    place the result of a key is, and nothing when it is in none.
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
    wheels: Mapping[int, Sequence[WheelFact] | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    where: Callable[[str], str] = lambda _key: ""


def artifact_of(entry: LayerEntry) -> str | None:
    """`step.artifact` of the compile step that a layer ships something of."""
    if entry.copy_:
        return entry.copy_.artifact
    return entry.wheels.artifact if entry.wheels else None


def image_id(facts: Facts, index: int) -> str:
    """Id of the step that has the image which layer number `index` copies out of; layers may share it."""
    first = next(number for number, image in facts.images.items() if image == facts.images[index])
    return f"base:copy-{first}"


def used_compile_steps(loaded: LoadedManifest) -> Iterator[tuple[Scope, str, CompileStep]]:
    """The compile steps that some layer ships something of, each once, in layer order."""
    seen: set[str] = set()
    for layer in loaded.layers:
        if artifact := artifact_of(layer.entry):
            name = artifact.partition(".")[0]
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
    layers: list[Step] = []
    for index, layer in enumerate(loaded.layers):
        if layer.entry.wheels:
            made = _wheel_steps(facts, index, layer.entry, keys)
        else:
            made = [_layer_step(facts, index, layer, layers, keys)]
        layers += made
        keys |= {step.id: step.key for step in made}
    steps += layers
    needs = ("base:runtime", *[step.id for step in layers])
    image_facts = {
        "settings": {**facts.settings, "names": [step.name for step in layers]},
        "platform": facts.platform,
        "epoch": loaded.manifest.epoch,
    }
    key = _key("image", needs, keys, image_facts)
    steps.append(_step(facts, "image", "image", loaded.manifest.name, key, needs))
    return Plan(manifest=str(loaded.path), platform=facts.platform, steps=tuple(steps))


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
    where = "" if key is None else facts.where(key)
    state: StepState = "unknown" if key is None else "cached" if where else "todo"
    return Step(
        id=identifier,
        kind=kind,
        name=name,
        key=key,
        needs=tuple(needs),
        state=state,
        where=where,
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
    label = qualified(scope, name)
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
    not_in_key = {"source", "packages", "jobs_memory", "compiler_cache", "secrets", "ssh"}
    description = step.model_dump(mode="json", exclude=not_in_key)
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
    below: Sequence[Step],
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
        needs = ("base:runtime", *_earlier(below, packages_only=True))
        packages = facts.packages.get(identifier)
        key = None
        if packages is not None:
            key = _key("packages", needs, keys, {**common, "packages": list(packages)})
        count = f"{len(packages)} packages" if packages is not None else "packages are not locked yet"
        return _step(facts, identifier, "packages", layer_name(entry), key, needs, detail=count, layer=index)
    if entry.run:
        needs = ("base:runtime", *_earlier(below, packages_only=False))
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


def _earlier(below: Sequence[Step], *, packages_only: bool) -> tuple[str, ...]:
    """Layers below that a step in the runtime base sees: for packages only those which can change packages."""
    return tuple(step.id for step in below if not packages_only or step.kind in ("packages", "run"))


def _wheel_steps(facts: Facts, index: int, entry: LayerEntry, keys: Mapping[str, str | None]) -> list[Step]:
    """The layers that a `wheels` entry becomes; one step without a key while they are not locked."""
    groups = facts.wheels.get(index)
    if groups is None:
        detail = "wheels are not locked yet"
        return [_step(facts, layer_id(index), "pack", layer_name(entry), None, (), detail=detail, layer=index)]
    steps = []
    for group in groups:
        key = _key("wheels", group.needs, keys, {"compressor": facts.compressor, "wheels": dict(group.facts)})
        identifier = wheel_layer_id(index, group.name)
        name = f"wheels {group.title}"
        step = _step(facts, identifier, "pack", name, key, group.needs, detail=group.detail, layer=index)
        missing = group.bytes_download if step.state != "cached" else 0
        steps.append(replace(step, bytes_download=missing or None))
    return steps
