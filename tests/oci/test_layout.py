"""The store: whole files or none, whoever writes and whenever they stop."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.images import image_of, saved
from support.registry import output_of

from assembler.errors import VerifyError
from assembler.oci.digest import Digest
from assembler.oci.layout import Store, write_atomically

_WRITER = """
import sys
from pathlib import Path
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.layout import Store
store, name = Store(Path(sys.argv[1])).create(), sys.argv[2]
for number in range(10):
    store.put(b"same for all %d" % number)
    digest = store.put(f"{name} {number}".encode())
    store.tag(f"{name}-{number}", Descriptor(media_type="text/plain", digest=digest, size=1))
"""


def test_put_read_and_has(store: Store) -> None:
    digest = store.put(b"data")
    assert store.has(digest)
    assert store.read(digest) == b"data"
    assert store.blob_path(digest).stat().st_mode & 0o777 == 0o644
    assert not store.has(Digest.of(b"other"))


def test_unfinished_blob_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="interrupted"), store.writer() as blob:
        blob.write(b"half")
        raise RuntimeError("interrupted")
    assert not list((store.root / "tmp").iterdir())
    assert not list((store.root / "blobs/sha256").iterdir())


@pytest.mark.parametrize("data", [b"dat", b"datb", b"data!"])
def test_stream_of_other_bytes_leaves_nothing(store: Store, data: bytes) -> None:
    with pytest.raises(VerifyError):
        store.put_stream(io.BytesIO(data), Digest.of(b"data"), 4)
    assert not list((store.root / "blobs/sha256").iterdir())


def test_damaged_blob_is_noticed(store: Store) -> None:
    digest = store.put(b"data")
    store.blob_path(digest).write_bytes(b"daty")
    with pytest.raises(VerifyError, match="the bytes give"):
        store.read(digest)


def test_records(store: Store) -> None:
    key = "ab" * 32
    assert store.record(key) is None
    store.put_record(key, {"layer": 1})
    assert store.record(key) == {"layer": 1}
    store.record_path(key).write_bytes(b'{"layer":')
    assert store.record(key) is None


def test_names_move(store: Store) -> None:
    first, second = (saved(store, image_of(store, {name: b""})) for name in ("one", "two"))
    store.tag("latest", first)
    store.tag("latest", second)
    found = store.find("latest")
    assert found
    assert found.digest == second.digest
    assert len(store.index().manifests) == 1
    assert store.untag("latest")
    assert not store.untag("latest")


def test_writers_in_several_processes_lose_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), name], env={**os.environ})
        for name in "abc"
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    store = Store(tmp_path)
    assert len(store.index().manifests) == 30
    assert len(list((tmp_path / "blobs/sha256").iterdir())) == 40
    assert not list((tmp_path / "tmp").iterdir())


def test_reader_sees_old_or_new_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [json.dumps([number] * 1000).encode() for number in range(50)]
    write_atomically(path, contents[0])

    def write_all() -> None:
        for content in contents:
            write_atomically(path, content)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_all)
        while not writing.done():
            assert path.read_bytes() in contents
        writing.result()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.tools
def test_skopeo_reads_the_store(store: Store) -> None:
    descriptor = saved(store, image_of(store, {"hello": b"hello"}))
    store.tag("hello", descriptor)
    found = json.loads(output_of(["skopeo", "inspect", f"oci:{store.root}:hello"]))
    assert found["Digest"] == descriptor.digest
