"""Compiled files: deterministic, what Python takes, and made by the right version or not at all."""

from __future__ import annotations

import importlib.util
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.raw_wheels import DATA, INFO, Member, locked, wheel
from support.venv_comparison import layer_things

from assembler.errors import NodeError
from assembler.oci.layout import Store
from assembler.pack.wheel_bytecode import find_compiler
from assembler.pack.wheel_environment import environment_of
from assembler.pack.wheel_groups import WheelGroup
from assembler.pack.wheel_layer import group_entries, group_facts, pack_group
from assembler.pack.wheel_record import parse_record
from assembler.tree.entry import Entry, Slice

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
TAG = str(sys.implementation.cache_tag)
VENV = environment_of("/opt/venv", MINOR, f"/usr/bin/python{MINOR}", bytecode=True)
SITE = f"opt/venv/lib/python{MINOR}/site-packages"
SOURCE = b"""\
def greet(name='you', *, words={'a', 'b', 'c', 'd'}):
    return f'hello {name}' if name in words else words
"""
RAW = wheel(
    Member("demo/__init__.py", SOURCE * 30),
    Member("demo/empty.py"),
    Member("demo/template.py", b"{{ no python }}\n"),
    Member("demo/binary.py", b"\0\xff\xfe"),
    Member("demo/encoded.py", b"# coding: latin-1\nx = '\xe9'\n"),
    Member("demo/data.txt", b"x"),
    Member("demo/shipped.py", b"x = 1\n"),
    Member(f"demo/__pycache__/shipped.{TAG}.pyc", b"the wheel's own"),
    Member(f"{DATA}/purelib/more.py", b"x = 1\n"),
    Member(f"{DATA}/data/share/example.py", b"x = 1\n"),
    Member(f"{DATA}/scripts/run.py", b"#!python\nx = 1\n"),
)


def entries_of(path: Path, store: Store) -> dict[str, Entry]:
    group = WheelGroup(name="demo", wheels=(locked(path),))
    return {entry.path: entry for entry in group_entries(group, VENV, lambda _: path, store)}


def compiled(entry: Entry) -> bytes:
    assert isinstance(entry.content, Slice)
    return entry.content.path.read_bytes()[entry.content.offset :][: entry.size]


def test_modules_are_compiled_and_nothing_else(tmp_path: Path, store: Store) -> None:
    found = entries_of(RAW.write(tmp_path), store)
    made = sorted(path for path, entry in found.items() if isinstance(entry.content, Slice))
    names = ["demo/__pycache__/__init__", "demo/__pycache__/empty", "demo/__pycache__/encoded", "__pycache__/more"]
    assert made == sorted(f"{SITE}/{name}.{TAG}.pyc" for name in names)
    rows = parse_record(found[f"{SITE}/{INFO}/RECORD"].content, "ours")  # type: ignore[arg-type]
    assert all(rows[path.removeprefix(f"{SITE}/")].size == found[path].size for path in made)


def test_the_header_has_no_time_and_is_not_checked(tmp_path: Path, store: Store) -> None:
    data = compiled(entries_of(RAW.write(tmp_path), store)[f"{SITE}/demo/__pycache__/__init__.{TAG}.pyc"])
    magic, flags = struct.unpack_from("<4sL", data)
    assert (magic, flags) == (importlib.util.MAGIC_NUMBER, 1)
    assert data[8:16] == importlib.util.source_hash(SOURCE * 30)
    assert b"/opt/venv/lib/python" in data
    assert str(tmp_path).encode() not in data


def test_the_same_source_gives_the_same_bytes(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = RAW.write(tmp_path)
    group = WheelGroup(name="demo", wheels=(locked(path),))
    diff_ids = set()
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        monkeypatch.setenv("PYTHONOPTIMIZE", seed)
        packed = pack_group(group, VENV, lambda _: path, store, compression="zstd", epoch=0, created_by="")
        diff_ids.add(packed.layer.diff_id)
    assert len(diff_ids) == 1


def test_python_loads_it(tmp_path: Path, store: Store) -> None:
    environment = environment_of(str(tmp_path / "venv"), MINOR, sys.executable, bytecode=True)
    path = RAW.write(tmp_path)
    group = WheelGroup(name="demo", wheels=(locked(path),))
    packed = pack_group(group, environment, lambda _: path, store, compression="zstd", epoch=0, created_by="")
    for name, thing in layer_things(store, packed.layer, re.compile("")).items():
        (Path("/") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("/") / name).write_bytes(thing.data)
    done = subprocess.run(
        [sys.executable, "-v", "-c", "import demo; print(demo.greet('a'))"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"/{environment.purelib}"},
    )
    assert done.stdout == "hello a\n"
    loaded = [line for line in done.stderr.splitlines() if "demo" in line and "matches" in line]
    assert len(loaded) == 1, done.stderr


def test_another_version_is_not_taken(tmp_path: Path, store: Store) -> None:
    environment = environment_of("/opt/venv", "3.99", "/usr/bin/python3.99", bytecode=True)
    path = RAW.write(tmp_path)
    group = WheelGroup(name="demo", wheels=(locked(path),))
    with pytest.raises(NodeError, match=r"`bytecode` needs Python 3\.99 on this host"):
        group_entries(group, environment, lambda _: path, store)


def test_the_exact_version_is_in_the_key(tmp_path: Path) -> None:
    group = WheelGroup(name="demo", wheels=(locked(RAW.write(tmp_path)),))
    assert group_facts(group, VENV)["bytecode"] == find_compiler(MINOR).version
    assert find_compiler(MINOR).version.startswith(f"{MINOR}.")
