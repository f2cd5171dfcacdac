"""Run a program where there is no network but a loopback of its own: `python -I offline.py PROGRAM ARGUMENT…`.

buildah's chroot isolation knows no network but the host's, so buildah itself is started by this file, in a network
namespace that nothing is connected to (network_namespaces(7)). The loopback is brought up, since tools talk to
themselves over it. The standard library only, and none of our modules: it runs before anything else is found.

This is the place for whatever must be set on a process before buildah starts in it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Sequence

PREFIX = "assemble-offline:"
"""What a message of this file begins with."""

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def leave_network() -> None:
    """Give this process an empty network namespace; OSError when the kernel does not allow that."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # struct ifreq: 16 bytes of name, a short of flags, padding (netdevice(7)).
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def main(argv: Sequence[str]) -> None:
    """Leave the network and become `argv`."""
    try:
        leave_network()
    except OSError as error:
        raise SystemExit(f"{PREFIX} {error.strerror}") from error
    os.execv(argv[0], list(argv))  # noqa: S606  (this file is a launcher; process.py starts it)


if __name__ == "__main__":
    main(sys.argv[1:])
