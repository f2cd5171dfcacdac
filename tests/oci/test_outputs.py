"""Layouts and archives, read by other people's tools."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from support.images import AMD64, digests, image_of, saved
from support.registry import output_of

from assembler.errors import RequestError, VerifyError
from assembler.oci.bases import load_layout
from assembler.oci.descriptor import Descriptor
from assembler.oci.layout import Store
from assembler.oci.outputs import write_archive, write_layout
from assembler.oci.verify import verify_image


def _tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.tools
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_skopeo_reads_layout_and_archive(store: Store, tmp_path: Path, compression: str) -> None:
    descriptor = saved(store, image_of(store, {"hello": b"hello"}, compression=compression))
    write_layout(store, descriptor.digest, tmp_path / "out", name="v1")
    write_archive(store, descriptor.digest, tmp_path / "out.tar", name="v1")
    for place in (f"oci:{tmp_path / 'out'}:v1", f"oci-archive:{tmp_path / 'out.tar'}:v1"):
        assert json.loads(output_of(["skopeo", "inspect", place]))["Digest"] == descriptor.digest
        output_of(["skopeo", "copy", place, f"dir:{tmp_path / 'copy'}"])


@pytest.mark.tools
def test_umoci_unpacks_a_gzip_image(store: Store, tmp_path: Path) -> None:
    descriptor = saved(store, image_of(store, {"hello": b"hello"}, {"world": b"world"}))
    write_layout(store, descriptor.digest, tmp_path / "out", name="v1")
    output_of(["umoci", "unpack", "--rootless", "--image", f"{tmp_path / 'out'}:v1", str(tmp_path / "bundle")])
    assert (tmp_path / "bundle/rootfs/world").read_bytes() == b"world"


def test_archives_of_equal_images_are_equal(tmp_path: Path) -> None:
    archives = []
    for name in ("one", "two"):
        store = Store(tmp_path / name).create()
        write_archive(
            store, saved(store, image_of(store, {"a": b"a"})).digest, tmp_path / f"{name}.tar", name="v1"
        )
        archives.append((tmp_path / f"{name}.tar").read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as tar:
        names = tar.getnames()
        assert len(names) == len(set(names)) == 7
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_layout_keeps_other_images_and_replaces_its_name(store: Store, tmp_path: Path) -> None:
    one, two = (saved(store, image_of(store, {name: b""})) for name in ("one", "two"))
    out = tmp_path / "out"
    write_layout(store, one.digest, out, name="one")
    write_layout(store, one.digest, out, name="latest")
    write_layout(store, two.digest, out, name="latest")
    assert load_layout(out, "one", AMD64).manifest_bytes == store.read(one.digest)
    assert load_layout(out, "latest", AMD64).manifest_bytes == store.read(two.digest)
    before = _tree(out)
    write_layout(store, two.digest, out, name="latest")
    assert _tree(out) == before


def test_missing_layers_are_fetched_left_out_or_refused(store: Store, tmp_path: Path) -> None:
    image = image_of(store, {"base": b"base"}, {"mine": b"mine"})
    descriptor = saved(store, image)
    base = store.blob_path(digests(image)[0]).read_bytes()
    store.blob_path(digests(image)[0]).unlink()
    asked: list[Descriptor] = []

    def fetch(blob: Descriptor) -> io.BytesIO:
        asked.append(blob)
        return io.BytesIO(base)

    write_layout(store, descriptor.digest, tmp_path / "whole", name="v1", fetch=fetch)
    write_archive(store, descriptor.digest, tmp_path / "whole.tar", name="v1", fetch=fetch)
    assert [blob.digest for blob in asked] == [digests(image)[0]] * 2
    assert not verify_image(Store(tmp_path / "whole"), descriptor.digest, deep=True)

    write_layout(store, descriptor.digest, tmp_path / "sparse", complete=False)
    assert len(list((tmp_path / "sparse/blobs/sha256").iterdir())) == 3
    with pytest.raises(RequestError, match="expected every layer"):
        write_layout(store, descriptor.digest, tmp_path / "none")


def test_lying_layer_leaves_nothing(store: Store, tmp_path: Path) -> None:
    image = image_of(store, {"base": b"base"})
    descriptor = saved(store, image)
    store.blob_path(digests(image)[0]).unlink()
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.tar").write_bytes(b"old")
    with pytest.raises(VerifyError):
        write_archive(store, descriptor.digest, out / "old.tar", fetch=lambda _blob: io.BytesIO(b"x"))
    with pytest.raises(VerifyError):
        write_layout(store, descriptor.digest, out / "layout", fetch=lambda _blob: io.BytesIO(b"x"))
    assert _tree(out) == {"old.tar": b"old"}
    with pytest.raises(RequestError, match="expected an OCI image layout"):
        write_layout(store, descriptor.digest, out, complete=False)
