"""Fetching locked wheels: by hash, from wherever they are, in parallel, resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.wheels import Index, MadeWheel, make_wheel, running_index

from assembler.build.download import Patience
from assembler.build.fetching import Fetching
from assembler.build.index_settings import IndexSettings
from assembler.build.wheel_files import WheelPlaces
from assembler.errors import LockError, RegistryError
from assembler.events import Event, StepProgress
from assembler.manifest.wheels import LockedWheel
from assembler.oci.layout import Store

FAST = Patience(attempts=3, first=0.0, sleep=lambda _seconds: None)
APP = make_wheel("app", files={"app/data.bin": "x" * 300_000 + "y"})
LIB = make_wheel("lib-core", "2.0")


@pytest.fixture
def index() -> Iterator[Index]:
    with running_index() as index:
        index.add(APP, LIB)
        yield index


def locked(wheel: MadeWheel, url: str, **changes: Any) -> LockedWheel:
    name, version = wheel.filename.split("-")[:2]
    facts = {
        "name": name.replace("_", "-"),
        "version": version,
        "filename": wheel.filename,
        "url": url,
        "sha256": wheel.sha256,
        "size": len(wheel.data),
    }
    return LockedWheel(**{**facts, **changes})


def fetch(store: Store, wheels: Sequence[LockedWheel], places: WheelPlaces) -> list[Event]:
    items = [places.item(wheel) for wheel in wheels]
    events: list[Event] = []
    with Fetching(items, store, events.append, noun="wheel", step="s", patience=FAST) as fetching:
        fetching.all()
        for wheel in wheels:
            assert fetching.wait(wheel.digest).stat().st_size == wheel.size
    places.close()
    return events


def test_by_its_address(store: Store, index: Index) -> None:
    wheels = [locked(each, index.address(each)) for each in (APP, LIB)]
    events = fetch(store, wheels, WheelPlaces(IndexSettings(no_index=True)))
    assert store.blob_path(wheels[0].digest).read_bytes() == APP.data
    assert sorted(index.downloads()) == sorted([APP.filename, LIB.filename])
    total = len(APP.data) + len(LIB.data)
    assert events[-1] == StepProgress(step="s", done_bytes=total, total_bytes=total)
    assert not any("simple" in line for line in index.asked)


def test_a_broken_connection_is_taken_up_again(store: Store, index: Index) -> None:
    index.broken[f"/files/{APP.filename}"] = 200
    fetch(store, [locked(APP, index.address(APP))], WheelPlaces(IndexSettings()))
    assert index.downloads() == [APP.filename] * 2


def test_gone_from_the_locked_address(store: Store, index: Index) -> None:
    """The index of today has it elsewhere: found by project, file name and hash."""
    lock = locked(LIB, "http://127.0.0.1:9/old/lib_core-2.0-py3-none-any.whl")
    fetch(store, [lock], WheelPlaces(IndexSettings(extra=(index.url,), default="http://127.0.0.1:9/simple")))
    assert index.downloads() == [LIB.filename]


def test_a_mirror_of_ones_own_comes_first(store: Store, index: Index) -> None:
    with running_index() as elsewhere:
        elsewhere.add(APP)
        lock = locked(APP, elsewhere.address(APP).replace("127.0.0.1", "localhost"))
        fetch(store, [lock], WheelPlaces(IndexSettings(default=index.url)))
        assert elsewhere.asked == []
    assert index.downloads() == [APP.filename]


def test_a_mirror_that_lacks_it(store: Store, index: Index) -> None:
    with running_index() as mirror:
        lock = locked(APP, index.address(APP).replace("127.0.0.1", "localhost"))
        fetch(store, [lock], WheelPlaces(IndexSettings(default=mirror.url)))
        assert mirror.asked == ["GET /simple/app/"]


def test_credentials_go_to_their_host_alone(store: Store, index: Index) -> None:
    index.login = "robot:s3cret"
    with_login = index.url.replace("://", "://robot:s3cret@")
    fetch(store, [locked(APP, index.address(APP))], WheelPlaces(IndexSettings(extra=(with_login,))))
    settings = IndexSettings(default=with_login)
    assert settings.with_credentials("http://127.0.0.1:1/x") == "http://127.0.0.1:1/x"
    assert settings.with_credentials(f"{index.root.replace('http:', 'https:')}/x").count("@") == 0


def test_a_directory_of_the_user(store: Store, tmp_path: Path, index: Index) -> None:
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / APP.filename).write_bytes(APP.data)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / LIB.filename).write_bytes(LIB.data)
    settings = IndexSettings(find_links=(str(tmp_path / "links"),), no_index=True)
    fetch(store, [locked(APP, ""), locked(LIB, "")], WheelPlaces(settings, directories=[tmp_path / "house"]))
    assert index.asked == []


def test_gone_from_everywhere(store: Store, index: Index) -> None:
    other = make_wheel("other")
    with pytest.raises(LockError) as caught:
        fetch(store, [locked(other, f"{index.root}/files/{other.filename}")], WheelPlaces(IndexSettings()))
    assert "the wheel `other==1.0` is gone from everywhere" in caught.value.render()


def test_another_file_under_the_name(store: Store, index: Index) -> None:
    lock = locked(APP, index.address(APP), sha256="0" * 64)
    with pytest.raises(LockError) as caught:
        fetch(store, [lock], WheelPlaces(IndexSettings(no_index=True)))
    assert APP.sha256 in caught.value.render()
    assert not store.has(lock.digest)


def test_a_server_that_is_not_there(store: Store, index: Index) -> None:
    lock = locked(APP, "http://me:secret@127.0.0.1:9/a-1.0-py3-none-any.whl")
    with pytest.raises(RegistryError) as caught:
        fetch(store, [lock], WheelPlaces(IndexSettings(no_index=True)))
    assert "secret" not in caught.value.render()
