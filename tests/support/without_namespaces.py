"""Become a command in a user namespace where no other can be made: `without_namespaces.py PROGRAM ARGUMENT…`.

The setting user.max_user_namespaces is each namespace's own, so nothing else on this host is touched. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_NEW_USER = 0x10000000


def main() -> None:
    """Map all ids to themselves, forbid more namespaces, become the command."""
    from_us, to_child = os.pipe()
    from_child, to_us = os.pipe()
    pid = os.getpid()
    if os.fork() == 0:
        os.read(from_us, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("0 0 65536\n")
        os.write(to_us, b"x")
        os._exit(0)
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_USER):
        raise OSError(ctypes.get_errno(), "unshare")
    os.write(to_child, b"x")
    os.read(from_child, 1)
    os.wait()
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606


if __name__ == "__main__":
    main()
