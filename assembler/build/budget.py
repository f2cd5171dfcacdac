"""Processors and memory of this host, shared by compile steps that run side by side.

A command that compiles takes its jobs when it begins and gives them back when it ends, so that all steps together
never have more than fit. With N steps under way it gets an N-th; never less than two jobs where there are two, for
a step that compiles one file after the other while processors wait is worse than one that waits for its turn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from assembler.process import StoppedError

_LEAST: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class JobNeeds:
    """What one job needs: processors, and memory in bytes."""

    processors: int = 1
    memory: int = 0


class Budget:
    """What `steps` compile steps have together, of which `at_once` are under way. `memory` None: nobody looks at
    it, since the user said how many jobs there are to be.
    """

    def __init__(self, processors: int, memory: int | None, steps: int = 1, at_once: int | None = None) -> None:
        self._processors = max(1, processors)
        self._memory = memory
        self._free_processors = self._processors
        self._free_memory = memory or 0
        self._steps = steps
        self._at_once = at_once or steps
        self._leases = 0
        self._stopped = False
        self._change = threading.Condition()

    def most(self, needs: JobNeeds) -> int:
        """How many such jobs fit when nobody else runs any; at least one."""
        return self._fitting(self._processors, self._memory or 0, needs)

    def _fitting(self, processors: int, memory: int, needs: JobNeeds) -> int:
        fit = processors // needs.processors
        if self._memory is not None and needs.memory:
            fit = min(fit, memory // needs.memory)
        return max(1, fit)

    @contextmanager
    def lease(self, needs: JobNeeds, most: int) -> Iterator[int]:
        """Have jobs, `most` at the most, while the block runs. StoppedError when the run ends meanwhile."""
        with self._change:
            self._change.wait_for(lambda: self._stopped or self._can_begin(needs, most))
            if self._stopped:
                raise StoppedError
            jobs = self._share(needs, most)
            processors, memory = jobs * needs.processors, jobs * needs.memory
            self._free_processors -= processors
            self._free_memory -= memory
            self._leases += 1
        try:
            yield jobs
        finally:
            with self._change:
                self._free_processors += processors
                self._free_memory += memory
                self._leases -= 1
                self._change.notify_all()

    def _can_begin(self, needs: JobNeeds, most: int) -> bool:
        if not self._leases:
            return True
        least = min(_LEAST, most, self.most(needs))
        free = self._free_processors >= least * needs.processors
        return free and (self._memory is None or self._free_memory >= least * needs.memory)

    def _share(self, needs: JobNeeds, most: int) -> int:
        fit = self._fitting(self._free_processors, self._free_memory, needs)
        under_way = max(1, min(self._steps, self._at_once))
        share = max(_LEAST, self._processors // needs.processors // under_way)
        return max(1, min(most, fit, share))

    def step_ended(self) -> None:
        """One step less is under way."""
        with self._change:
            self._steps -= 1
            self._change.notify_all()

    def stop(self) -> None:
        """Nobody gets jobs any more."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
