"""Packing is a function of content, in one pass, within bounds, and other tools read the same."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.needs import need

from assembler.errors import AssembleError, NodeError, StepError, UntrustedInputError
from assembler.oci import media_types
from assembler.oci.descriptor import COMPRESSOR, Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import Image, append
from assembler.oci.layout import Store
from assembler.oci.platform import Platform
from assembler.pack.tarball import CHUNK, Compression, PackedLayer, compressor_id, pack
from assembler.tree.builder import TreeBuilder, arrange, tar_name
from assembler.tree.directory import read_directory
from assembler.tree.entry import Entry, Slice

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


def file(path: str, data: bytes = b"", mode: int = 0o644) -> Entry:
    return Entry(path=path, kind="file", mode=mode, size=len(data), content=data)


def tar_of(store: Store, packed: PackedLayer) -> bytes:
    """The uncompressed layer; its digest, and the blob's, are checked on the way."""
    data = store.read(packed.layer.descriptor.digest)
    assert len(data) == packed.layer.descriptor.size
    if packed.layer.descriptor.media_type == media_types.LAYER_GZIP:
        tar = gzip.decompress(data)
    else:
        tar = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert Digest.of(tar) == packed.layer.diff_id
    assert len(tar) == packed.uncompressed_bytes
    return tar


def members(store: Store, packed: PackedLayer) -> dict[str, tuple[tarfile.TarInfo, bytes | None]]:
    with tarfile.open(fileobj=io.BytesIO(tar_of(store, packed))) as archive:
        found = {}
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            found[member.name] = (member, stream.read() if stream else None)
        return found


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Entry, ...]:
    """Every kind of entry, and contents in memory, in files and in parts of files, over several chunks."""
    source = random.Random(3)  # noqa: S311  (the same bytes in every run)
    (tmp_path / "large").write_bytes(large := source.randbytes(2 * CHUNK + 700))
    (tmp_path / "exact").write_bytes(large[:CHUNK])
    (tmp_path / "empty").touch()
    tree = TreeBuilder("mixed")
    for entry in (
        Entry(path="opt/d", kind="directory", mode=0o1777, uid=5, gid=6),
        Entry(path="opt/d/large", kind="file", size=len(large), content=tmp_path / "large"),
        Entry(path="opt/d/exact", kind="file", mode=0o755, size=CHUNK, content=tmp_path / "exact"),
        Entry(path="opt/d/part", kind="file", size=CHUNK, content=Slice(tmp_path / "large", 513, CHUNK)),
        Entry(path="opt/d/empty", kind="file", content=tmp_path / "empty"),
        Entry(path="opt/d/link", kind="symlink", link="../elsewhere/" + "x" * 100),
        Entry(path="opt/d/second", kind="hardlink", link="opt/d/large"),
        Entry(path="opt/d/capable", kind="file", content=b"", xattrs={"security.capability": b"\0\n\xff"}),
        Entry(path="opt/gone", kind="whiteout"),
        Entry(path="opt/hidden", kind="directory", mode=0o755),
        Entry(path="opt/hidden", kind="opaque"),
        file("opt/ünïcode/" + "long" * 40, b"name"),
        *(file(f"opt/many/{number:04}", source.randbytes(number)) for number in range(1200)),
    ):
        tree.add(entry, "test")
    return tree.entries()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_goes_in_comes_out(store: Store, mixed: tuple[Entry, ...], compression: Compression) -> None:
    packed = pack(mixed, store, compression=compression, epoch=1_000_000_000, created_by="a test")
    assert packed.files == len(mixed)
    assert packed.layer.created_by == "a test"
    assert packed.layer.descriptor.annotations == {COMPRESSOR: compressor_id(compression)}
    found = members(store, packed)
    assert list(found) == [tar_name(entry) for entry in mixed]
    for entry in mixed:
        member, data = found[tar_name(entry)]
        expected = (entry.mode, entry.uid, entry.gid, entry.size, entry.link, 1_000_000_000)
        assert (member.mode, member.uid, member.gid, member.size, member.linkname, member.mtime) == expected
        assert (member.uname, member.gname) == ("", "")
        match entry.content:
            case bytes(content):
                assert data == content
            case Slice(path, offset, size):
                assert data == path.read_bytes()[offset : offset + size]
            case Path() as path:
                assert data == path.read_bytes()


def test_the_tar_does_not_depend_on_the_compression(store: Store, mixed: tuple[Entry, ...]) -> None:
    diff_ids = {pack(mixed, store, compression=compression).layer.diff_id for compression in COMPRESSIONS}
    assert len(diff_ids) == 1


def test_an_empty_layer_is_a_tar_of_nothing(store: Store) -> None:
    packed = pack((), store)
    assert tar_of(store, packed) == bytes(1024)


@pytest.mark.parametrize("rest", [0, 512, 1024, 1536, 2048])
def test_an_end_that_falls_on_the_border_of_a_chunk(store: Store, rest: int) -> None:
    packed = pack([file("x", bytes(CHUNK - 512 - rest))], store)
    assert packed.uncompressed_bytes == CHUNK - rest + 1024
    assert list(members(store, packed)) == ["x"]


def test_a_header_that_lies_across_chunks(store: Store) -> None:
    entries = [file("a", bytes(CHUNK - 1024)), file("b" * 150, b"data"), file("c" * 1000, b"more")]
    found = members(store, pack(entries, store))
    assert [data for _member, data in found.values()] == [bytes(CHUNK - 1024), b"data", b"more"]


class Reading:
    """Reads what is there whenever more is there."""

    def __init__(self) -> None:
        self.data = b""

    def begin(self, path: Path) -> None:
        self.file = path.open("rb")

    def grew(self, size: int) -> None:
        self.data += self.file.read(size - len(self.data))
        assert len(self.data) == size


def test_the_follower_sees_the_blob_and_progress_the_tar(store: Store, mixed: tuple[Entry, ...]) -> None:
    follower, seen = Reading(), list[int]()
    packed = pack(mixed, store, follower=follower, progress=seen.append)
    with follower.file:
        assert follower.data == store.read(packed.layer.descriptor.digest)
    assert seen == sorted(seen)
    assert seen[-1] == packed.uncompressed_bytes


# What changes nothing


def write_tree(root: Path, contents: dict[str, bytes], order: Sequence[str], times: Callable[[], float]) -> None:
    for name in order:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[name])
        if name.endswith("x"):
            path.chmod(0o755)
    os.link(root / "hard/one", root / "hard/two")
    (root / "to").symlink_to("hard/one")
    for path in root.rglob("*"):
        os.utime(path, (times(), times()), follow_symlinks=False)
        if os.geteuid() == 0:
            os.chown(path, int(times()) % 60_000, int(times()) % 60_000, follow_symlinks=False)


_CONTENTS = st.dictionaries(
    st.text("abcxyzäß.-_ ", min_size=1, max_size=9)
    .filter(lambda name: set(name) != {"."})
    .map(lambda name: f"tree/{name}"),
    st.binary(max_size=3000),
    max_size=8,
).map(lambda contents: {**contents, "hard/one": b"1"})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=_CONTENTS,
    source=st.randoms(use_true_random=False),
    umask=st.sampled_from([0, 0o022, 0o027]),
    threads=st.integers(0, 4),
    zone=st.sampled_from(["UTC", "Asia/Kathmandu", "America/St_Johns"]),
    locale=st.sampled_from(["C", "C.UTF-8", "tr_TR.UTF-8"]),
    compression=st.sampled_from(COMPRESSIONS),
)
def test_a_layer_is_a_function_of_content(
    monkeypatch: pytest.MonkeyPatch,
    contents: dict[str, bytes],
    source: random.Random,
    umask: int,
    threads: int,
    zone: str,
    locale: str,
    compression: Compression,
) -> None:
    """Order, times, owners, umask, working directory, time zone, locale and threads never show.

    design: "A layer is a pure function of its content."
    """
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        store = Store(Path(one) / "store").create()
        names = sorted(contents)
        write_tree(Path(one) / "tree", contents, names, lambda: 1e9)
        expected = pack(read_directory(Path(one) / "tree"), store, compression=compression, threads=2)

        shuffled = source.sample(names, len(names))
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            patch.setenv("LC_ALL", locale)
            patch.chdir(other)
            time.tzset()
            before = os.umask(umask)
            try:
                write_tree(Path(other) / "tree", contents, shuffled, lambda: source.uniform(0, 4e9))
                entries = list(read_directory(Path("tree")))
                source.shuffle(entries)
                packed = pack(entries, store, compression=compression, threads=threads, inline=threads == 0)
            finally:
                os.umask(before)
        time.tzset()
        assert packed == expected
        tar_of(store, packed)


# What is refused


def test_a_file_that_changed_its_size_is_named(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for written, expected in ((b"1234", 3), (b"12", 3), (b"1", 0), (bytes(CHUNK + 1), CHUNK), (b"", 5)):
        path.write_bytes(written)
        entry = Entry(path="opt/file", kind="file", size=expected, content=path)
        with pytest.raises(
            StepError, match=f"`opt/file` changed .* {expected} bytes, got {len(written)}"
        ) as caught:
            pack([entry, file("z", bytes(CHUNK))], store)
        assert caught.value.place == str(path)


def test_a_slice_past_the_end_of_its_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"12345")
    entry = Entry(path="x", kind="file", size=4, content=Slice(tmp_path / "archive", 3, 4))
    with pytest.raises(StepError, match="`x` changed"):
        pack([entry], store)


def test_content_in_memory_of_another_size(store: Store) -> None:
    with pytest.raises(StepError, match="expected 4 bytes, got 3"):
        pack([Entry(path="x", kind="file", size=4, content=b"123")], store)


def test_a_file_that_cannot_be_read(store: Store, tmp_path: Path) -> None:
    entry = Entry(path="x", kind="file", size=4, content=tmp_path / "missing")
    with pytest.raises(NodeError, match="`x` cannot be read: no such file"):
        pack([entry], store)


def test_a_path_that_is_there_twice(store: Store) -> None:
    with pytest.raises(UntrustedInputError, match="`x` is there twice"):
        pack([file("x"), file("x")], store)


class Broken:
    """A follower that ends in the middle."""

    def begin(self, path: Path) -> None:
        assert path.exists()

    def grew(self, _size: int) -> None:
        raise ConnectionResetError("gone")


def test_nothing_is_left_when_packing_fails(store: Store, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(9 * CHUNK)  # noqa: S311
    missing = Entry(path="z", kind="file", size=4, content=tmp_path / "missing")
    with pytest.raises(AssembleError):
        pack([file("a", data), missing], store)
    with pytest.raises(ConnectionResetError):
        pack([file("a", data)], store, follower=Broken())
    assert list((store.root / "tmp").iterdir()) == []
    assert list((store.root / "blobs/sha256").iterdir()) == []


# Bounds

_MEMORY = """
import resource, sys
from pathlib import Path
from assembler.oci.layout import Store
from assembler.pack.tarball import pack
from assembler.tree.entry import Entry

path, root, compression = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
entries = [Entry(path=name, kind="file", size=path.stat().st_size, content=path) for name in "ab"]
store = Store(root).create()
pack([Entry(path="warm", kind="file", content=b"")], store, compression=compression, threads=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range(3):
    pack(entries[: 1 + number % 2], store, compression=compression, threads=2, level=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_memory_does_not_grow_with_the_layer_or_their_number(tmp_path: Path, compression: Compression) -> None:
    """At most 60 MiB beyond the interpreter, for files of 256 MiB and one layer after the other."""
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as stream:
        stream.truncate(256 << 20)
    command = [sys.executable, "-c", _MEMORY, str(sparse), str(tmp_path / "store"), compression]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < 60 << 10, "KiB"


# Other readers


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


@pytest.mark.tools
def test_gnu_tar_lists_and_unpacks_the_same(store: Store, mixed: tuple[Entry, ...], tmp_path: Path) -> None:
    need("tar")
    archive = tmp_path / "layer.tar"
    archive.write_bytes(tar_of(store, pack(mixed, store)))
    listed = run("tar", "--quoting-style=literal", "-tf", archive).splitlines()
    assert [name.rstrip("/") for name in listed] == [tar_name(entry) for entry in mixed]
    (tmp_path / "out").mkdir()
    run("tar", "--no-same-owner", "-C", tmp_path / "out", "-xf", archive)
    unpacked = tmp_path / "out/opt/d"
    assert (unpacked / "large").read_bytes() == (tmp_path / "large").read_bytes()
    assert (unpacked / "second").samefile(unpacked / "large")
    assert (unpacked / "large").stat().st_mtime == 0


def tagged(store: Store, layers: Sequence[PackedLayer]) -> None:
    """Put an image of these layers into the store, named `test`."""
    image = append(Image.scratch(Platform.parse("linux/amd64")), [packed.layer for packed in layers])
    manifest, config = image.manifest()
    store.put(config)
    data = manifest.to_bytes()
    store.tag("test", Descriptor(media_type=media_types.MANIFEST, digest=store.put(data), size=len(data)))


@pytest.mark.tools
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_skopeo_reads_the_layer(
    store: Store, mixed: tuple[Entry, ...], tmp_path: Path, compression: Compression
) -> None:
    need("skopeo")
    packed = pack(mixed, store, compression=compression)
    tagged(store, [packed])
    source, target = f"oci:{store.root}:test", f"dir:{tmp_path / 'copy'}"
    run("skopeo", "copy", "--insecure-policy", "--dest-decompress", source, target)
    blobs = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "copy").iterdir()}
    assert packed.layer.diff_id.hex in blobs


@pytest.mark.tools
def test_umoci_unpacks_a_gzip_layer_to_the_same_tree(
    store: Store, mixed: tuple[Entry, ...], tmp_path: Path
) -> None:
    need("umoci")
    below = [file("opt/gone", b"old"), file("opt/hidden/old", b"old")]
    upper = [entry for entry in mixed if not entry.xattrs]  # the kernel refuses capabilities that are none
    tagged(store, [pack(arrange(layer), store, compression="gzip") for layer in (below, upper)])
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    run("umoci", "unpack", *rootless, "--image", f"{store.root}:test", tmp_path / "bundle")
    root = tmp_path / "bundle/rootfs"
    assert not (root / "opt/gone").exists()
    assert list((root / "opt/hidden").iterdir()) == []
    assert (root / "opt/d/second").samefile(root / "opt/d/large")
    for entry in upper:
        if isinstance(entry.content, bytes):
            assert (root / entry.path).read_bytes() == entry.content
