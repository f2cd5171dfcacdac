"""What buildah adds to a command's output: taken out for people, read for what it says about the end.

The log keeps every line as it came.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from assembler.process import TAIL_LINES

_SIGNALS: Final = {
    "hangup": signal.SIGHUP,
    "interrupt": signal.SIGINT,
    "quit": signal.SIGQUIT,
    "illegal instruction": signal.SIGILL,
    "trace/breakpoint trap": signal.SIGTRAP,
    "aborted": signal.SIGABRT,
    "bus error": signal.SIGBUS,
    "floating point exception": signal.SIGFPE,
    "killed": signal.SIGKILL,
    "user defined signal 1": signal.SIGUSR1,
    "segmentation fault": signal.SIGSEGV,
    "user defined signal 2": signal.SIGUSR2,
    "broken pipe": signal.SIGPIPE,
    "alarm clock": signal.SIGALRM,
    "terminated": signal.SIGTERM,
    "CPU time limit exceeded": signal.SIGXCPU,
    "file size limit exceeded": signal.SIGXFSZ,
    "virtual timer expired": signal.SIGVTALRM,
    "profiling timer expired": signal.SIGPROF,
    "power failure": signal.SIGPWR,
    "bad system call": signal.SIGSYS,
}
"""Signals as Go writes them (others are `signal N`); buildah is written in Go, and reports status 1 for all."""

_SIGNAL_NAME: Final = "|".join([*map(re.escape, _SIGNALS), r"signal \d+"])
_ENDINGS: Final = re.compile(
    rf"(process (exited|failed to start) with error: .*)?subprocess exited (with status \d+|on ({_SIGNAL_NAME}))$"
    r"|^Error: (while running runtime: )?exit status \d+$"
    r'|^time="[^"]*" level=(warning|error) msg=.*\b(cni|CNI)\b.*$'
)
_SIGNAL: Final = re.compile(rf"subprocess exited on ({_SIGNAL_NAME})$", re.MULTILINE)
_NOT_FOUND: Final = re.compile(r'exec: "([^"]+)": (executable file not found in|stat [^:]+: no such file)')
_NOT_STARTED: Final = re.compile(
    r"process failed to start with error: fork/exec ([^:\n]+): ([a-z ]+?)(?=process|$)"
)
_MESSAGE_LENGTH: Final = 160

_ADVICE: Final = {
    "no such file or directory": "it is not there, or the interpreter of its first line is not",
    "permission denied": "it is not executable",
    "exec format error": "it is for another machine, or a script without `#!` line",
}


def plain(line: str) -> str | None:
    """A line without what buildah put at its end; None when nothing else was in it."""
    cleaned = _ENDINGS.sub("", line)
    return cleaned if cleaned or not line else None


def quiet(text: str) -> tuple[str, ...]:
    """The last lines of an output, without buildah's."""
    lines = [cleaned for line in text.splitlines() if (cleaned := plain(line)) is not None]
    return tuple(lines[-TAIL_LINES:])


class Listener:
    """Takes the lines of a command as they come and passes on those that are its own."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self.raw: deque[str] = deque(maxlen=TAIL_LINES)
        self._own: deque[str] = deque(maxlen=TAIL_LINES)

    def __call__(self, line: str) -> None:
        self.raw.append(line)
        own = plain(line)
        if own is not None:
            self._own.append(own)
            if self._on_line:
                self._on_line(own)

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines of the command itself."""
        return tuple(self._own)


def signal_of(text: str) -> int:
    """The number of the signal that ended the command, 0 when none did."""
    found = _SIGNAL.search(text)
    if not found:
        return 0
    number = found[1].removeprefix("signal ")
    return int(number) if number.isdecimal() else int(_SIGNALS.get(found[1], 0))


def start_failure(text: str) -> str | None:
    """Why the container could not start the program, as a fact, when that was the trouble."""
    if found := _NOT_FOUND.search(text):
        return f"the container has no program `{found[1]}`"
    if found := _NOT_STARTED.search(text):
        reason = found[2].strip()
        advice = f": {_ADVICE[reason]}" if reason in _ADVICE else ""
        return f"the container cannot run `{found[1]}` ({reason}){advice}"
    return None


def command_text(argv: Sequence[str], length: int | None = _MESSAGE_LENGTH) -> str:
    """A command in one line, cut to a length that suits a message, or whole."""
    text = " ".join(shlex.join(argv).split())
    return text if length is None or len(text) <= length else text[: length - 2] + " …"
