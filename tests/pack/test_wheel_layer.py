"""A layer of wheels: the same bytes everywhere, in bounded memory, and other tools read it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import get_args

import pytest
import zstandard
from support.containers import empty_storage_at_the_end
from support.images import AMD64, saved
from support.needs import need
from support.raw_wheels import DATA, INFO, Member, locked, wheel

from assembler.oci import media_types
from assembler.oci.descriptor import COMPRESSOR
from assembler.oci.digest import Digest
from assembler.oci.image import Image, append
from assembler.oci.layout import Store
from assembler.pack import members
from assembler.pack.compress import CHUNK, Compression, compressor_id
from assembler.pack.splice import splicer_id
from assembler.pack.tarball import PackedLayer
from assembler.pack.twins import pack_twins
from assembler.pack.wheel_environment import Environment, environment_of
from assembler.pack.wheel_groups import WheelGroup
from assembler.pack.wheel_layer import group_entries, group_facts, pack_group

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
VENV = environment_of("/opt/venv", "3.11", "/usr/bin/python3.11", bytecode=False)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with everything that takes a way of its own: small and large, stored and deflated, none and many."""
    source = random.Random(5)  # noqa: S311  (the same bytes in every run)
    noise, text = source.randbytes(3 * CHUNK + 77), b"".join(b"line %d\n" % number for number in range(400_000))
    return wheel(
        Member("demo/__init__.py", b"x = 1\n"),
        Member("demo/empty.py"),
        Member("demo/stored-empty", deflated=False),
        Member("demo/noise.bin", noise),
        Member("demo/noise-stored.bin", noise, deflated=False),
        Member("demo/text.txt", text),
        Member("demo/zeros.bin", bytes(5 * CHUNK), zip64=True),
        Member("demo/exact.bin", noise[:CHUNK]),
        *(Member(f"demo/many/{number:04}.py", source.randbytes(number), described=True) for number in range(900)),
        Member(f"demo/{'long' * 40}/größe.txt", b"x" * 5000, deflated=False),
        Member(f"{DATA}/scripts/run", b"#!python\n"),
        Member(f"{INFO}/entry_points.txt", b"[console_scripts]\ndemo = demo:main\n"),
    ).write(tmp_path_factory.mktemp("wheel"))


def group_of(*paths: Path, **fields: object) -> tuple[WheelGroup, dict[str, Path]]:
    wheels = [locked(path, **fields) for path in paths]
    return WheelGroup(name="test", wheels=tuple(wheels)), {path.name: path for path in paths}


def packed(
    path: Path,
    store: Store,
    compression: Compression,
    *,
    environment: Environment = VENV,
    threads: int | None = None,
    epoch: int = 0,
) -> PackedLayer:
    group, wheels = group_of(path)
    return pack_group(
        group,
        environment,
        lambda wheel: wheels[wheel.filename],
        store,
        compression=compression,
        epoch=epoch,
        created_by="wheels demo",
        threads=threads,
        inline=threads == 1,
    )


def plain(store: Store, layer: PackedLayer) -> bytes:
    data = store.read(layer.layer.descriptor.digest)
    if layer.layer.descriptor.media_type == media_types.LAYER_GZIP:
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_layer_is_what_it_says(mixed: Path, store: Store, compression: Compression) -> None:
    layer = packed(mixed, store, compression)
    tar = plain(store, layer)
    assert Digest.of(tar) == layer.layer.diff_id
    assert len(tar) == layer.uncompressed_bytes
    expected = splicer_id() if compression == "gzip" else compressor_id("zstd")
    assert layer.layer.descriptor.annotations == {COMPRESSOR: expected}
    assert layer.layer.created_by == "wheels demo"


def test_the_tar_does_not_depend_on_the_compression(mixed: Path, store: Store) -> None:
    assert len({packed(mixed, store, compression).layer.diff_id for compression in COMPRESSIONS}) == 1


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_threads_and_places_do_not_show(mixed: Path, tmp_path: Path, compression: Compression) -> None:
    elsewhere = tmp_path / mixed.name
    elsewhere.write_bytes(mixed.read_bytes())
    os.utime(elsewhere, (1, 1))
    layers = [
        packed(path, Store(tmp_path / f"store{index}{threads}").create(), compression, threads=threads)
        for index, path in enumerate((mixed, elsewhere))
        for threads in (1, 2, 5)
    ]
    assert len({layer.layer.descriptor.digest for layer in layers}) == 1


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_twins_are_what_each_is_alone(mixed: Path, store: Store, tmp_path: Path, compression: Compression) -> None:
    alone = Store(tmp_path / "alone").create()
    compressions: tuple[Compression, Compression] = ("zstd", "gzip") if compression == "zstd" else ("gzip", "zstd")
    group, wheels = group_of(mixed)
    twins = pack_twins(
        group_entries(group, VENV, lambda wheel: wheels[wheel.filename], store), store, compressions
    )
    assert [twin.layer.descriptor for twin in twins] == [
        packed(mixed, alone, compression).layer.descriptor for compression in compressions
    ]


def test_zlib_inflates_to_the_same(mixed: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines for which there is no isal make the same layers."""
    expected = packed(mixed, store, "zstd").layer.diff_id
    monkeypatch.setattr(members, "inflating", zlib)
    assert packed(mixed, store, "zstd").layer.diff_id == expected


def test_gzip_is_spliced_from_the_streams_of_the_wheel(mixed: Path, store: Store) -> None:
    blob = store.read(packed(mixed, store, "gzip").layer.descriptor.digest)
    wheel_file = mixed.read_bytes()
    for name in (b"demo/noise.bin", b"demo/text.txt"):
        start = wheel_file.index(b"PK\3\4", wheel_file.index(name) - 30) + 30 + len(name)
        assert wheel_file[start : start + 4000] in blob


def test_the_key_of_a_layer_follows_from_what_decides_its_bytes(mixed: Path) -> None:
    group, _ = group_of(mixed)
    facts = group_facts(group, VENV)
    assert facts == group_facts(group_of(mixed, requested=True, url="https://elsewhere/x.whl")[0], VENV)
    others = [
        group_facts(group_of(mixed, direct={"url": "https://x"})[0], VENV),
        group_facts(group_of(mixed, sha256="1" * 64)[0], VENV),
        *(
            group_facts(group, environment_of(into, python, base, bytecode=False))
            for into, python, base in (
                ("/opt/other", "3.11", "/usr/bin/python3.11"),
                ("/opt/venv", "3.12", "/usr/bin/python3.11"),
                ("/usr/lib/python3/dist-packages", "3.11", "/usr/bin/python3.11"),
            )
        ),
    ]
    assert all(other != facts for other in others)
    # A wheel's layer in a virtual environment does not depend on where the base has its Python; the links do.
    base = environment_of("/opt/venv", "3.11", "/usr/local/bin/python3.11", bytecode=False)
    assert group_facts(group, base) == facts
    empty = WheelGroup(name="venv", wheels=())
    assert group_facts(empty, base) != group_facts(empty, VENV)


_MEMORY = """
import resource, sys
from pathlib import Path
from support.raw_wheels import locked
from assembler.oci.layout import Store
from assembler.pack.wheel_environment import environment_of
from assembler.pack.wheel_groups import WheelGroup
from assembler.pack.wheel_layer import pack_group
path, store, compression = Path(sys.argv[1]), Store(Path(sys.argv[2])).create(), sys.argv[3]
environment = environment_of("/opt/venv", "3.11", "/usr/bin/python3.11", bytecode=False)
group = WheelGroup(name="x", wheels=(locked(Path(sys.argv[4])),))
def pack(path):
    options = {"compression": compression, "epoch": 0, "created_by": "", "threads": 2}
    pack_group(group, environment, lambda _: path, store, **options)
pack(Path(sys.argv[4]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pack(path)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_memory_does_not_grow_with_the_wheel(tmp_path: Path, compression: Compression) -> None:
    """At most 60 MiB beyond the interpreter for a wheel with one member of 300 MiB, deflated, and one stored."""
    noise = random.Random(1).randbytes(1 << 20)  # noqa: S311
    stream = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    part, end = stream.compress(noise) + stream.flush(zlib.Z_FULL_FLUSH), stream.flush()
    large = wheel(
        Member("demo/deflated.bin", noise * 300, raw=part * 300 + end),
        Member("demo/stored.bin", noise * 50, deflated=False),
    ).write(tmp_path)
    (tmp_path / "small").mkdir()
    small = wheel(Member("demo/__init__.py")).write(tmp_path / "small")
    command = [sys.executable, "-c", _MEMORY, str(large), str(tmp_path / "store"), compression, str(small)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) < 60 << 10, "KiB"


# Other readers


def output_of(*command: str | Path) -> bytes:
    done = subprocess.run([str(each) for each in command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def files_of(tar: bytes) -> dict[str, str]:
    """The files of a tar with the hashes of their contents."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {
            member.name: hashlib.sha256(file.read()).hexdigest()
            for member in archive
            if member.isreg() and (file := archive.extractfile(member))
        }


def files_below(root: Path) -> dict[str, str]:
    """The files of a directory with the hashes of their contents."""
    paths = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize(
    "program", [["gzip", "-dc"], ["pigz", "-dc"], [sys.executable, "-m", "isal.igzip", "-dc"]]
)
def test_every_gunzip_reads_all_members(mixed: Path, store: Store, program: list[str]) -> None:
    need(program[0])  # pigz is what dockerd uses where it is
    layer = packed(mixed, store, "gzip")
    copy = store.root / "layer.tar.gz"
    copy.write_bytes(store.read(layer.layer.descriptor.digest))
    assert Digest.of(output_of(*program, copy)) == layer.layer.diff_id


def test_gnu_tar_unpacks_it(mixed: Path, store: Store, tmp_path: Path) -> None:
    layer = packed(mixed, store, "gzip")
    (tmp_path / "root").mkdir()
    output_of("tar", "-xzf", store.blob_path(layer.layer.descriptor.digest), "-C", tmp_path / "root")
    assert files_below(tmp_path / "root") == files_of(plain(store, layer))


def image(store: Store, layer: PackedLayer) -> str:
    """An image with this layer, as a name that skopeo and buildah understand."""
    store.tag("test", saved(store, append(Image.scratch(AMD64), [layer.layer])))
    return f"oci:{store.root}:test"


@pytest.mark.tools
def test_umoci_unpacks_it(mixed: Path, store: Store, tmp_path: Path) -> None:
    need("umoci")
    layer = packed(mixed, store, "gzip")
    image(store, layer)
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    output_of("umoci", "unpack", *rootless, "--image", f"{store.root}:test", tmp_path / "bundle")
    assert files_below(tmp_path / "bundle/rootfs") == files_of(plain(store, layer))


@pytest.mark.tools
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_skopeo_decompresses_it(mixed: Path, store: Store, tmp_path: Path, compression: Compression) -> None:
    need("skopeo")
    layer = packed(mixed, store, compression)
    target = f"dir:{tmp_path / 'dir'}"
    output_of("skopeo", "copy", "--insecure-policy", "--dest-decompress", image(store, layer), target)
    assert Digest.of((tmp_path / "dir" / layer.layer.diff_id.hex).read_bytes()) == layer.layer.diff_id


@pytest.mark.tools
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_buildah_unpacks_it(mixed: Path, store: Store, tmp_path: Path, compression: Compression) -> None:
    """It compares diff IDs too."""
    need("buildah")
    if os.geteuid() != 0:
        pytest.skip("storage without root has tests of its own")
    layer = packed(mixed, store, compression)
    storage = ["--storage-driver", "vfs", "--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run")]
    with empty_storage_at_the_end(tmp_path):
        container = output_of("buildah", *storage, "from", image(store, layer)).decode().strip()
        mounted = Path(output_of("buildah", *storage, "mount", container).decode().strip())
        assert files_below(mounted) == files_of(plain(store, layer))
        output_of("buildah", *storage, "umount", container)
