"""`inspect`: layers with origin and size, settings, and the files of layers, friendly and hostile."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from assembler.cli_inspect import files_text, inspect, inspect_text, layer_files, stored_layer_files
from assembler.errors import UntrustedInputError
from assembler.oci import media_types
from assembler.oci.descriptor import BASE_NAME, KEY, Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import BlobLayer, History, Image, ImageConfig, ImageManifest, append
from assembler.oci.layout import Store
from assembler.oci.platform import Platform


def _tar(members: Sequence[tarfile.TarInfo], contents: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(contents[: member.size]) if member.isreg() else None)
    return buffer.getvalue()


def _member(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


TAR = _tar(
    [
        _member("opt", type=tarfile.DIRTYPE, mode=0o755),
        _member("opt/big", size=3 << 20, mode=0o4755, uid=1000),
        _member("opt/" + "n" * 300, size=5),
        _member("opt/link", type=tarfile.SYMTYPE, linkname="\x1b[2Jbig"),
        _member("opt/hard", type=tarfile.LNKTYPE, linkname="opt/big"),
    ],
    bytes(3 << 20),
)


def _descriptor(data: bytes, **annotations: str) -> Descriptor:
    return Descriptor(
        media_type=media_types.LAYER_ZSTD, digest=Digest.of(data), size=len(data), annotations=annotations
    )


@pytest.fixture
def image() -> tuple[ImageManifest, ImageConfig, bytes]:
    ours = zstandard.compress(TAR)
    config = ImageConfig(
        platform=Platform("linux", "amd64"),
        config={
            "Env": ["PATH=/opt/venv/bin"],
            "Entrypoint": ["vllm", "serve it"],
            "ExposedPorts": {"8000/tcp": {}},
            "Labels": {"a": "\x1b[1mb"},
        },
        diff_ids=(Digest.of(b"base tar"),),
        history=(
            History(created_by="/bin/sh -c #(nop) ADD file"),
            History(created_by="ENV A=b", empty_layer=True),
        ),
    )
    manifest = ImageManifest(
        config=_descriptor(b"{}"), layers=(_descriptor(b"base blob"),), annotations={BASE_NAME: "docker.io/x/y:1"}
    )
    layer = BlobLayer(
        descriptor=_descriptor(ours, **{KEY: "ab12"}), diff_id=Digest.of(TAR), created_by="wheels torch==2.7.0"
    )
    stacked = append(Image.from_base(manifest, config, None), [layer])
    made, _ = Image(config=stacked.config, layers=stacked.layers, annotations=manifest.annotations).manifest()
    return made, stacked.config, ours


def test_layers_have_size_origin_and_history(
    image: tuple[ImageManifest, ImageConfig, bytes], tmp_path: Path
) -> None:
    manifest, config, ours = image
    store = Store(tmp_path).create()
    store.put(ours)
    value = inspect(manifest, config, name="tgi", digest=Digest.of(b"m"), store=store)
    assert json.loads(json.dumps(value)) == value
    base, mine = value["layers"]
    assert (base["origin"], base["stored"], base["created_by"]) == ("base", False, "/bin/sh -c #(nop) ADD file")
    assert (mine["origin"], mine["stored"], mine["created_by"]) == ("ours", True, "wheels torch==2.7.0")
    assert mine["diff_id"] == Digest.of(TAR)
    assert mine["annotations"] == {KEY: "ab12"}
    assert value["size"] == {"total": 9 + len(ours), "base": 9, "ours": len(ours)}
    assert value["base"] == {"name": "docker.io/x/y:1", "digest": None}


def test_a_known_base_decides_the_origin(image: tuple[ImageManifest, ImageConfig, bytes]) -> None:
    manifest, config, _ = image
    assert [one["origin"] for one in inspect(manifest, config, base_layers=2)["layers"]] == ["base", "base"]
    assert [one["origin"] for one in inspect(manifest, config, base_layers=0)["layers"]] == ["ours", "ours"]


def test_a_history_that_does_not_fit_is_left_out(image: tuple[ImageManifest, ImageConfig, bytes]) -> None:
    manifest, config, _ = image
    value = inspect(manifest, ImageConfig(platform=config.platform, diff_ids=config.diff_ids[:1]))
    assert [one["created_by"] for one in value["layers"]] == ["", ""]
    assert [one["diff_id"] for one in value["layers"]] == [config.diff_ids[0], None]
    assert inspect_text(value)


def test_the_text_shows_the_same(image: tuple[ImageManifest, ImageConfig, bytes]) -> None:
    manifest, config, _ = image
    text = inspect_text(inspect(manifest, config, name="tgi"))
    assert "\x1b" not in text
    lines = [line.split(None, 1) for line in text.splitlines() if line]
    assert ["image", "tgi"] in lines
    assert ["entrypoint", "vllm 'serve it'"] in lines
    assert ["ports", "8000/tcp"] in lines
    assert ["PATH=/opt/venv/bin"] in lines
    assert ["a=b"] in lines
    last = text.splitlines()[-1].split()
    assert last[0] == "1"
    assert last[3] == "ours"
    assert last[-2:] == ["wheels", "torch==2.7.0"]


@pytest.mark.parametrize(
    "data",
    [
        TAR,
        gzip.compress(TAR),
        gzip.compress(TAR[:5000]) + gzip.compress(TAR[5000:]),
        zstandard.compress(TAR),
        zstandard.compress(TAR[:5000]) + zstandard.compress(TAR[5000:]),
    ],
    ids=["plain", "gzip", "gzip members", "zstd", "zstd frames"],
)
def test_files_of_a_layer(data: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path).create()
    store.put(data)
    files = list(stored_layer_files(store, _descriptor(data)))
    assert [(file.kind, file.size) for file in files] == [
        ("directory", 0),
        ("file", 3 << 20),
        ("file", 5),
        ("symlink", 0),
        ("hardlink", 0),
    ]
    assert files[1].to_json()["mode"] == "4755"
    lines = list(files_text(files))
    assert lines[1] == "-4755  1000:0      3.0 MiB  opt/big"
    assert lines[3].endswith("opt/link -> big")


def test_an_empty_layer_has_no_files() -> None:
    assert list(layer_files(io.BytesIO(_tar([])))) == []


def _oversized_header() -> bytes:
    member = _member("x", type=tarfile.XHDTYPE, size=1 << 33)
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def _many_headers() -> bytes:
    header = _member("x", type=tarfile.GNUTYPE_LONGNAME, size=512).tobuf(tarfile.GNU_FORMAT)
    return (header + b"n" * 512) * 5000


@pytest.mark.parametrize(
    "data",
    [
        b"no tar at all" * 100,
        TAR[: 2 << 20],
        gzip.compress(TAR)[:-2000],
        b"\x1f\x8bgarbage",
        zstandard.compress(TAR)[:50],
        b"\x28\xb5\x2f\xfdgarbage",
        _oversized_header(),
        _many_headers(),
        struct.pack("512s", b"x" * 100 + b"\xff" * 400),
    ],
)
def test_a_hostile_layer_is_an_error_with_a_place(data: bytes) -> None:
    with pytest.raises(UntrustedInputError) as caught:
        list(layer_files(io.BytesIO(data), "layer 7"))
    assert caught.value.place == "layer 7"


@pytest.mark.tools
def test_tar_lists_the_same(tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(TAR)
    listed = subprocess.run(
        ["tar", "-tf", tmp_path / "layer.tar"], check=True, capture_output=True, text=True
    ).stdout
    paths = [file.path for file in layer_files(io.BytesIO(TAR))]
    assert [line.rstrip("/") for line in listed.splitlines()] == paths
