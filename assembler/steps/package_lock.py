"""The lock of .deb packages: what the steps of one assembly ask for, and the exact packages that this means."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from assembler.errors import LockError
from assembler.plan.graph import layer_id, toolchain_id, used_compile_steps
from assembler.steps import compiling

if TYPE_CHECKING:
    from assembler.build.debs import Package
    from assembler.steps.assembly import Assembly


class PackageLock:
    """The packages of one assembly, by the id of the step that wants them: a toolchain's, or a layer's."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly

    @cached_property
    def steps(self) -> Mapping[str, tuple[str, ...]]:
        """Step id → the packages that it asks for."""
        steps: dict[str, tuple[str, ...]] = {}
        for scope, name, step in used_compile_steps(self._assembly.loaded):
            if step.packages.apt:
                steps[toolchain_id(scope, name)] = tuple(step.packages.apt)
        for index, layer in enumerate(self._assembly.loaded.layers):
            if layer.entry.packages:
                steps[layer_id(index)] = tuple(layer.entry.packages.apt)
        return steps

    @property
    def layers(self) -> list[str]:
        """The ids of the steps that make `packages` layers."""
        return [step for step in self.steps if not _is_toolchain(step)]

    def digests(self) -> dict[str, list[str] | None]:
        """Step id → the digests (hexadecimal SHA-256) of its locked packages; None while it is not locked."""
        found = {step: self.answer(step, lock=False) for step in self.steps}
        return {
            step: None if packages is None else [package.sha256 for package in packages]
            for step, packages in found.items()
        }

    def answer(self, step: str, *, lock: bool) -> tuple[Package, ...] | None:
        """The locked packages of a step. Without `lock`, None when they would have to be resolved."""
        from assembler.build.debs import Package

        assembly, wanted = self._assembly, self.steps[step]
        base = assembly.devel if _is_toolchain(step) else assembly.runtime
        if base is None or base.identity is None:
            if not lock:
                return None
            raise LockError("the base is not locked", place=step)
        below = [] if _is_toolchain(step) else self._below(step)
        request = {"base": base.identity, "apt": list(wanted), "below": below, "platform": str(assembly.platform)}
        name = step if _is_toolchain(step) else f"layer:{' '.join(wanted[:1])}"
        name = assembly.locking.name_on(name, assembly.platform)
        if not lock:
            found = assembly.locking.peek("packages", name, request)
        else:
            found = assembly.locking.answer(
                "packages", name, request, lambda: compiling.resolve_packages(assembly, step, wanted)
            )
        return None if found is None else tuple(Package.from_json(value) for value in found["packages"])

    def _below(self, step: str) -> list[Any]:
        """The layers under this one that change which packages there are."""
        index = int(step.partition(":")[2])
        return [
            layer.entry.model_dump(mode="json", exclude_none=True)
            for layer in self._assembly.loaded.layers[:index]
            if layer.entry.packages or layer.entry.run
        ]


def _is_toolchain(step: str) -> bool:
    return step.startswith("toolchain:")
