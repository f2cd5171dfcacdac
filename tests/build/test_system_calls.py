"""The filter of system calls: what it answers, worked out by an interpreter of classic BPF."""

from __future__ import annotations

import struct

import pytest

from assembler.build import system_calls
from assembler.build.system_calls import CHOWN, IDENTITY, MACHINES, STATUS, Machine, program

ALLOW, SUCCESS, NOTIFY = 0x7FFF0000, 0x00050000, 0x7FC00000
FIFO, CHARACTER, BLOCK, REGULAR = 0o010644, 0o020644, 0o060644, 0o100644


def answer(of: Machine, name: str, *arguments: int, recorded: bool, audit: int | None = None) -> int:
    """What the filter returns for a call."""
    words = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("iIQ6Q", of.numbers[name], of.audit if audit is None else audit, 0, *words)
    code = [struct.unpack("HBBI", part) for part in _parts(program(of, recorded=recorded))]
    accumulator, place = 0, 0
    while True:
        operation, true, false, value = code[place]
        place += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x15:
            place += true if accumulator == value else false
        else:
            assert operation == 0x06
            return int(value)


def _parts(code: bytes) -> list[bytes]:
    return [code[start : start + 8] for start in range(0, len(code), 8)]


@pytest.mark.parametrize("of", MACHINES.values(), ids=MACHINES)
def test_owners_and_identities_succeed_or_are_asked_for(of: Machine) -> None:
    for name in (*CHOWN, *IDENTITY):
        if name in of.numbers:
            assert answer(of, name, recorded=False) == SUCCESS
            assert answer(of, name, recorded=True) == NOTIFY
    for name in STATUS:
        if name in of.numbers:
            assert answer(of, name, recorded=False) == ALLOW
            assert answer(of, name, recorded=True) == NOTIFY
    for recorded in (False, True):
        assert answer(of, "setgroups", recorded=recorded) == SUCCESS
        assert answer(of, "capset", recorded=recorded) == SUCCESS
        assert answer(of, "seccomp", recorded=recorded) == ALLOW


@pytest.mark.parametrize("of", MACHINES.values(), ids=MACHINES)
def test_devices_seem_to_be_made_and_pipes_are(of: Machine) -> None:
    for name, place in (("mknod", 1), ("mknodat", 2)):
        if name not in of.numbers:
            continue
        for mode, wanted in ((FIFO, ALLOW), (REGULAR, ALLOW), (CHARACTER, SUCCESS), (BLOCK, SUCCESS)):
            assert answer(of, name, *[0] * place, mode, recorded=True) == wanted


@pytest.mark.parametrize("of", MACHINES.values(), ids=MACHINES)
def test_calls_of_another_architecture_are_let_through(of: Machine) -> None:
    assert answer(of, "fchown", recorded=False, audit=0x40000003) == ALLOW


def test_every_machine_has_the_calls_that_it_needs() -> None:
    assert set(MACHINES["aarch64"].numbers) == set(MACHINES["x86_64"].numbers) - {
        "chown",
        "lchown",
        "mknod",
        "stat",
        "lstat",
    }


def test_a_machine_without_a_table_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "ppc64le")
    with pytest.raises(OSError, match="no table of system calls for ppc64le"):
        system_calls.machine()
