"""`wheels` layers from the manifest to the image, against an index on loopback; no container is needed."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard
from support.cli import Ended, Program
from support.images import image_of, saved
from support.wheels import Index, make_wheel, running_index

from assembler.manifest.lock import read_lock
from assembler.oci.descriptor import REF_NAME
from assembler.oci.digest import Digest
from assembler.oci.layout import Store

BASE = 'python: "3.11", glibc: "2.36", interpreter: /usr/bin/python3.11'
BIG = "".join(f"line {number * 7919 % 100_003}\n" for number in range(40_000))


@dataclass
class Room:
    """A directory with a manifest `m.yaml`, a cache, and an index."""

    directory: Path
    index: Index
    program: Program

    def write(self, wheels: str, *, rest: str = "", runtime: str = "scratch", base: str = BASE) -> Path:
        path = self.directory / "m.yaml"
        fields = ", ".join(each for each in (wheels, base) if each)
        path.write_text(f"manifest: 1\nname: m\nruntime: {runtime}\nlayers:\n  - wheels: {{{fields}}}\n{rest}")
        return path

    def __call__(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Ended:
        home = self.directory / "home"
        settings = {
            "UV_DEFAULT_INDEX": self.index.url,
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "PIP_FIND_LINKS": "",
            "UV_HTTP_RETRIES": "0",
        }
        return self.program(*arguments, env={**settings, **(env or {})})

    def ok(self, *arguments: str | Path) -> Ended:
        ended = self(*arguments)
        assert ended.code == 0, ended.stderr
        return ended

    def built(self) -> dict[str, Any]:
        """What `inspect` says of the image."""
        found: dict[str, Any] = json.loads(self.ok("inspect", "m", "--files", "--json").stdout)
        return found

    def layers(self) -> dict[str, str]:
        """What each layer of ours is called → its diff ID."""
        return {layer["created_by"]: layer["diff_id"] for layer in self.built()["layers"]}

    def locked(self, name: str = "/opt/venv") -> dict[str, str]:
        """Project → version, by the lock."""
        entry = read_lock(self.directory / "m.lock.yaml").entry("wheels", name)
        assert entry is not None
        wheels: Any = entry.answer["wheels"]
        return {wheel["name"]: wheel["version"] for wheel in wheels}


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    (tmp_path / "home").mkdir()
    with running_index() as index:
        index.add(
            make_wheel("app", "1.0", requires=["lib"], scripts={"app": "app:main"}),
            make_wheel("lib", "1.0"),
            make_wheel("big", "1.0", "cp311-cp311-manylinux_2_28_x86_64", files={"big/data.txt": BIG}),
            make_wheel("newer", "1.0", "cp311-cp311-manylinux_2_39_x86_64"),
        )
        yield Room(tmp_path, index, Program(tmp_path / "cache"))


def plan_of(room: Room) -> dict[str, tuple[str, int | None]]:
    steps = json.loads(room("plan", room.directory / "m.yaml", "--json").stdout)
    steps = steps[0] if isinstance(steps, list) else steps
    return {
        step["name"]: (step["state"], step["bytes_download"]) for step in steps["steps"] if step["kind"] == "pack"
    }


def test_one_entry_becomes_many_layers(room: Room) -> None:
    manifest = room.write("requirements: [app, big], split: 64k")
    assert plan_of(room) == {"wheels app big": ("unknown", None)}
    room.ok("lock", manifest)
    big = next(wheel for wheel in room.index.files.values() if wheel.filename.startswith("big"))
    planned = plan_of(room)
    assert planned["wheels venv"] == ("todo", None)
    assert planned["wheels big==1.0"] == ("todo", len(big.data))
    assert len(planned) == 4, "app and lib, each in the bucket of its name"
    room.index.asked.clear()
    room.ok(manifest)
    assert sorted(room.index.downloads()) == sorted(f for f in room.index.files if not f.startswith("newer"))
    assert set(room.layers()) == set(planned)
    assert {state for state, _ in plan_of(room).values()} == {"cached"}
    files = {file["path"] for layer in room.built()["layers"] for file in layer["files"]}
    assert {"opt/venv/bin/app", "opt/venv/pyvenv.cfg", "opt/venv/bin/python"} <= files
    assert "opt/venv/lib/python3.11/site-packages/big/data.txt" in files


def test_the_second_time_nobody_is_asked(room: Room) -> None:
    manifest = room.write("requirements: [app, big]")
    room.ok(manifest)
    room.index.asked.clear()
    room.ok(manifest)
    room.ok(manifest, "--locked", "--offline")
    room.ok("plan", manifest)
    assert room.index.asked == []


def test_a_bumped_wheel_is_one_layer(room: Room) -> None:
    manifest = room.write("requirements: [app, big], split: 64k")
    room.ok(manifest)
    before = room.layers()
    room.index.add(make_wheel("lib", "2.0"))
    room.ok("lock", manifest)
    assert room.locked() == {"app": "1.0", "big": "1.0", "lib": "1.0"}, "a lock that still holds is not renewed"
    room.ok("lock", "--update", "lib", manifest)
    assert room.locked() == {"app": "1.0", "big": "1.0", "lib": "2.0"}
    room.index.asked.clear()
    room.ok(manifest)
    assert room.index.downloads() == ["lib-2.0-py3-none-any.whl"]
    after = room.layers()
    assert {name: before[name] for name in before if name != "wheels lib==1.0"} == {
        name: after[name] for name in after if name != "wheels lib==2.0"
    }


def test_a_known_layer_needs_no_wheel(room: Room) -> None:
    """The wheels are gone from the store, the layers are not; another image with the same ones reads no wheel."""
    manifest = room.write("requirements: [app, big]")
    room.ok(manifest)
    for wheel in room.index.files.values():
        (room.program.cache / "store/blobs/sha256" / wheel.sha256).unlink(missing_ok=True)
    room.index.asked.clear()
    room.write("requirements: [app, big]", rest="image: {entrypoint: [/opt/venv/bin/app]}\n")
    room.ok(manifest)
    assert room.index.asked == []
    assert all(fetched is None for _, fetched in plan_of(room).values())


def test_a_stale_lock(room: Room) -> None:
    manifest = room.write("requirements: [app]")
    room.ok("lock", manifest)
    room.index.add(make_wheel("lib", "2.0"))
    room.write("requirements: [app, big]")
    ended = room(manifest, "--locked")
    assert (ended.code, "the lock answers another request for wheels `/opt/venv`" in ended.stderr) == (2, True)
    ended = room(manifest, "--offline")
    assert (ended.code, "`--offline` forbids to resolve" in ended.stderr) == (2, True)
    room.ok(manifest)
    assert room.locked() == {"app": "1.0", "big": "1.0", "lib": "1.0"}, "what need not move does not"
    room.ok("lock", "--update", "--", manifest)
    assert room.locked()["lib"] == "2.0"


def test_wheels_that_are_not_in_the_store(room: Room) -> None:
    manifest = room.write("requirements: [app]")
    room.ok("lock", manifest)
    ended = room(manifest, "--offline")
    assert ended.code == 2
    assert "app==1.0" in ended.stderr


@pytest.mark.parametrize(
    ("wheels", "base", "expected"),
    [
        ("requirements: [newer]", BASE, ["newer==1.0", "glibc 2.36", "m.yaml:5:5"]),
        ("requirements: [big]", BASE.replace("3.11", "3.12"), ["big==1.0", "CPython 3.12"]),
        ("requirements: [app]", "", ["the base has no Python", "m.yaml:5:5"]),
        ("requirements: [app]", 'python: "3.11"', ["expected Python 3.11 in the base, found none"]),
        ("requirements: [app]", 'python: "3.11", interpreter: /bin/python', ["the base's C library is not known"]),
    ],
)
def test_what_the_base_cannot_take(room: Room, wheels: str, base: str, expected: list[str]) -> None:
    manifest = room.write(wheels, base=base)
    ended = room("lock", manifest)
    assert ended.code == 2
    for part in expected:
        assert part in ended.stderr


def test_a_wheelhouse(room: Room) -> None:
    house = room.directory / "dist"
    house.mkdir()
    mine = make_wheel("lib", "1.0+mine")
    (house / mine.filename).write_bytes(mine.data)
    manifest = room.write("requirements: [app], wheelhouse: dist")
    room.ok(manifest)
    assert room.locked() == {"app": "1.0", "lib": "1.0+mine"}
    assert not any(name.startswith("lib") for name in room.index.downloads())
    room.index.asked.clear()
    room.ok(manifest, "--locked", "--offline")
    changed = make_wheel("lib", "1.0+mine", requires=["big"])
    (house / mine.filename).write_bytes(changed.data)
    ended = room(manifest, "--locked")
    assert "answers another request" in ended.stderr
    room.ok(manifest)
    assert set(room.locked()) == {"app", "big", "lib"}


def test_a_directory_of_packages(room: Room) -> None:
    manifest = room.write("requirements: [app], into: /usr/lib/python3/dist-packages")
    room.ok(manifest)
    files = {file["path"] for layer in room.built()["layers"] for file in layer["files"]}
    assert "usr/lib/python3/dist-packages/app/__init__.py" in files
    assert not any("venv" in path for path in files)


def test_entries_with_one_place_are_one_environment(room: Room) -> None:
    """Resolved together: the recipe's `lib<2` holds for the manifest's entry too."""
    room.index.add(make_wheel("lib", "2.0"), make_wheel("lib", "3.0"))
    manifest = room.write("requirements: [app]", rest="  - wheels: {requirements: [lib<2, big]}\n")
    room.ok(manifest)
    assert room.locked() == {"app": "1.0", "big": "1.0", "lib": "1.0"}
    assert next(iter(room.layers())) == "wheels venv"
    other = room.write(
        "requirements: [app]", rest="  - wheels: {requirements: [lib<2, big], into: /opt/other, " + BASE + "}\n"
    )
    room.ok("lock", "--update", "--", other)
    assert (room.locked()["lib"], room.locked("/opt/other")["lib"]) == ("3.0", "1.0")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ('{requirements: [lib], python: "3.12"}', "`python` is `3.12` here and `3.11` at"),
        ("{requirements: [lib], dependencies: false}", "`dependencies` is `false` here and `true` at"),
        ("{file: uv.lock}", "says everything that goes into `/opt/venv`"),
    ],
)
def test_entries_that_contradict(room: Room, other: str, expected: str) -> None:
    (room.directory / "uv.lock").write_text("version = 1\n")
    ended = room("plan", room.write("requirements: [app]", rest=f"  - wheels: {other}\n"))
    assert ended.code == 2
    assert expected in ended.stderr


def test_requirements_files_are_watched(room: Room) -> None:
    (room.directory / "more.txt").write_text("lib\n")
    (room.directory / "requirements.txt").write_text("-r more.txt\napp\n")
    manifest = room.write("file: requirements.txt")
    first = room.ok(manifest).stdout
    assert room.ok(manifest).stdout == first
    (room.directory / "more.txt").write_text("lib\nbig\n")
    assert "answers another request" in room(manifest, "--locked").stderr
    room.ok(manifest)
    assert set(room.locked()) == {"app", "big", "lib"}


def test_both_compressions(room: Room) -> None:
    manifest = room.write("requirements: [app, big]", rest="compression: both\n")
    room.ok(manifest, "--output", f"oci:{room.directory / 'layout'}")
    blobs = room.directory / "layout/blobs/sha256"
    index = json.loads((room.directory / "layout/index.json").read_text())
    while "layers" not in index["manifests"][0] and len(index["manifests"]) == 1:
        index = json.loads((blobs / index["manifests"][0]["digest"].partition(":")[2]).read_text())
    configs = set()
    for entry in index["manifests"]:
        document = json.loads((blobs / entry["digest"].partition(":")[2]).read_text())
        configs.add(document["config"]["digest"])
    assert len(configs) == 1, "the same diff IDs in either"


def _base(room: Room, *layers: Mapping[str, bytes]) -> str:
    """An OCI layout with a foreign base."""
    store = Store(room.directory / "base").create()
    descriptor = saved(store, image_of(store, *layers))
    store.tag("base", descriptor.annotated({REF_NAME: "base"}))
    return "{oci: base}"


LIBC = b"\x7fELF" + bytes(5000) + b"GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\n" + bytes(50)


def test_a_base_that_is_read(room: Room) -> None:
    """Where nobody says them, C library and Python of a foreign base are read from its layers, and kept."""
    base = _base(
        room,
        {"usr/lib/x86_64-linux-gnu/libc.so.6": LIBC, "etc/hostname": b"x"},
        {"usr/local/bin/python3.11": b"\x7fELF"},
        {"unreadable": b"not looked at"},
    )
    manifest = room.write("requirements: [app, big]", runtime=base, base="")
    ended = room.ok("lock", manifest)
    assert "reading the base's layers to learn its C library and Python" in ended.stderr
    entry = read_lock(room.directory / "m.lock.yaml").entry("wheels", "/opt/venv")
    assert entry is not None
    assert [entry.answer[name] for name in ("python", "glibc", "interpreter")] == [
        "3.11",
        "2.36",
        "/usr/local/bin/python3.11",
    ]
    assert "reading" not in room.ok(manifest).stderr
    ended = room("lock", room.write("requirements: [newer]", runtime=base, base=""))
    assert "the base has CPython 3.11, glibc 2.36" in ended.stderr


def test_a_base_with_musl(room: Room) -> None:
    base = _base(room, {"lib/ld-musl-x86_64.so.1": b"\x7fELF", "usr/bin/python3.12": b"\x7fELF"})
    ended = room("lock", room.write("requirements: [app]", runtime=base, base=""))
    assert ended.code == 2
    assert "the base has musl as its C library" in ended.stderr


def test_at_most_a_hundred_layers(room: Room) -> None:
    room.index.add(*[make_wheel(f"part{number}", files={f"part{number}/x.txt": BIG}) for number in range(60)])
    names = ", ".join(f"part{number}" for number in range(60))
    base = _base(room, *[{f"f{number}": b"x"} for number in range(70)])
    manifest = room.write(f"requirements: [{names}], split: 1k", runtime=base)
    room.ok(manifest)
    layers = room.built()["layers"]
    assert 70 < len(layers) <= 100


def test_the_content_of_a_layer(room: Room) -> None:
    """The same wheel at the same prefix is the same layer, whatever else the image holds."""
    room.ok(room.write("requirements: [big], split: 1k"))
    first = room.layers()["wheels big==1.0"]
    room.ok(room.write("requirements: [app, big], split: 1k"))
    assert room.layers()["wheels big==1.0"] == first
    store = Store(room.program.cache / "store")
    layer = next(each for each in room.built()["layers"] if each["created_by"] == "wheels big==1.0")
    with (
        store.open(Digest.parse(layer["digest"])) as file,
        zstandard.ZstdDecompressor().stream_reader(file) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        content = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
    assert content["opt/venv/lib/python3.11/site-packages/big/data.txt"] == BIG.encode()
