"""A filter of system calls for a namespace of one id: what asks for other owners or identities does not fail.

The kernel lets root of such a namespace give a file to nobody else, become nobody else, and make no devices.
`install` puts a filter on this process and all that come of it (seccomp(2)). It answers success itself, or has
calls about owners sent to a supervisor: see `recorder.py`.

Machines have their own numbers, so there is a table for each that we know. Calls of another architecture than the
machine's own (32-bit programs) are let through, and then fail as they would without a filter: loudly.

The standard library only, and none of our modules: programs of ours load this file by its path.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

CHOWN: Final = ("chown", "lchown", "fchown", "fchownat")
STATUS: Final = ("stat", "lstat", "fstat", "newfstatat", "statx")
IDENTITY: Final = (
    "setuid",
    "setgid",
    "setreuid",
    "setregid",
    "setresuid",
    "setresgid",
    "setfsuid",
    "setfsgid",
)
_HARMLESS: Final = ("setgroups", "capset")
"""Groups beside the first own nothing that is made; root of a namespace has every capability there is in it."""


class Machine(NamedTuple):
    """What the kernel calls an architecture in audit records, its numbers, and its `struct stat`."""

    audit: int
    numbers: Mapping[str, int]
    stat_uid: int  # where the owner is in `struct stat`; the group is behind it
    stat_size: int


MACHINES: Final[Mapping[str, Machine]] = {
    "x86_64": Machine(
        0xC000003E,
        {
            "stat": 4,
            "fstat": 5,
            "lstat": 6,
            "chown": 92,
            "fchown": 93,
            "lchown": 94,
            "setuid": 105,
            "setgid": 106,
            "setreuid": 113,
            "setregid": 114,
            "setgroups": 116,
            "setresuid": 117,
            "setresgid": 119,
            "setfsuid": 122,
            "setfsgid": 123,
            "capset": 126,
            "mknod": 133,
            "mknodat": 259,
            "fchownat": 260,
            "newfstatat": 262,
            "seccomp": 317,
            "statx": 332,
        },
        28,
        144,
    ),
    "aarch64": Machine(
        0xC00000B7,
        {
            "mknodat": 33,
            "fchownat": 54,
            "fchown": 55,
            "newfstatat": 79,
            "fstat": 80,
            "capset": 91,
            "setregid": 143,
            "setgid": 144,
            "setreuid": 145,
            "setuid": 146,
            "setresuid": 147,
            "setresgid": 149,
            "setfsuid": 151,
            "setfsgid": 152,
            "setgroups": 159,
            "seccomp": 277,
            "statx": 291,
        },
        24,
        128,
    ),
}

_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _SUCCESS, _NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
_NUMBER, _AUDIT, _ARGUMENTS = 0, 4, 16  # in struct seccomp_data; arguments are 8 bytes each, low word first
_TYPE, _CHARACTER, _BLOCK = 0o170000, 0o020000, 0o060000
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8


def machine() -> Machine:
    """The table of this machine; OSError for one that we have none for."""
    name = platform.machine()
    if name not in MACHINES:
        raise OSError(f"no table of system calls for {name}, only for {' and '.join(MACHINES)}")
    return MACHINES[name]


def program(of: Machine, *, recorded: bool) -> bytes:
    """The filter, as instructions of classic BPF. With `recorded`, a supervisor answers for owners."""
    notified = (*CHOWN, *STATUS, *IDENTITY) if recorded else ()
    faked = _HARMLESS if recorded else (*_HARMLESS, *CHOWN, *IDENTITY)
    lines: list[tuple[int, int | str, int | str, int]] = [
        (_LOAD, 0, 0, _AUDIT),
        (_EQUAL, 0, "allow", of.audit),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for names, answer in ((notified, "notify"), (faked, "success")):
        lines += [(_EQUAL, answer, 0, of.numbers[name]) for name in names if name in of.numbers]
    for name, argument in (("mknod", 1), ("mknodat", 2)):  # devices only: pipes and files are made
        if name in of.numbers:
            lines += [
                (_EQUAL, 0, 4, of.numbers[name]),
                (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
                (_AND, 0, 0, _TYPE),
                (_EQUAL, "success", 0, _CHARACTER),
                (_EQUAL, "success", "allow", _BLOCK),
            ]
    places = {"allow": len(lines), "success": len(lines) + 1, "notify": len(lines) + 2}
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _SUCCESS), (_RETURN, 0, 0, _NOTIFY)]

    def jump(target: int | str, here: int) -> int:
        return places[target] - here - 1 if isinstance(target, str) else target

    return b"".join(
        struct.pack("HBBI", code, jump(true, index), jump(false, index), value)
        for index, (code, true, false, value) in enumerate(lines)
    )


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(*, recorded: bool) -> int | None:
    """Put the filter on this process, for good. The descriptor that the supervisor listens on, if `recorded`.

    OSError when the kernel has no such filters, or none with a supervisor (before 5.0; answers that let a call go
    on are of 5.5), or this machine has no table.
    """
    of = machine()
    code = program(of, recorded=recorded)
    libc = ctypes.CDLL(None, use_errno=True)
    # Without this, only CAP_SYS_ADMIN may have a filter; nothing in the namespace gains by setuid anyway.
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs cannot be set")
    arguments = ctypes.byref(_Filter(len(code) // 8, code))
    flags = _NEW_LISTENER if recorded else 0
    result = libc.syscall(of.numbers["seccomp"], _SET_MODE_FILTER, flags, arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"seccomp filter: {os.strerror(ctypes.get_errno())}")
    return int(result) if recorded else None
