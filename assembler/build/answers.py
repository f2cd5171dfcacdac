"""What a command in a container prints, all of it or none of it.

buildah's chroot isolation (seen with 1.28, twice in 150 runs of a busy host) loses now and then what a short
command prints: all of it, with the right exit status. An empty answer of apt or dpkg would be believed, so an
answer counts only with its last line, and a command whose answer is lost is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from assembler.errors import NodeError, StepError
from assembler.process import Completed, exit_name, paste_line

Run: TypeAlias = Callable[[Sequence[str]], Completed]
"""Runs a command in a container, captures its output, and does not mind its exit status."""

_ATTEMPTS: Final = 5
_END: Final = "end-of-answer"
_SCRIPT: Final = f'"$@"; status=$?; echo {_END}; echo {_END} >&2; exit $status'


def answer(run: Run, argv: Sequence[str]) -> Completed:
    """The whole output of a command that changes nothing, or nothing that matters: it may run several times.

    StepError when it fails, with its last lines; NodeError when what it prints never arrives.
    """
    for _ in range(_ATTEMPTS):
        completed = run(["sh", "-c", _SCRIPT, "sh", *argv])
        stdout, found, _ = completed.stdout.rpartition(f"{_END}\n")
        if not found or _END not in completed.stderr:
            continue
        tail = tuple(line for line in completed.tail if line != _END)
        if completed.returncode:
            raise StepError(f"`{paste_line(argv)}` {exit_name(completed.returncode)}", detail=tail)
        return replace(completed, argv=tuple(argv), stdout=stdout, tail=tail)
    raise NodeError("buildah loses the output of commands in containers")
