"""What `gc` frees and what it keeps, alone and beside living runs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from assembler.errors import NodeError
from assembler.gc import DAY_SECONDS, collect, marked, plan_gc
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.hold import Holder, exclusive, hold, holders
from assembler.oci.image import BlobLayer, Image, ImageIndex, append
from assembler.oci.layout import Store
from assembler.oci.platform import Platform

DAY = DAY_SECONDS


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").create()


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def put(store: Store, data: bytes, seconds: float = 0) -> Digest:
    digest = store.put(data)
    age(store.blob_path(digest), seconds)
    return digest


def put_record(store: Store, key: str, value: dict[str, object], seconds: float = 0) -> Path:
    store.put_record(key, value)
    age(store.record_path(key), seconds)
    return store.record_path(key)


def put_image(store: Store, name: str, layer: bytes) -> set[Digest]:
    descriptor = Descriptor(media_type=media_types.LAYER, digest=store.put(layer), size=len(layer))
    image = append(
        Image.scratch(Platform.parse("linux/amd64")),
        [BlobLayer(descriptor=descriptor, diff_id=descriptor.digest)],
    )
    manifest, config = image.manifest()
    data = manifest.to_bytes()
    one = Descriptor(media_type=media_types.MANIFEST, digest=store.put(data), size=len(data))
    index = ImageIndex(manifests=(one,)).to_bytes()
    store.tag(name, Descriptor(media_type=media_types.INDEX, digest=store.put(index), size=len(index)))
    return {descriptor.digest, store.put(config), one.digest, Digest.of(index)}


def blobs(store: Store) -> set[str]:
    return {f"sha256:{path.name}" for path in (store.root / "blobs/sha256").iterdir()}


def test_images_and_young_records_keep_what_they_name(store: Store) -> None:
    needed = put_image(store, "tgi", b"layer")
    inner = put(store, b"named in a document", 90 * DAY)
    document = put(store, b'{"layers":[{"digest":"%s"}]}' % inner.encode(), 90 * DAY)
    needed |= {inner, document}
    put_record(store, "aa11", {"deep": [{"in": f"repository@{document}"}]}, DAY)
    free = put(store, b"nobody's", 1)
    old = put(store, b"old", 90 * DAY)
    record = put_record(store, "bb22", {"bundle": old}, 90 * DAY)

    plan = plan_gc(store)
    assert not plan.in_use
    assert {one.path for one in plan.blobs} == {store.blob_path(free), store.blob_path(old)}
    assert [one.path for one in plan.records] == [record]
    assert plan.size == len(b"nobody's") + len(b"old") + record.stat().st_size
    assert free in blobs(store)

    freed = collect(plan)
    assert (freed.blobs, freed.records, freed.size) == (2, 1, plan.size)
    assert blobs(store) == needed
    assert not record.exists()
    assert store.record("aa11")
    assert plan_gc(store).size == 0


def test_nothing_is_kept_but_images_when_so_told(store: Store) -> None:
    needed = put_image(store, "tgi", b"layer")
    put_record(store, "aa11", {"bundle": put(store, b"bundle")}, 1)
    collect(plan_gc(store, keep_seconds=0))
    assert blobs(store) == needed
    store.untag("tgi")
    collect(plan_gc(store))
    assert blobs(store) == set()


def test_packages_and_archives_stay_for_as_long_as_their_image(store: Store) -> None:
    """An image that nobody has built for long keeps what no mirror may have any more, and no more than that."""
    put_image(store, "tgi", b"layer")
    manifest = next(digest for digest in marked(store) if b'"layers"' in store.read(digest))
    deb, archive = put(store, b"a .deb", 90 * DAY), put(store, b"an archive", 90 * DAY)
    bundle, other = put(store, b"bundle", 90 * DAY), put(store, b"another .deb", 90 * DAY)
    kept = [
        put_record(store, "aa11", {"manifest": manifest, "steps": ["bb22", "cc33", "dd44", "ee55"]}, 90 * DAY),
        put_record(store, "bb22", {"image": "localhost/toolchain", "inputs": [deb]}, 90 * DAY),
        put_record(store, "cc33", {"bundle": bundle, "inputs": [archive, deb]}, 90 * DAY),
    ]
    gone = [
        put_record(store, "dd44", {"bundle": bundle}, 90 * DAY),
        put_record(store, "ff66", {"image": "localhost/other", "inputs": [other]}, 90 * DAY),
    ]
    for _ in range(2):
        plan = plan_gc(store)
        freed = collect(plan)
        assert (freed.records, freed.blobs) == (len(plan.records), len(plan.blobs))
        assert {deb, archive} <= blobs(store)
        assert not {bundle, other} & blobs(store)
        assert all(path.exists() for path in kept)
        assert not any(path.exists() for path in gone)
    store.untag("tgi")
    collect(plan_gc(store))
    assert blobs(store) == set()
    assert not any(path.exists() for path in kept)


def test_packages_of_a_base_stay_with_the_image_on_it(store: Store) -> None:
    """A base that is a manifest has an image and steps of its own, but no name; what it was made into may go."""
    put_image(store, "tgi", b"layer")
    manifest = next(digest for digest in marked(store) if b'"layers"' in store.read(digest))
    deb, devel = put(store, b"a .deb", 90 * DAY), put(store, b"the devel base", 90 * DAY)
    put_record(store, "aa11", {"manifest": manifest, "steps": ["bb22"]}, 90 * DAY)
    put_record(store, "bb22", {"manifest": devel, "steps": ["cc33", "aa11"]}, 90 * DAY)
    put_record(store, "cc33", {"descriptor": {"digest": devel}, "inputs": [deb]}, 90 * DAY)
    assert collect(plan_gc(store)).records == 0
    assert deb in blobs(store)
    assert devel not in blobs(store)


def test_without_a_time_to_keep_they_go_too(store: Store) -> None:
    needed = put_image(store, "tgi", b"layer")
    manifest = next(digest for digest in marked(store) if b'"layers"' in store.read(digest))
    put_record(store, "aa11", {"manifest": manifest, "steps": ["bb22"]})
    put_record(store, "bb22", {"inputs": [put(store, b"a .deb")]})
    collect(plan_gc(store, keep_seconds=0))
    assert blobs(store) == needed


def test_steps_of_an_image_that_is_used_count_as_used(store: Store) -> None:
    """A rebuild that has nothing to do looks at the image alone; its base is an image with steps of its own."""
    bundle, layer = put(store, b"bundle", 90 * DAY), put(store, b"a base's layer", 90 * DAY)
    put_record(store, "aa11", {"manifest": "sha256:" + "1" * 64, "steps": ["bb22", "cc33"]}, DAY)
    put_record(store, "bb22", {"bundle": bundle}, 90 * DAY)
    put_record(store, "cc33", {"manifest": "sha256:" + "2" * 64, "steps": ["dd44", "none", 5]}, 90 * DAY)
    put_record(store, "dd44", {"descriptor": {"digest": layer}}, 90 * DAY)
    put_record(store, "ee55", {"manifest": "sha256:" + "3" * 64, "steps": "bb22"}, 90 * DAY)
    assert collect(plan_gc(store)).records == 1
    assert blobs(store) == {bundle, layer}


def test_the_deed_looks_anew(store: Store) -> None:
    free = put(store, b"x", 90 * DAY)
    plan = plan_gc(store)
    assert plan.blobs
    put_record(store, "aa11", {"bundle": free})
    assert collect(plan).blobs == 0
    assert store.has(free)


# beside living runs


def begin(store: Store, seconds: float) -> None:
    """Make all holders of the store begin in the past."""
    for path in (store.root / "holders").iterdir():
        age(path, seconds)


def test_what_a_living_run_may_have_looked_at_stays(store: Store) -> None:
    untouched = put(store, b"untouched", 90 * DAY)
    looked_at = put(store, b"looked at", 90 * DAY)
    recorded = put(store, b"recorded", 90 * DAY)
    young = put(store, b"young", 1800)
    record = put_record(store, "aa11", {"bundle": recorded}, 90 * DAY)
    untouched_record = put_record(store, "bb22", {}, 90 * DAY)
    with hold(store):
        begin(store, 7200)
        assert store.has(looked_at)
        assert store.record("aa11")
        plan = plan_gc(store)
        assert plan.in_use
        assert collect(plan).in_use
        assert blobs(store) == {looked_at, recorded, young}
        assert record.exists()
        assert not untouched_record.exists()
    assert untouched not in blobs(store)


def test_a_run_that_began_long_ago_protects_what_it_used_then(store: Store) -> None:
    used = put(store, b"used five hours ago", 5 * 3600)
    before = put(store, b"used before that run", 8 * 3600)
    with hold(store):
        begin(store, 6 * 3600)
        collect(plan_gc(store))
    assert blobs(store) == {used}
    assert before not in blobs(store)


def test_a_file_used_between_plan_and_removal_comes_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = put(store, b"used just now", 90 * DAY)
    path, rename = store.blob_path(digest), Path.rename

    def use_then_rename(self: Path, target: Path) -> Path:
        if self == path:
            assert store.has(digest)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", use_then_rename)
    with hold(store):
        begin(store, 7200)
        plan = plan_gc(store)
        assert plan.blobs
        assert collect(plan).blobs == 0
    assert store.read(digest) == b"used just now"


def test_committing_a_blob_that_is_there_counts_as_use(store: Store) -> None:
    digest = put(store, b"again", 90 * DAY)
    with hold(store):
        begin(store, 7200)
        with store.writer() as blob:
            blob.write(b"again")
            blob.commit(digest)
        assert not plan_gc(store).blobs


def test_unknown_holders_stop_the_freeing_of_blobs(store: Store) -> None:
    put(store, b"x", 90 * DAY)
    with (store.root / "gc.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        plan = plan_gc(store)
    assert plan.in_use
    assert not plan.blobs


# temporary files and runs


def test_files_of_living_writers_stay(store: Store) -> None:
    dead = store.root / "tmp" / "blob-dead"
    dead.write_bytes(b"12345")
    hidden = store.root / "blobs/sha256/.gc-0123"
    hidden.write_bytes(b"1")
    age(hidden, 3600)
    record = put_record(store, "aa11", {})
    left = record.with_name(".aa11.json-x")
    left.write_bytes(b"1")
    with store.writer() as blob:
        blob.write(b"living")
        age(blob.path, 90 * DAY)
        freed = collect(plan_gc(store))
        assert blob.path.exists()
    assert freed.temporaries == 2
    assert not dead.exists()
    assert not hidden.exists()
    assert left.exists()


def test_young_temporary_files_stay_beside_a_run(store: Store) -> None:
    young, old = store.root / "tmp" / "blob-young", store.root / "tmp" / "blob-old"
    young.touch()
    old.touch()
    age(old, 7200)
    with hold(store):
        collect(plan_gc(store))
    assert young.exists()
    assert not old.exists()


def test_directories_of_dead_runs_go_when_they_are_old(store: Store, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("living", "dead", "young"):
        (runs / name / "logs").mkdir(parents=True)
        (runs / name / "lock").touch()
        (runs / name / "logs" / "ucx.txt").write_text("log")
        age(runs / name, 0 if name == "young" else 90 * DAY)
    with (runs / "living" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        freed = collect(plan_gc(store, runs_directory=runs))
    assert (freed.runs, freed.size) == (1, 3)
    assert {path.name for path in runs.iterdir()} == {"living", "young"}


def test_a_store_that_is_not_there_frees_nothing(tmp_path: Path) -> None:
    assert collect(plan_gc(Store(tmp_path / "none"))).size == 0
    assert not (tmp_path / "none").exists()


def test_a_store_of_somebody_else_is_an_error() -> None:
    me = os.geteuid()
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "store").create()
        Path(directory).chmod(0o755)
        store.root.chmod(0o555)
        try:
            if not me:
                os.seteuid(65534)  # root may write anywhere
            with pytest.raises(NodeError, match="not ours"):
                plan_gc(store)
        finally:
            os.seteuid(me)
            store.root.chmod(0o755)


def test_a_damaged_store_is_no_obstacle(store: Store) -> None:
    (store.root / "index.json").write_bytes(b"\xff\x00 no json")
    put_record(store, "aa11", {"missing": "sha256:" + "0" * 64})
    assert marked(store) == {Digest("sha256:" + "0" * 64)}
    collect(plan_gc(store))


# holding


def test_a_hold_ends_with_its_process_however_it_ends(store: Store) -> None:
    script = (
        "import os, sys; from pathlib import Path; from assembler.oci.hold import hold;"
        "from assembler.oci.layout import Store; held = hold(Store(Path(sys.argv[1]))); held.__enter__();"
        "print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script, store.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert [holder.uid for holder in holders(store)] == [os.getuid()]
        with exclusive(store) as is_alone:
            assert not is_alone
        child.kill()
        child.wait()
    assert holders(store) == ()
    assert list((store.root / "holders").iterdir()) == []
    with exclusive(store) as is_alone:
        assert is_alone


def test_holds_share_and_leave_nothing(store: Store) -> None:
    with hold(store), hold(store):
        assert len(holders(store)) == 2
        assert all(isinstance(one, Holder) and time.time() - one.since < 60 for one in holders(store))
    assert holders(store) == ()
    assert list((store.root / "holders").iterdir()) == []


def test_a_run_that_starts_while_blobs_are_freed_waits(store: Store) -> None:
    waiting, held = threading.Event(), threading.Event()

    def start() -> None:
        with hold(store, on_wait=waiting.set):
            held.set()

    with exclusive(store) as is_alone:
        assert is_alone
        thread = threading.Thread(target=start)
        thread.start()
        assert waiting.wait(10)
        assert not held.wait(0.05)
    assert held.wait(10)
    thread.join()
