"""The plan as a value: steps, what they need, their keys, and where the results are of those that are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

StepKind = Literal["base", "toolchain", "compile", "packages", "run", "pack", "image", "index"]
Way = Literal["present", "mount", "stream", "push"]
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
class Transfer:
    """How a layer of `size` bytes would come to a target: it is `present` there, a `mount` from another repository
    of the same registry, a `stream` from another registry (`source`), or a `push` from the store.
    """

    target: str
    digest: str
    size: int
    base: bool
    way: Way
    source: str = ""

    def by(self, way: Way, source: str) -> Transfer:
        """The same layer, by another way."""
        return replace(self, way=way, source=source)

    def to_json(self) -> dict[str, Any]:
        """The transfer as `plan --json` prints it."""
        return {
            "target": self.target,
            "digest": self.digest,
            "size": self.size,
            "base": self.base,
            "way": self.way,
            "source": self.source or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps in an order in which they can run; the last one is the image. `transfers` are those of the layers that
    are known, where it was asked for them.
    """

    manifest: str
    platform: str
    steps: tuple[Step, ...]
    transfers: tuple[Transfer, ...] = ()

    def step(self, identifier: str) -> Step:
        """The step of this id; KeyError when there is none."""
        for step in self.steps:
            if step.id == identifier:
                return step
        raise KeyError(identifier)

    def layer_steps(self, index: int | None = None) -> tuple[Step, ...]:
        """The steps that make layer number `index` of the manifest, lowest first; of all layers when None."""
        return tuple(
            step for step in self.steps if step.layer is not None and (index is None or step.layer == index)
        )

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

    def found(self, where: Callable[[str], str]) -> Plan:
        """The plan with what was found since: `where` says in which place the result of a key is, if in any."""

        def look(step: Step) -> Step:
            place = where(step.key) if step.key and step.state == "todo" else ""
            return replace(step, state="cached", where=place, bytes_download=None) if place else step

        return replace(self, steps=tuple(map(look, self.steps)))

    def to_json(self) -> dict[str, Any]:
        """The plan as `plan --json` prints it."""
        return {
            "manifest": self.manifest,
            "platform": self.platform,
            "key": self.image.key,
            "work": [step.id for step in self.work],
            "steps": [step.to_json() for step in self.steps],
            "transfers": [transfer.to_json() for transfer in self.transfers],
        }
