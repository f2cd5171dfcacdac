"""What the end of a buildah command means: the outcome of what it ran, or an error of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from assembler.build import launcher
from assembler.build.noise import command_text, quiet, signal_of, start_failure
from assembler.errors import NodeError, StepError
from assembler.process import Completed, exit_name


def judged(
    argv: Sequence[str], completed: Completed, ending: str, tail: tuple[str, ...], *, check: bool
) -> Completed:
    """The outcome with the command's own status, or the error that it means."""
    if completed.returncode and launcher.PREFIX in ending:
        reason = ending.partition(launcher.PREFIX)[2].strip()
        raise NodeError(
            f"the container cannot be started: {reason}", hint="`assemble doctor` says what is blocked"
        )
    if completed.returncode and (fact := start_failure(ending)):
        raise StepError(fact)
    if completed.returncode == 125:
        raise failure("run", completed)
    number = signal_of(ending) if completed.returncode else 0
    status = 128 + number if number else completed.returncode
    completed = replace(completed, argv=tuple(argv), returncode=status, tail=tail)
    if check and status:
        hint = "it was killed: most likely for want of memory" if status == 137 else None
        raise StepError(f"`{command_text(argv)}` {exit_name(status)}", detail=tail, hint=hint)
    return completed


def failure(verb: str, completed: Completed) -> NodeError:
    """The error of a buildah command that failed by itself."""
    lines = quiet(completed.stderr or "\n".join(completed.tail))
    text = "\n".join(lines)
    hint = None
    if "no space left on device" in text:
        hint = "free some disk: `assemble gc`"
    elif "newuidmap" in text or "insufficient UIDs" in text:
        hint = "`assemble doctor` says how this user gets subordinate ids"
    return NodeError(f"`buildah {verb}` {exit_name(completed.returncode)}", detail=lines, hint=hint)
