"""The ELF reader on what gcc builds, and on files that lie."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.elves import compiled_object, executable, library
from support.needs import need

from assembler.build.elf import Elf, read_elf
from assembler.process import run


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with RUNPATH that needs a library."""
    directory = tmp_path_factory.mktemp("elf")
    library(directory / "libgreeting.so", "greeting", "-Wl,-soname,libgreeting.so.1")
    return executable(
        directory / "program",
        "-L.",
        "-lgreeting",
        "-Wl,--enable-new-dtags,-rpath,$ORIGIN:/opt/lib",
        calls=["greeting"],
    )


def test_a_program(program: Path) -> None:
    elf = read_elf(program)
    assert elf is not None
    assert elf.kind in ("executable", "shared"), "a position-independent program is a shared object"
    assert elf.needed[0] == "libgreeting.so.1"
    assert any(name.startswith("libc.so") for name in elf.needed)
    assert (elf.rpath, elf.runpath) == ((), ("$ORIGIN", "/opt/lib"))


def test_readelf_agrees(program: Path) -> None:
    need("readelf")
    elf = read_elf(program)
    assert elf is not None
    lines = run(["readelf", "--dynamic", "--wide", str(program)]).stdout.splitlines()
    assert list(elf.needed) == [line.partition("[")[2].rstrip("]") for line in lines if "(NEEDED)" in line]
    (runpath,) = (line.partition("[")[2].rstrip("]") for line in lines if "(RUNPATH)" in line)
    assert ":".join(elf.runpath) == runpath


def test_old_tags_and_empty_entries(tmp_path: Path) -> None:
    path = library(tmp_path / "lib.so", "f", "-Wl,--disable-new-dtags,-rpath,/build/lib::x")
    assert read_elf(path) == Elf("shared", rpath=("/build/lib", "", "x"), needed=("libc.so.6",))


def test_kinds(tmp_path: Path) -> None:
    assert read_elf(compiled_object(tmp_path / "object.o")) == Elf("relocatable")
    plain = read_elf(executable(tmp_path / "plain", "-no-pie"))
    assert plain is not None
    assert (plain.kind, plain.runpath) == ("executable", ())
    static = read_elf(executable(tmp_path / "static", "-static"))
    assert static == Elf("executable")


def test_what_is_no_elf(tmp_path: Path) -> None:
    for name, data in (("empty", b""), ("script", b"#!/bin/sh\n"), ("short", b"\x7fELF\x02\x01\x01")):
        (tmp_path / name).write_bytes(data)
        assert read_elf(tmp_path / name) is None
    os.mkfifo(tmp_path / "pipe")
    assert read_elf(tmp_path / "pipe") is None
    (tmp_path / "link").symlink_to("script")
    with pytest.raises(OSError, match="symbolic"):
        read_elf(tmp_path / "link")


def test_a_file_of_another_machine_has_no_answer(program: Path, tmp_path: Path) -> None:
    data = bytearray(program.read_bytes())
    for position, value in ((4, 1), (5, 2)):  # 32 bits, big-endian
        other = data.copy()
        other[position] = value
        (tmp_path / "other").write_bytes(other)
        assert read_elf(tmp_path / "other") is None


def test_a_truncated_file_is_none_or_right(program: Path, tmp_path: Path) -> None:
    whole = read_elf(program)
    data = program.read_bytes()
    path = tmp_path / "cut"
    for length in (*range(0, 700, 7), *range(700, len(data), 997)):
        path.write_bytes(data[:length])
        assert read_elf(path) in (None, whole)


@pytest.mark.parametrize(
    ("position", "form", "value"),
    [
        (32, "<Q", 1 << 62),  # where the program headers are
        (32, "<Q", (1 << 64) - 1),
        (54, "<H", 0),  # the size of one
        (54, "<H", 55),
        (56, "<H", 0xFFFF),  # how many there are
    ],
)
def test_a_header_that_lies_is_none(program: Path, tmp_path: Path, position: int, form: str, value: int) -> None:
    data = bytearray(program.read_bytes())
    struct.pack_into(form, data, position, value)
    (tmp_path / "liar").write_bytes(data)
    assert read_elf(tmp_path / "liar") is None


@pytest.mark.parametrize("tag", [1, 5, 10, 29])
@pytest.mark.parametrize("value", [0xFFFFFFFF, 1 << 63, (1 << 64) - 1])
def test_a_dynamic_section_that_lies_is_none(program: Path, tmp_path: Path, tag: int, value: int) -> None:
    """Needed library, string table, its size, RUNPATH: each led somewhere that is not."""
    data = bytearray(program.read_bytes())
    offset, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    headers = [struct.unpack_from("<IIQQQQQQ", data, offset + 56 * number) for number in range(count)]
    (dynamic,) = (header for header in headers if header[0] == 2)
    places = range(dynamic[2], dynamic[2] + dynamic[5], 16)
    place = next(at for at in places if struct.unpack_from("<Q", data, at)[0] == tag)
    struct.pack_into("<Q", data, place + 8, value)
    (tmp_path / "liar").write_bytes(data)
    assert read_elf(tmp_path / "liar") is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_never_ends_in_another_error(
    program: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(program.read_bytes()[:4096])
    for position, value in data.draw(st.lists(st.tuples(st.integers(16, 1100), st.integers(0, 255)), max_size=8)):
        damaged[position] = value
    path = tmp_path_factory.getbasetemp() / f"damaged-{os.getpid()}"
    path.write_bytes(damaged)
    read_elf(path)
