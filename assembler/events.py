"""Typed progress events. The engine emits, the command line renders; nothing below `cli` prints.

`Emit` is passed down as a plain callable. It may be called from several threads, and must be cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome = Literal["built", "cached", "mounted", "pushed", "pulled", "present", "ok", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A step begins. `step` is unique in a run and names it in later events; `verb` and `name` are for people."""

    step: str
    verb: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """`done_bytes` of `total_bytes` are through; a total of None means that it is not known."""

    step: str
    done_bytes: int
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """One line that a tool printed inside the step, without its newline. It is in the step's log as well."""

    step: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """A step ended well. `detail` is a short fact such as `412 MiB → 131 MiB`."""

    step: str
    verb: str
    name: str
    outcome: Outcome
    seconds: float
    detail: str = ""
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something worth a line that is no step. `level` is `info` or `warning`.

    `facts` has for programs what the text says to people, such as the hits of a compiler cache.
    """

    text: str
    level: Literal["info", "warning"] = "info"
    facts: Mapping[str, str | int] | None = None


Event: TypeAlias = StepStarted | StepProgress | StepOutput | StepFinished | Note
Emit: TypeAlias = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """An `Emit` for callers who do not care."""
