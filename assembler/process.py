"""The one door to subprocesses: argv lists only, a stated environment, output to a log, no child left behind.

Built on plumbum's command objects (`command[arguments].popen`); its pipes and its shell-like operators are not
used. Every child leads a session of its own, so that an interrupt reaches it once, through us, and the
whole tree of a stuck compile can be ended.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from assembler.errors import NodeError, StepError

TAIL_LINES = 20
_GRACE_SECONDS = 5.0
_PACKAGES = {
    "apt-get": "apt",
    "buildah": "buildah",
    "git": "git",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "tar2sqfs": "squashfs-tools-ng",
}
"""The packages of Debian and its kin that have the programs which we run on this host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """How a command ended. `stdout` is empty when it went to a log or a line callback; `tail` never is."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    tail: tuple[str, ...]
    seconds: float


class StoppedError(Exception):
    """Work that was told to stop because of an error elsewhere. Nobody is told of it."""


class Group:
    """Children that are ended together, from any thread, when what they do is not wanted any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    @contextlib.contextmanager
    def holding(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """The child runs in this block. StoppedError at its beginning or end when the group was ended."""
        with self._lock:
            if self._ended:
                raise StoppedError
            self._running.add(child)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(child)
        if self._ended:
            raise StoppedError

    def end(self) -> None:
        """End all of them; none begins afterwards."""
        with self._lock:
            self._ended = True
            running = tuple(self._running)
        for child in running:
            end(child)


_children: Path | None = None


def children_file(path: Path | None) -> None:
    """Write down every child that leads a session, with its start time, so that a later run can end leftovers."""
    global _children
    _children = path


def _note_child(pid: int) -> None:
    if _children is None:
        return
    with contextlib.suppress(OSError):
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        with _children.open("a") as file:
            file.write(f"{pid} {started}\n")


def which(program: str) -> str | None:
    """The path of a program on PATH (with the administrator's directories, which users often lack), or None."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which(program, path=path)


def paste_line(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """One line that can be pasted into a shell to run this again."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in sorted((environment or {}).items())]
    return " ".join([*variables, shlex.join(argv)])


def exit_name(returncode: int) -> str:
    """`exited with 2`, or the signal by name, also when a shell or buildah reports it as 128 + n."""
    number = -returncode if returncode < 0 else returncode - 128 if 128 < returncode < 160 else 0
    try:
        name = signal.Signals(number).name if number else ""
    except ValueError:
        name = ""
    if returncode < 0:
        return f"was killed by {name or number}"
    return f"exited with {returncode}" + (f" ({name})" if name else "")


@contextlib.contextmanager
def spawned(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: Any = subprocess.DEVNULL,
    stdout: Any = subprocess.PIPE,
    stderr: Any = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A running child; ended with its whole session when the block is left before it is.

    `env` is added to ours; NodeError when the program is not there.
    """
    program = which(argv[0]) if "/" not in argv[0] else argv[0]
    if program is None or not os.access(program, os.X_OK):
        package = _PACKAGES.get(argv[0])
        hint = f"install the package `{package}`" if package else None
        raise NodeError(f"`{argv[0]}` is not installed, or not on PATH", hint=hint)
    child: Any = _command_type()(program)[list(argv[1:])].popen(
        env={**os.environ, **(env or {})},
        cwd=str(cwd) if cwd else None,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )
    _note_child(child.pid)
    try:
        yield child
    finally:
        if child.poll() is None:
            end(child)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@functools.cache
def _command_type() -> Any:
    """plumbum's command on a machine of its own, whose environment is empty.

    plumbum adds what is given to what its local machine keeps: the environment of when it was imported, in which
    variables live on that were deleted since.
    """
    from plumbum.machines.local import LocalCommand, LocalMachine

    class Machine(LocalMachine):
        env = type(LocalMachine.env)()

    Machine.env.clear()
    here = Machine()

    class Command(LocalCommand):
        machine = here

    return Command


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child and its session: SIGTERM, then SIGKILL after a short grace."""
    for number, patience in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input_bytes: bytes | None = None,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    check: bool = True,
    ok: Sequence[int] = (0,),
    group: Group | None = None,
    seconds: float | None = None,
) -> Completed:
    """Run a command to its end, or to that of its group: StoppedError then.

    What is captured may be bounded: after `seconds` the command is ended, and TimeoutError raised.

    With `log` or `on_line`, stdout and stderr are merged, appended to the log and passed on line by line;
    otherwise both are captured. Raises StepError with the last lines when `check` is set and the exit status is
    not one of `ok`; NodeError when the program does not exist.
    """
    started = time.monotonic()
    merged = log is not None or on_line is not None
    with (
        spawned(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE if input_bytes is not None else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        ) as child,
        group.holding(child) if group else contextlib.nullcontext(),
    ):
        if merged:
            out, err, tail = b"", b"", _follow(child, log, on_line, input_bytes)
        else:
            try:
                out, err = child.communicate(input_bytes, timeout=seconds)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"`{shlex.join(argv)}` did not end within {seconds} seconds") from None
            tail = tuple((out + err).decode(errors="replace").splitlines()[-TAIL_LINES:])
        returncode = child.wait()
    completed = Completed(
        argv=tuple(argv),
        returncode=returncode,
        stdout=out.decode(errors="replace"),
        stderr=err.decode(errors="replace"),
        tail=tail,
        seconds=time.monotonic() - started,
    )
    if check and returncode not in ok:
        raise StepError(f"`{shlex.join(argv)}` {exit_name(returncode)}", detail=tail)
    return completed


def feed(argv: Sequence[str], pieces: Iterable[bytes], *, env: Mapping[str, str] | None = None) -> None:
    """Run a command that reads these pieces, one after the other, from standard input.

    An exception while they are made ends the command. StepError with its last lines when it fails.
    """
    with spawned(argv, env=env, stdin=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        tail: list[str] = []
        listener = threading.Thread(target=lambda: tail.extend(_follow(child, None, None, None)), daemon=True)
        listener.start()
        stdin = child.stdin
        assert stdin is not None  # noqa: S101  (a pipe was asked for)
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its exit status says how
            for piece in pieces:
                stdin.write(piece)
            stdin.close()
        returncode = child.wait()
        listener.join()
    if returncode:
        raise StepError(f"`{shlex.join(argv)}` {exit_name(returncode)}", detail=tail)


def _follow(
    child: subprocess.Popen[bytes],
    log: Path | None,
    on_line: Callable[[str], None] | None,
    input_bytes: bytes | None,
) -> tuple[str, ...]:
    """Copy merged output to the log, line by line, and return the last lines."""
    if input_bytes is not None and child.stdin is not None:
        threading.Thread(target=_feed, args=(child.stdin, input_bytes), daemon=True).start()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    stream = child.stdout
    assert stream is not None  # noqa: S101  (a pipe was asked for)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(log.open("ab", buffering=0)) if log else None
        for raw in stream:
            if file:
                file.write(raw)
            line = raw.decode(errors="replace").rstrip("\r\n")
            tail.append(line)
            if on_line:
                on_line(line)
    return tuple(tail)


def _feed(stream: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), stream:
        stream.write(data)
