"""The SIF container, as its specification has it and as Sylabs' own siftool reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.needs import need
from support.sif import objects

from assembler.process import run
from assembler.sif.format import ARCHITECTURES, DEFINITION, JSON, DataObject, front, partition_offset

OBJECTS = [
    DataObject(kind=DEFINITION, data=b"bootstrap: oci\n"),
    DataObject(kind=JSON, name="a.json", data=b"{}" * 3000),
]
IDENTITY = bytes(range(16))


def sif_of(path: Path, architecture: str = "amd64", epoch: int = 0) -> Path:
    partition = b"hsqs" + bytes(4092)
    data = front(OBJECTS, len(partition), architecture=architecture, identity=IDENTITY, epoch=epoch)
    path.write_bytes(data + partition)
    return path


def test_objects_follow_each_other_and_the_file_system_begins_at_a_page(tmp_path: Path) -> None:
    found = objects(sif_of(tmp_path / "x.sif"))
    assert [(item.kind, item.name, item.data) for item in found[:2]] == [
        (item.kind, item.name, item.data) for item in OBJECTS
    ]
    assert found[1].offset == found[0].offset + found[0].size
    assert found[2].offset == partition_offset(OBJECTS)
    assert found[2].offset % 4096 == 0
    assert found[2].data.startswith(b"hsqs")


@pytest.mark.tools
@pytest.mark.parametrize("architecture", ["amd64", "arm64", "ppc64le"])
def test_siftool_reads_what_was_meant(tmp_path: Path, architecture: str) -> None:
    sif = sif_of(tmp_path / "x.sif", architecture, epoch=1_700_000_000)
    header = run([need("siftool"), "header", str(sif)]).stdout
    assert f"Primary Architecture: {architecture}" in header
    assert "00010203-0405-0607-0809-0a0b0c0d0e0f" in header
    assert "2023-11-14" in header
    assert "#!/usr/bin/env run-singularity" in header
    listed = run(["siftool", "list", str(sif)]).stdout
    assert f"FS (Squashfs/*System/{architecture})" in listed
    assert "Def.FILE" in listed
    said = run(["siftool", "info", "2", str(sif)]).stdout
    assert "a.json" in said


def test_an_architecture_without_a_code_is_refused() -> None:
    assert len(set(ARCHITECTURES.values())) == len(ARCHITECTURES)
    with pytest.raises(KeyError):
        front([], 4096, architecture="vax", identity=IDENTITY)
