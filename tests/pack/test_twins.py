"""Two compressions from one reading, and one from the other: the very bytes that packing each alone gives."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from assembler.errors import NodeError, StepError, VerifyError
from assembler.oci.digest import Digest
from assembler.oci.layout import Store
from assembler.pack.compress import CHUNK, Compression
from assembler.pack.tarball import pack
from assembler.pack.twins import pack_twins, recompress
from assembler.tree.builder import TreeBuilder
from assembler.tree.entry import Entry

BOTH: tuple[Compression, Compression] = ("zstd", "gzip")


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Entry, ...]:
    """Files that fill several chunks, one of them to its last byte."""
    source = random.Random(5)  # noqa: S311  (the same bytes in every run)
    (tmp_path / "large").write_bytes(source.randbytes(3 * CHUNK + 77) + bytes(6 * CHUNK))
    size = (tmp_path / "large").stat().st_size
    builder = TreeBuilder("tree")
    builder.add(Entry(path="opt/large", kind="file", size=size, content=tmp_path / "large"), "test")
    for number in range(50):
        data = source.randbytes(number * 100)
        builder.add(Entry(path=f"opt/{number}", kind="file", size=len(data), content=data), "test")
    return builder.entries()


def blobs(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "blobs/sha256").iterdir())


def test_twins_are_what_each_alone_is(tmp_path: Path, tree: tuple[Entry, ...]) -> None:
    apart, store = Store(tmp_path / "apart").create(), Store(tmp_path / "store").create()
    alone = [pack(tree, apart, compression=name, created_by="x") for name in BOTH]
    seen: list[int] = []
    twins = pack_twins(tree, store, BOTH, created_by="x", progress=seen.append)
    assert list(twins) == alone
    assert twins[0].layer.diff_id == twins[1].layer.diff_id
    assert blobs(store) == blobs(apart)
    assert all(Digest.of(store.blob_path(Digest.from_hex(name)).read_bytes()).hex == name for name in blobs(store))
    assert seen[-1] == twins[0].uncompressed_bytes


@pytest.mark.parametrize(("origin", "wanted"), [BOTH, BOTH[::-1]])
def test_compressed_anew_is_what_packing_gives(
    tmp_path: Path, tree: tuple[Entry, ...], origin: Compression, wanted: Compression
) -> None:
    store = Store(tmp_path / "store").create()
    layer = pack(tree, store, compression=origin, created_by="x").layer
    again = recompress(layer, store, wanted, threads=1)
    assert again == pack(tree, Store(tmp_path / "other").create(), compression=wanted, created_by="x").layer
    assert store.has(again.descriptor.digest)


def test_an_empty_layer_has_twins(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").create()
    first, second = pack_twins((), store, BOTH)
    assert recompress(first.layer, store, "gzip") == second.layer
    assert recompress(second.layer, store, "zstd") == first.layer


def test_a_file_that_changes_leaves_neither(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5 * CHUNK))
    entry = Entry(path="opt/file", kind="file", size=9 * CHUNK, content=tmp_path / "file")
    store = Store(tmp_path / "store").create()
    with pytest.raises(StepError, match="changed while it was packed"):
        pack_twins((entry,), store, BOTH)
    assert blobs(store) == []
    assert not list((store.root / "tmp").iterdir())
    assert not [thread.name for thread in threading.enumerate() if "twin" in thread.name]


def test_a_damaged_layer_has_no_twin(tmp_path: Path, tree: tuple[Entry, ...]) -> None:
    store = Store(tmp_path / "store").create()
    layer = pack(tree, store, compression="gzip").layer
    path = store.blob_path(layer.descriptor.digest)
    path.write_bytes(path.read_bytes()[: CHUNK * 2])
    with pytest.raises(VerifyError, match="damaged"):
        recompress(layer, store, "zstd")
    other = pack(tree[:3], store, compression="gzip").layer
    path.write_bytes(store.blob_path(other.descriptor.digest).read_bytes())
    with pytest.raises(VerifyError, match="expected diff ID"):
        recompress(layer, store, "zstd")
    assert len(blobs(store)) == 2


def test_a_store_that_takes_nothing_is_named(tmp_path: Path, tree: tuple[Entry, ...]) -> None:
    store = Store(tmp_path / "store").create()
    (store.root / "blobs/sha256").rmdir()
    (store.root / "blobs/sha256").write_text("in the way")
    with pytest.raises(NodeError, match="cannot be written"):
        pack_twins((tree[0],), store, BOTH)
