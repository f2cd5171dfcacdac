"""What a push would move: for each layer that is known already, the way in which it would come to the target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from assembler.oci.image import BlobLayer, Layer
from assembler.oci.reference import Reference
from assembler.plan.plan import Plan, Transfer
from assembler.steps import records, stacking

if TYPE_CHECKING:
    from assembler.steps.assembly import Assembly

_QUESTIONS: Final = 8


def transfers(assembly: Assembly, plan: Plan, targets: Iterable[Reference]) -> tuple[Transfer, ...]:
    """For each target, the base's layers and those of ours that exist; the others come out of the work.

    Asks the targets which blobs they have. RegistryError when one does not answer.
    """
    layers = {layer.descriptor.digest: layer for layer in _layers(assembly, plan)}

    def transfer(item: tuple[Reference, Layer]) -> Transfer:
        target, layer = item
        return _transfer(assembly, target, layer)

    with ThreadPoolExecutor(_QUESTIONS, "ask") as pool:
        return tuple(pool.map(transfer, [(target, layer) for target in targets for layer in layers.values()]))


def _transfer(assembly: Assembly, target: Reference, layer: Layer) -> Transfer:
    session, descriptor, origin = assembly.session, layer.descriptor, layer.origin
    found = Transfer(
        target=str(target),
        digest=str(descriptor.digest),
        size=descriptor.size,
        way="push",
        base=not isinstance(layer, BlobLayer),
    )
    if session.client.has_blob(target, descriptor.digest) is not None:
        return found.by("present", target.name)
    if origin and session.client.neighbours(target, [origin]):
        return found.by("mount", origin.name)
    if origin and not session.store.has(descriptor.digest):
        return found.by("stream", origin.name)
    return found


def _layers(assembly: Assembly, plan: Plan) -> Iterator[Layer]:
    """Layers that are known without making anything."""
    if not plan.work and plan.image.key and (built := stacking.finished(assembly, plan, plan.image.key)):
        yield from built.image.layers
        return
    if plan.step("base:runtime").state == "cached":
        yield from assembly.runtime.image().layers
    for step in plan.layer_steps():
        if step.key and step.state == "cached":
            found = records.layer_from_record(assembly.session.store, step.key, step.name)
            if layer := found or assembly.session.shared.layer(step.key, step.name):
                yield layer
