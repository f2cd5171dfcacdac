"""Start buildah so that nothing of it is left over: `python -I launcher.py NETWORK OWNERS PROGRAM ARGUMENT…`.

What a command in a container leaves behind in a session of its own would live on; here it comes back to us, since
orphans go to the nearest subreaper (prctl(2)), and is ended. So is everything when the process that started us
dies.

With the network `none`, there is only a loopback of the command's own: buildah's chroot isolation knows no network
but the host's, so buildah itself runs in a network namespace that nothing is connected to (network_namespaces(7)).

OWNERS says what becomes of calls about owners and identities. With `own` nothing; the others are for a namespace
of one id. With `faked` they succeed and do nothing; with `recorded:JOURNAL` a supervisor (`recorder.py`) writes
down those of programs in a container, with `everywhere:JOURNAL` those of all.

The standard library only, and none of our modules: this file is a program. It is the place for whatever must be
set on a process before buildah runs in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

PREFIX = "assemble-launcher:"
"""What a message of this file begins with."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_PATIENCE_SECONDS = 5.0


class _Stopped(BaseException):
    """A signal asked us to end."""


def _stop(number: int, _frame: FrameType | None) -> None:
    raise _Stopped(number)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def leave_network(libc: ctypes.CDLL) -> None:
    """Give this process an empty network namespace; OSError when the kernel does not allow that."""
    _checked(libc.unshare(_CLONE_NEWNET))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # struct ifreq: 16 bytes of name, a short of flags, padding (netdevice(7)).
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def children() -> list[int]:
    """Processes whose parent we are."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208  (hundreds of names)
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def end_children() -> None:
    """End every descendant: a child that ends makes its children ours."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        for pid in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def sibling(name: str) -> Any:
    """A module beside this file, which has the standard library only, too."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(os.path.dirname(__file__), f"{name}.py"))  # noqa: PTH118, PTH120
    assert spec and spec.loader  # noqa: S101  (the file is there)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def owners_filter(owners: str) -> Callable[[], None]:
    """What the child that becomes the program does for OWNERS; a supervisor is started for it, where it has one.

    OSError when this machine, or its kernel, cannot do it.
    """
    if owners == "own":
        return lambda: None
    calls = sibling("system_calls")
    kind, _, journal = owners.partition(":")
    machine = calls.machine()
    if kind == "faked":
        return lambda: calls.install(recorded=False)
    ours, theirs = socket.socketpair()
    recorder = sibling("recorder")
    supervisor = recorder.Supervisor(machine, recorder.Journal(journal), everywhere=kind == "everywhere")
    if os.fork() == 0:
        status = 1
        try:
            theirs.close()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # as long as there is somebody to answer
            _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
            ours.close()
            if listeners:
                supervisor.serve(listeners[0])
            status = 0
        finally:
            os._exit(status)
    ours.close()

    def send() -> None:
        listener = calls.install(recorded=True)
        socket.send_fds(theirs, [b"x"], [listener])
        os.close(listener)
        theirs.close()

    return send


def launch(argv: Sequence[str], prepare: Callable[[], None]) -> int:
    """Run a program to its end and return its exit status, 128 + n when a signal ended it."""
    program = os.fork()
    if program == 0:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        try:
            prepare()
            os.execv(argv[0], list(argv))  # noqa: S606  (process.py has started this launcher)
        except OSError as error:
            os.write(2, f"{PREFIX} {error.strerror or error}\n".encode())
        os._exit(127)
    while True:
        # Orphans that end meanwhile are reaped here too.
        pid, status = os.waitpid(-1, 0)
        if pid == program:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main(network: str, owners: str, argv: Sequence[str]) -> int:
    """Prepare this process, run the program, end what is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    try:
        _checked(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _stop)
        _checked(libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0))
        if os.getppid() != parent:
            return 128 + signal.SIGTERM
        if network == "none":
            leave_network(libc)
        prepare = owners_filter(owners)
    except OSError as error:
        raise SystemExit(f"{PREFIX} {error.strerror or error}") from error
    try:
        return launch(argv, prepare)
    except _Stopped as stopped:
        return 128 + int(stopped.args[0])
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end_children()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
