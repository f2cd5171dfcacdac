"""Go into a user namespace and become a program there: `python -I enter.py UID_MAP GID_MAP PROGRAM ARGUMENT…`.

A map is `INSIDE OUTSIDE COUNT` triples joined by commas. Maps of one id the kernel takes from ourselves; others
are written by newuidmap and newgidmap, which a child of ours runs outside. The program takes our place: the
process, its parent, its terminal and its exit status are what they would be without a namespace.

A mount namespace comes with it, since mounts are what the rights are needed for.

Exit status 125, and a line on stderr, when it cannot be done. The standard library only: this file is a program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence

PREFIX = "assemble-enter:"
"""What a message of this file begins with."""

FAILED = 125
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER | _NEW_MOUNTS):
        number = ctypes.get_errno()
        if number == errno.ENOSPC:  # it has nothing to do with disks (user_namespaces(7))
            raise OSError(number, "no more user namespaces are allowed")
        raise OSError(number, f"a user namespace is refused: {os.strerror(number).lower()}")


def _require_mounts() -> None:
    """A namespace may be given without its rights (AppArmor): say so here, and not in the middle of a build."""
    if ctypes.CDLL(None, use_errno=True).mount(None, b"/", None, _MS_REC | _MS_SLAVE, None):
        raise OSError(ctypes.get_errno(), "nothing can be mounted in the user namespace")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write(text)


def _map_by_programs(pid: int, maps: Sequence[str]) -> str:
    """Write the maps of a process from outside; what stands against it."""
    for program, text in zip(("newuidmap", "newgidmap"), maps, strict=True):
        from_it, to_us = os.pipe()
        argv = [program, str(pid), *text.replace(",", " ").split()]
        child = os.posix_spawnp(program, argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, to_us, 2)])
        os.close(to_us)
        said = os.read(from_it, 4096).decode(errors="replace").strip()
        os.close(from_it)
        if status := os.waitpid(child, 0)[1]:
            return said or f"{program} ended with {os.waitstatus_to_exitcode(status)}"
    return ""


def enter(uid_map: str, gid_map: str) -> None:
    """Put this process into a namespace with these maps, as its root; OSError."""
    single = "," not in uid_map
    if single:
        _unshare()
        _write("/proc/self/setgroups", "deny")  # the kernel's condition (user_namespaces(7))
        _write("/proc/self/uid_map", uid_map)
        _write("/proc/self/gid_map", gid_map)
        return
    from_us, to_child = os.pipe()
    from_child, to_us = os.pipe()
    pid = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(to_child)
        os.close(from_child)
        try:
            if os.read(from_us, 1):
                os.write(to_us, _map_by_programs(pid, (uid_map, gid_map)).encode() or b"\0")
        except OSError as error:
            os.write(to_us, str(error).encode())
        finally:
            os._exit(0)
    os.close(from_us)
    os.close(to_us)
    _unshare()
    os.write(to_child, b"x")
    answer = os.read(from_child, 4096)
    os.waitpid(child, 0)
    os.close(to_child)
    os.close(from_child)
    if answer != b"\0":
        raise OSError(answer.decode(errors="replace") or "newuidmap ended unheard")
    # Further groups stay: they open directories that a project shares.
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def main(uid_map: str, gid_map: str, argv: Sequence[str]) -> None:
    """Enter, and become the program."""
    user, group = os.getuid(), os.getgid()
    try:
        enter(uid_map, gid_map)
        _require_mounts()
        environment = {
            **os.environ,
            # What tools for containers look at: we are inside, and who we are outside.
            "_CONTAINERS_USERNS_CONFIGURED": "done",
            "_CONTAINERS_ROOTLESS_UID": str(user),
            "_CONTAINERS_ROOTLESS_GID": str(group),
            "BUILDAH_ISOLATION": "chroot",
        }
        os.execvpe(argv[0], list(argv), environment)  # noqa: S606
    except OSError as error:
        os.write(2, f"{PREFIX} {error.strerror or error}\n".encode())
    sys.exit(FAILED)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
