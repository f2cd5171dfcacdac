"""The plan of an image in two compressions: what both need is done, and shown, once."""

from __future__ import annotations

from dataclasses import replace

from assembler.plan.graph import Plan, Step
from assembler.plan.key import key_of

_COMPILING = ("toolchain", "compile")


def plan_in_both(first: Plan, second: Plan | None = None) -> Plan:
    """One plan of two: the steps of the first, those of the second that are others, and the index of both.

    The second is the gzip image; its own steps have `:gzip` after their id. Without a second, the first itself.
    """
    if second is None:
        return first
    known = {step.id: step for step in first.steps}
    shared = {step.id for step in second.steps if _is_same(step, known[step.id])}
    names = {step.id: step.id if step.id in shared else f"{step.id}:gzip" for step in second.steps}
    others = [
        replace(
            step,
            id=names[step.id],
            name=f"{step.name} (gzip)",
            needs=tuple(names[need] for need in step.needs),
            layer=None,
        )
        for step in second.steps
        if step.id not in shared
    ]
    keys = [first.image.key, second.image.key]
    index = Step(
        id="index",
        kind="index",
        name=first.image.name,
        key=None if None in keys else key_of("index", {"images": keys}),
        needs=(first.image.id, names[second.image.id]),
        state="cached" if first.image.state == second.image.state == "cached" else "todo",
        detail="gzip first, then zstd",
    )
    transfers = (*first.transfers, *[one for one in second.transfers if one not in first.transfers])
    return replace(first, steps=(*first.steps, *others, index), transfers=transfers)


def _is_same(step: Step, other: Step) -> bool:
    """Compile steps and devel bases do not know of compression; other steps are told by their keys."""
    if step.kind in _COMPILING or step.id == "base:devel":
        return True
    return step.key is not None and step.key == other.key
