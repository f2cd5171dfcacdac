"""Wheels that are damaged, lie or try something: refused by wheel and entry, and nothing is stored."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.raw_wheels import DATA, INFO, Member, RawWheel, locked, wheel

from assembler.errors import AssembleError, UntrustedInputError
from assembler.oci.layout import Store
from assembler.pack.compress import CHUNK, Compression
from assembler.pack.wheel_environment import environment_of
from assembler.pack.wheel_groups import WheelGroup
from assembler.pack.wheel_layer import pack_group

ENVIRONMENT = environment_of("/opt/venv", "3.11", "/usr/bin/python3.11", bytecode=False)
INIT = Member("demo/__init__.py", b"VERSION = 1\n" * 40)
LARGE = Member("demo/large.bin", bytes(range(256)) * 12_000)  # three chunks
BOMB = zlib.compress(bytes(1 << 20), 9)[2:-4]


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def without(name: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [line for line in lines if not line.startswith(f"{name},")]


def with_line(line: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [line, *lines]


def replaced(old: str, new: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [line.replace(old, new) for line in lines]


def cut(amount: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:-amount]


REFUSED: dict[str, tuple[RawWheel, str]] = {
    "truncated": (wheel(INIT, end=cut(100)), "truncated or no wheel"),
    "no zip": (wheel(end=lambda _: b"not a wheel"), "truncated or no wheel"),
    "head missing": (wheel(INIT, LARGE, end=lambda data: data[50:]), "the zip directory is not where it says"),
    "bytes before": (
        wheel(INIT, end=lambda data: b"#!/bin/sh\n" + data),
        "the zip directory is not where it says",
    ),
    "bytes after": (wheel(INIT, end=lambda data: data + b"more"), "bytes after it"),
    "two ends": (wheel(INIT, comment=wheel(INIT).build()[-22:]), "the zip directory is not where"),
    "several disks": (
        wheel(INIT, end=lambda data: data[:-18] + struct.pack("<2H", 1, 1) + data[-14:]),
        "one of several disks",
    ),
    "more in the directory": (
        wheel(INIT, end=lambda data: data[:-14] + struct.pack("<2H", 3, 3) + data[-10:]),
        "bytes that belong to no entry",
    ),
    "less in the directory": (
        wheel(INIT, end=lambda data: data[:-14] + struct.pack("<2H", 9, 9) + data[-10:]),
        "the zip directory is truncated",
    ),
    "zip64 end missing": (
        wheel(INIT, end=lambda data: data[:-14] + struct.pack("<2H", 0xFFFF, 0xFFFF) + data[-10:]),
        "the zip64 end of the directory is missing",
    ),
    "traversal": (wheel(INIT, Member("../evil.py")), "`../evil.py`"),
    "traversal inside": (wheel(INIT, Member("demo/../../evil.py")), "`demo/../../evil.py`"),
    "traversal of data": (wheel(INIT, Member(f"{DATA}/data/../../evil")), f"`{DATA}/data/../../evil`"),
    "absolute": (wheel(INIT, Member("/etc/passwd")), "`/etc/passwd`"),
    "current": (wheel(INIT, Member("./demo.py")), "`./demo.py`"),
    "empty part": (wheel(INIT, Member("demo//x.py")), "`demo//x.py`"),
    "no name": (wheel(INIT, Member("x", raw_name=b"")), "expected a relative path"),
    "control characters": (wheel(INIT, Member("demo/\x1b[2J.py")), r"`demo/\x1b[2J.py`"),
    "whiteout": (wheel(INIT, Member("demo/.wh.__init__.py")), "`.wh.`"),
    "not UTF-8": (wheel(INIT, Member("x", raw_name=b"demo/\xff.py")), "not UTF-8"),
    "symlink": (wheel(INIT, Member("demo/link", b"/etc/passwd", mode=0o120777)), "`demo/link` is a symbolic link"),
    "device": (wheel(INIT, Member("demo/null", mode=0o020666)), "`demo/null` is no plain file"),
    "directory with content": (
        wheel(INIT, Member("demo/d/", b"content", mode=0o040755)),
        "`demo/d/` is a directory with content",
    ),
    "directory by mode": (wheel(INIT, Member("demo/d", mode=0o040755)), "`demo/d` is a directory by its mode"),
    "encrypted": (wheel(INIT, Member("demo/x.py", flags=1)), "`demo/x.py` is encrypted"),
    "strongly encrypted": (wheel(INIT, Member("demo/x.py", flags=0x41)), "`demo/x.py` is encrypted"),
    "other method": (wheel(INIT, Member("demo/x.py", b"x", method=12)), "`demo/x.py` is compressed by method 12"),
    "duplicate": (wheel(INIT, INIT), "`demo/__init__.py` is there twice"),
    "hidden member": (
        wheel(INIT, Member("demo/hidden.py", b"x", listed=False), LARGE, record=without("demo/hidden.py")),
        "belong to no entry",
    ),
    "hidden behind a directory": (
        wheel(Member("demo/", mode=0o040755), Member("demo/x", listed=False), INIT, record=without("demo/x")),
        "`demo/` is followed by bytes",
    ),
    "hidden behind what is not installed": (
        wheel(Member(f"{INFO}/REQUESTED"), Member("demo/x", listed=False), INIT, record=without("demo/x")),
        f"`{INFO}/REQUESTED` is followed by bytes",
    ),
    "bytes between": (wheel(Member("demo/x.py", b"x", after=b"more"), INIT), "`demo/x.py` is followed by bytes"),
    "overlap": (wheel(INIT, Member("demo/other.py", INIT.data, offset=0)), "begin at the same byte"),
    "overlap in part": (wheel(LARGE, Member("demo/other.py", b"x", offset=1000)), "shares bytes"),
    "beyond the end": (wheel(INIT, Member("demo/x.py", b"x", packed=1 << 30, size=1 << 30)), "shares bytes"),
    "impossible sizes": (wheel(INIT, Member("demo/x.py", b"x", packed=50_000, size=1)), "sizes that cannot be"),
    "stored sizes differ": (
        wheel(INIT, Member("demo/x.py", b"xy", deflated=False, size=1)),
        "sizes that cannot be",
    ),
    "a bomb": (
        wheel(Member("demo/zeros", bytes(1), raw=BOMB * 2, size=600 << 20, packed=2 * len(BOMB))),
        "times as much comes out",
    ),
    "larger than stated": (wheel(INIT, Member("demo/x", b"x" * 999, size=990)), "`demo/x`"),
    "smaller than stated": (wheel(INIT, Member("demo/x", b"x" * 999, size=1001)), "`demo/x`"),
    "local name": (
        wheel(INIT, Member("demo/x.py", b"x", local_name=b"demo/y.py")),
        "`demo/x.py` has a local header",
    ),
    "checksum": (wheel(INIT, Member("demo/x.py", b"x", crc=7)), "`demo/x.py` has another checksum"),
    "checksum of a large one": (wheel(Member(LARGE.name, LARGE.data, crc=7)), LARGE.name),
    "damaged stream": (wheel(INIT, Member("demo/x.py", b"x" * 99, raw=b"\xff" * 20)), "`demo/x.py` is damaged"),
    "bytes after the stream": (
        wheel(INIT, Member("demo/x.py", b"x" * 99, raw=deflated(b"x" * 99) + b"more")),
        "`demo/x.py` does not inflate",
    ),
    "bytes after a large stream": (
        wheel(Member(LARGE.name, LARGE.data, raw=deflated(LARGE.data) + b"more")),
        f"`{LARGE.name}` has bytes after the end",
    ),
    "cut stream": (
        wheel(INIT, Member("demo/x", b"x" * 99, raw=deflated(b"x" * 99)[:-2])),
        "`demo/x` does not inflate",
    ),
    "large stream cut": (
        wheel(Member(LARGE.name, LARGE.data, raw=deflated(LARGE.data)[:-8])),
        f"`{LARGE.name}` inflates to less",
    ),
    "large stream too long": (
        wheel(Member(LARGE.name, LARGE.data, raw=deflated(LARGE.data + b"more"))),
        f"`{LARGE.name}` does not inflate",
    ),
    "no RECORD line": (
        wheel(INIT, record=without("demo/__init__.py")),
        "RECORD has no line for `demo/__init__.py`",
    ),
    "no RECORD hash": (
        wheel(INIT, record=lambda lines: ["demo/__init__.py,,", *lines[1:]]),
        "RECORD has no hash for `demo/__init__.py`",
    ),
    "wrong hash": (wheel(INIT, record=replaced("sha256=", "sha256=A")), "RECORD says `A"),
    "wrong hash of a large one": (
        wheel(LARGE, record=lambda lines: [lines[0].replace("sha256=", "sha256=A"), *lines[1:]]),
        f"`{LARGE.name}` has the sha256 hash",
    ),
    "wrong size": (
        wheel(INIT, record=replaced(",480", ",481")),
        "`demo/__init__.py` has 480 bytes; RECORD says 481",
    ),
    "weak hash": (wheel(INIT, record=replaced("sha256=", "md5=")), "expected one of sha256"),
    "RECORD of other fields": (wheel(INIT, record=with_line("demo/x")), "line 1 has 1 fields"),
    "RECORD twice": (wheel(INIT, record=with_line("demo/__init__.py,sha256=x,1")), "is there twice and differs"),
    "a file that is not there": (wheel(INIT, record=with_line("demo/gone.py,sha256=x,1")), "lists `demo/gone.py`"),
    "no WHEEL": (wheel(INIT, wheel=None), f"`{INFO}/WHEEL` is missing"),
    "new version": (wheel(INIT, wheel=b"Wheel-Version: 2.0\n"), "expected version 1 of the format, got `2.0`"),
    "no version": (wheel(INIT, wheel=b"Root-Is-Purelib: true\n"), "expected version 1 of the format, got ``"),
    "another project": (wheel(INIT, info="other-1.0.dist-info"), "expected a wheel of `demo`"),
    "two dist-infos": (wheel(INIT, Member("other-1.0.dist-info/WHEEL")), "expected one `.dist-info` directory"),
    "unknown scheme": (wheel(INIT, Member(f"{DATA}/config/x")), "expected purelib, platlib, scripts"),
    "file for a scheme": (wheel(INIT, Member(f"{DATA}/scripts")), "expected purelib, platlib, scripts"),
    "python itself": (
        wheel(INIT, Member(f"{DATA}/scripts/python3", b"x")),
        "would replace `/opt/venv/bin/python3`",
    ),
    "pyvenv.cfg": (wheel(INIT, Member(f"{DATA}/data/pyvenv.cfg", b"x")), "would replace `/opt/venv/pyvenv.cfg`"),
    "file below a file": (
        wheel(INIT, Member("demo/x", b"x"), Member("demo/x/y", b"y")),
        "lies below",
    ),
    "entry point": (
        wheel(INIT, Member(f"{INFO}/entry_points.txt", b"[console_scripts]\nx = os; import evil\n")),
        "expected `module:function`",
    ),
    "entry point elsewhere": (
        wheel(INIT, Member(f"{INFO}/entry_points.txt", b"[console_scripts]\n../../x = os:x\n")),
        "no name for a script",
    ),
    "entry points damaged": (
        wheel(INIT, Member(f"{INFO}/entry_points.txt", b"\xff\xfe[[[")),
        "`entry_points.txt` cannot be read",
    ),
}


def stored_files(store: Store) -> list[Path]:
    return [path for name in ("blobs", "tmp", "keys") for path in (store.root / name).rglob("*") if path.is_file()]


def pack(path: Path, store: Store, compression: Compression = "zstd") -> None:
    wheel_file = locked(path, name="demo", version="1.0")
    group = WheelGroup(name="demo", wheels=(wheel_file,))
    pack_group(group, ENVIRONMENT, lambda _: path, store, compression=compression, epoch=0, created_by="")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_nothing_stored(name: str, tmp_path: Path, store: Store) -> None:
    raw, fact = REFUSED[name]
    path = raw.write(tmp_path)
    with pytest.raises(UntrustedInputError) as caught:
        pack(path, store)
    assert fact in str(caught.value), str(caught.value)
    assert path.name in str(caught.value)
    assert stored_files(store) == []


@pytest.mark.parametrize("compression", get_args(Compression))
@pytest.mark.parametrize(
    "name", ["checksum of a large one", "wrong hash of a large one", "large stream cut", "wrong hash"]
)
def test_refused_in_both_compressions(name: str, compression: Compression, tmp_path: Path, store: Store) -> None:
    with pytest.raises(UntrustedInputError):
        pack(REFUSED[name][0].write(tmp_path), store, compression)
    assert stored_files(store) == []


def test_a_failure_before_a_large_member_ends_all(tmp_path: Path, store: Store) -> None:
    """Threads that wait for their turn in a large member must not wait for one that will not come."""
    raw = wheel(Member("demo/a.py", b"x", crc=7), Member("demo/b.bin", bytes(7 * CHUNK), deflated=False))
    with pytest.raises(UntrustedInputError, match=r"demo/a\.py"):
        pack(raw.write(tmp_path), store)


def test_a_wheel_that_shrinks_meanwhile(tmp_path: Path, store: Store) -> None:
    path = wheel(INIT, LARGE).write(tmp_path)
    wheel_file = locked(path, name="demo", version="1.0")
    from assembler.pack.tarball import pack as pack_entries
    from assembler.pack.wheel_install import wheel_entries

    entries = wheel_entries(wheel_file, path, ENVIRONMENT)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UntrustedInputError, match="truncated"):
        pack_entries(entries, store)
    assert stored_files(store) == []


def test_memory_does_not_follow_what_a_member_says(tmp_path: Path, store: Store) -> None:
    """A small member that is stated to be small and inflates to very much more is stopped at the stated size."""
    raw = wheel(Member("demo/x", b"x", raw=deflated(bytes(400 << 20)), size=400_000))
    with pytest.raises(UntrustedInputError, match="`demo/x`"):
        pack(raw.write(tmp_path), store)


SOUND = wheel(INIT, Member("demo/x.txt", b"text " * 9), Member(f"{DATA}/scripts/run", b"#!python\n")).build()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(SOUND) - 1), value=st.integers(0, 255))
def test_one_changed_byte_is_noticed_or_harmless(place: int, value: int, tmp_path: Path, store: Store) -> None:
    """Whatever byte is changed, there is an error of ours, or the same layer."""
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    path.write_bytes(SOUND)
    group = WheelGroup(name="demo", wheels=(locked(path),))
    options = {"compression": "zstd", "epoch": 0, "created_by": ""}
    before = pack_group(group, ENVIRONMENT, lambda _: path, store, **options)  # type: ignore[arg-type]
    path.write_bytes(SOUND[:place] + bytes([value]) + SOUND[place + 1 :])
    try:
        after = pack_group(group, ENVIRONMENT, lambda _: path, store, **options)  # type: ignore[arg-type]
    except AssembleError as error:
        assert isinstance(error, UntrustedInputError)
    else:
        # Times, versions, and the other attributes of a member have no say; its executable bit has.
        assert after.uncompressed_bytes == before.uncompressed_bytes
