"""Compile steps, and the containers that they and package resolution need."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from assembler.errors import LockError, placed
from assembler.events import Event, Note, StepOutput
from assembler.plan.graph import Plan, Step, toolchain_id, used_compile_steps
from assembler.steps.materialise import base_image, image_for
from assembler.steps.places import source_errors
from assembler.steps.records import input_fields, known
from assembler.steps.side_by_side import SideBySide

if TYPE_CHECKING:
    from assembler.build.budget import Budget
    from assembler.build.container import Container
    from assembler.build.debs import Package
    from assembler.oci.image import Image
    from assembler.steps.assembly import Assembly
    from assembler.steps.session import Session

_AT_ONCE: Final = 4
"""Compile steps: more of them would have few jobs each."""


def resolve_packages(assembly: Assembly, step: str, names: Sequence[str]) -> Mapping[str, Any]:
    """Ask apt, in a container of the base, what these packages mean today."""
    from assembler.build import apt

    session = assembly.session
    title = " ".join(names[:4]) + (" …" if len(names) > 4 else "")
    with (
        placed(_place(assembly, step)),
        session.step(f"lock:{step}", "lock", title) as report,
        base_container(assembly, step) as container,
    ):
        packages = apt.resolve(container, names)
        report.outcome, report.detail = "ok", f"{len(packages)} packages"
    return {"packages": [package.to_json() for package in packages]}


def _place(assembly: Assembly, step: str) -> str:
    """Where packages are asked for: a layer's position, or the file of the compile step."""
    kind, _, name = step.partition(":")
    if kind == "layer":
        return assembly.loaded.layers[int(name)].place
    found = next(one for one in used_compile_steps(assembly.loaded) if toolchain_id(*one[:2]) == step)
    return f"{found[0].digest_place}: compile.{found[1]}.packages"


@contextmanager
def base_container(assembly: Assembly, step: str) -> Iterator[Container]:
    """A container of what this step's packages are installed into."""
    if step.startswith("toolchain:"):
        if assembly.devel is None:
            raise LockError("there is no devel base", place=step)
        image = base_image(assembly.session, assembly.devel)
    else:
        index = int(step.partition(":")[2])
        image = stack_image(assembly, assembly.plan(), index, packages_only=True)
    with assembly.session.buildah.container(image, "resolve") as container:
        yield container


def stack_image(assembly: Assembly, plan: Plan, index: int, *, packages_only: bool) -> str:
    """The name, in buildah's storage, of what layer `index` stands on."""
    return image_for(assembly.session, stack(assembly, plan, index, packages_only=packages_only))


def stack(assembly: Assembly, plan: Plan, index: int, *, packages_only: bool) -> Image:
    """The runtime base with what layer `index` stands on."""
    below = [
        number
        for number, layer in enumerate(assembly.loaded.layers[:index])
        if not packages_only or layer.entry.packages or layer.entry.run
    ]
    if not below:
        return assembly.runtime.image()
    from assembler.oci.image import append

    return append(assembly.runtime.image(), assembly.blobs(plan, below))


def compile_all(assembly: Assembly, plan: Plan, steps: Sequence[Step]) -> None:
    """Run compile steps side by side, since none needs another, and keep their artifacts under their keys.

    What the store has is not run again, nor what a shared cache has: that is fetched. Sources are fetched and
    toolchains installed one after the other, while the steps before compile. When one step fails the others are
    ended.
    """
    steps = [step for step in steps if not _is_there(assembly, step)]
    if not steps:
        return
    at_once = min(len(steps), _AT_ONCE)
    budget = _budget(assembly.session, len(steps), at_once)
    buildah = assembly.session.buildah

    def stop() -> None:
        budget.stop()
        buildah.group.end()

    with SideBySide[None](at_once, assembly.session.stop, stop) as beside:
        for step in steps:
            beside.add(_prepared(assembly, plan, step, budget))


def _is_there(assembly: Assembly, step: Step) -> bool:
    session, key = assembly.session, str(step.key)
    if known(session.store, key):
        return True
    session.shared.ask({key: ("compile",)})
    if not session.shared.bring(key):
        return False
    assembly.cached(step.id, "compile", step.name, key, "from the shared cache")
    return True


def _budget(session: Session, steps: int, at_once: int) -> Budget:
    """What compile steps have together: as many jobs as were asked for, or processors and memory of this host."""
    from assembler.build.budget import Budget
    from assembler.build.node import memory_bytes, processors

    wanted = session.options.jobs
    return Budget(wanted or processors(), None if wanted else memory_bytes(), steps, at_once)


def _prepared(assembly: Assembly, plan: Plan, step: Step, budget: Budget) -> Callable[[], None]:
    """Have the source and the toolchain of a step; what is left to do is compiling."""
    from assembler.build.compile import compile_step
    from assembler.build.sources import fetch_source

    session = assembly.session
    scope, name, description = next(
        found for found in used_compile_steps(assembly.loaded) if step.id == f"compile:{_label(found)}"
    )
    answer = assembly.source_answer(scope, description.source) or {}
    with source_errors(scope, description.source):
        checkout = fetch_source(
            scope.sources[description.source],
            answer,
            scope.directory,
            store=session.store,
            cache=session.options.cache,
            emit=session.emit,
            offline=session.options.offline,
        )
    image = toolchain(assembly, plan, scope_step=toolchain_id(scope, name), wanted=description.packages.apt)
    inputs = input_fields(assembly.source_inputs(scope, description.source))

    def compile_it() -> None:
        with session.step(step.id, "compile", step.name, step.key) as report:
            bundle = compile_step(
                session.buildah,
                session.store,
                description,
                image=image,
                source=checkout.path,
                label=step.name,
                key=str(step.key),
                cache=session.options.cache,
                accelerator=assembly.loaded.manifest.accelerator,
                budget=budget,
                keep=session.options.keep,
                offline=session.options.offline,
                secrets=session.options.secrets,
                emit=partial(_heard, session),
                step=step.id,
            )
            report.detail = f"{bundle.files} files"
        budget.step_ended()
        session.store.put_record(
            str(step.key),
            {
                "bundle": str(bundle.digest),
                "bytes": bundle.size,
                "files": bundle.files,
                **inputs,
            },
        )
        session.shared.keep(str(step.key))

    return compile_it


def _heard(session: Session, event: Event) -> None:
    """Pass an event on; what compiler caches say goes into the result, too."""
    if isinstance(event, Note) and event.facts:
        session.compiler_caches.append(event.facts)
    session.emit(event)


def _label(found: tuple[Any, str, Any]) -> str:
    scope, name, _ = found
    return f"{scope.name}.{name}" if scope.name else name


def toolchain(assembly: Assembly, plan: Plan, *, scope_step: str, wanted: Sequence[str]) -> str:
    """The devel base with a compile step's packages, in buildah's storage; installed once and kept by key."""
    session = assembly.session
    devel = assembly.devel
    if devel is None:
        raise LockError("there is no devel base", place=scope_step)
    if not wanted:
        return base_image(session, devel)
    from assembler.build.container import toolchain_image

    step = plan.step(scope_step)
    packages = assembly.debs.answer(scope_step, lock=True) or ()

    def install(container: Container) -> None:
        install_packages(session, container, packages, wanted, scope_step)

    with session.step(step.id, "toolchain", step.name, step.key) as report:
        name, built = toolchain_image(session.buildah, lambda: base_image(session, devel), str(step.key), install)
        report.outcome = "built" if built else "cached"
        report.detail = f"{len(packages)} packages"
    inputs = input_fields([package.sha256 for package in packages])
    session.store.put_record(str(step.key), {"image": name, **inputs})
    return name


def install_packages(
    session: Session, container: Container, packages: Sequence[Package], wanted: Sequence[str], step: str
) -> None:
    """Fetch the locked .debs and install exactly those."""
    from assembler.build import apt, debs

    paths = debs.fetch(packages, session.store, session.emit, offline=session.options.offline, step=step)
    digest = hashlib.sha256("".join(package.sha256 for package in packages).encode()).hexdigest()
    apt.install(
        container,
        packages,
        paths,
        wanted,
        scratch=session.run.scratch("debs"),
        log=session.run.log(step.replace(":", "-"), digest),
        on_line=lambda line: session.emit(StepOutput(step=step, line=line)),
    )
