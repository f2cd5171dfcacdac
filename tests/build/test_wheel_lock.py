"""Locking Python environments: uv against an index on loopback, for bases that are not this host."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.wheels import Index, MadeWheel, make_wheel, running_index

from assembler.build.download import Patience
from assembler.build.uv import Question
from assembler.build.wheel_lock import Workroom, lock_wheels
from assembler.build.wheel_tags import Target
from assembler.build.wheelhouse import HouseWheel, fitting, house_wheel
from assembler.errors import ManifestError, RegistryError, UntrustedInputError
from assembler.manifest.wheels import LockedWheel
from assembler.oci.digest import Digest
from assembler.oci.layout import Store

SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_INDEX", "UV_INDEX_URL", "UV_CACHE_DIR")
TARGET = Target(python="3.11.2", machine="x86_64", glibc="2.36")
FAST = Patience(attempts=2, first=0.0, sleep=lambda _seconds: None)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """An index that uv is set to, by a user with no other settings."""
    for name in (
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "UV_INDEX",
        "UV_INDEX_URL",
        "UV_CACHE_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    with running_index() as index:
        monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
        index.add(
            make_wheel("app", "2.0", requires=["lib>=1", "extra-thing; extra == 'big'"], extras=["big"]),
            make_wheel("app", "1.0", requires=["lib<2"]),
            make_wheel("lib", "1.0", "cp311-cp311-manylinux_2_17_x86_64"),
            make_wheel("lib", "1.5", "cp311-cp311-manylinux_2_36_x86_64"),
            make_wheel("lib", "1.5", "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64"),
            make_wheel("lib", "1.5", "cp312-cp312-manylinux_2_17_x86_64"),
            make_wheel("lib", "2.0", "cp311-cp311-manylinux_2_39_x86_64"),
            make_wheel("lib", "3.0", "cp310-cp310-manylinux_2_17_x86_64"),
            make_wheel("extra-thing", "0.1"),
        )
        yield index


@dataclass
class Desk:
    """Asks for locks, each in a directory of its own."""

    directory: Path
    warnings: list[str] = field(default_factory=list)
    count: int = 0

    def lock(self, *requirements: str, target: Target = TARGET, **options: Any) -> tuple[LockedWheel, ...]:
        self.count += 1
        scratch = self.directory / f"scratch-{self.count}"
        scratch.mkdir()
        room = Workroom(
            scratch=scratch,
            cache=self.directory / "uv",
            store=Store(self.directory / "store").create(),
            warn=self.warnings.append,
            patience=FAST,
        )
        beside = {
            name: options.pop(name)
            for name in ("lock_file", "extras", "groups", "house", "old")
            if name in options
        }
        question = Question(
            directory=self.directory, target=target, requirements=requirements, place="m.yaml:5:3", **options
        )
        return lock_wheels(question, room, **beside)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def labels(wheels: tuple[LockedWheel, ...]) -> list[str]:
    return [wheel.label for wheel in wheels]


def house(directory: Path, *wheels: MadeWheel) -> tuple[HouseWheel, ...]:
    directory.mkdir(exist_ok=True)
    found = []
    for wheel in wheels:
        path = directory / wheel.filename
        path.write_bytes(wheel.data)
        found.append(house_wheel(path, Digest.of(wheel.data), wheel.filename))
    return tuple(found)


def test_the_newest_that_the_base_takes(desk: Desk, index: Index) -> None:
    """Not lib 3.0 (another Python) nor 2.0 (a newer glibc); of 1.5 the file that is nearest to the base."""
    app, lib = desk.lock("app")
    assert (app.label, app.requested, app.direct) == ("app==2.0", True, None)
    assert (lib.label, lib.requested) == ("lib==1.5", False)
    assert lib.filename == "lib-1.5-cp311-cp311-manylinux_2_36_x86_64.whl"
    made = index.files[lib.filename]
    assert (lib.url, lib.sha256, lib.size) == (index.address(made), made.sha256, len(made.data))
    assert lib.filename not in index.downloads() or len(made.data) < 64 << 10


def test_another_base_gets_other_wheels(desk: Desk, index: Index) -> None:
    (lib,) = desk.lock("lib", target=Target(python="3.11", machine="x86_64", glibc="2.28"))
    assert lib.filename == "lib-1.5-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    (lib,) = desk.lock("lib", target=Target(python="3.11", machine="x86_64", glibc="2.39"))
    assert lib.version == "2.0"
    (lib,) = desk.lock("lib", target=Target(python="3.12", machine="x86_64", glibc="2.41"))
    assert lib.filename == "lib-1.5-cp312-cp312-manylinux_2_17_x86_64.whl"


def test_extras_markers_constraints_and_exclusions(desk: Desk, index: Index) -> None:
    assert labels(desk.lock("app[big]")) == ["app==2.0", "extra-thing==0.1", "lib==1.5"]
    assert labels(desk.lock("app", "extra-thing; python_version < '3.10'")) == ["app==2.0", "lib==1.5"]
    assert labels(desk.lock("app", constraints=["lib<1.5"])) == ["app==2.0", "lib==1.0"]
    assert labels(desk.lock("app", overrides=["lib==1.0"])) == ["app==2.0", "lib==1.0"]
    assert labels(desk.lock("app", exclude=["lib"])) == ["app==2.0"]
    assert labels(desk.lock("app", dependencies=False)) == ["app==2.0"]


def test_an_old_lock_is_kept_and_one_package_moves(desk: Desk, index: Index) -> None:
    old = desk.lock("app<2", constraints=["lib<1.5"])
    assert labels(old) == ["app==1.0", "lib==1.0"]
    chosen = [(wheel.name, wheel.version) for wheel in old]
    assert labels(desk.lock("app", preferences=chosen)) == ["app==1.0", "lib==1.0"]
    assert labels(desk.lock("app", preferences=chosen, upgrade=["lib"])) == ["app==1.0", "lib==1.5"]
    assert labels(desk.lock("app", "extra-thing", preferences=chosen)) == [
        "app==1.0",
        "extra-thing==0.1",
        "lib==1.0",
    ]
    assert labels(desk.lock("app")) == ["app==2.0", "lib==1.5"]


def test_the_same_file_keeps_its_address(desk: Desk, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who locks again through a mirror changes nothing that did not move."""
    old = desk.lock("lib<1.5")
    with running_index() as mirror:
        mirror.add(*index.files.values())
        monkeypatch.setenv("UV_DEFAULT_INDEX", mirror.url)
        assert desk.lock("lib<1.5", old=old) == old
        (moved,) = desk.lock("lib", old=old)
        assert moved.url.startswith(mirror.root)


def test_credentials_stay_out(desk: Desk, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from pip's setting here, and work for pages, files and sizes."""
    index.login = "robot:s3cret"
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://robot:s3cret@"))
    locked = desk.lock("app")
    assert labels(locked) == ["app==2.0", "lib==1.5"]
    assert "s3cret" not in repr(locked)
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://robot:wrong@"))
    with pytest.raises((ManifestError, RegistryError)) as caught:
        desk.lock("app", "lib<1.5")
    assert "wrong" not in caught.value.render()


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("lib==2.0", ["lib==2.0 has no wheels with a matching platform tag", "glibc 2.36"]),
        ("lib==3.0", ["lib==3.0 has no wheels with a matching Python", "CPython 3.11.2"]),
        ("lib==9", ["there is no version of lib==9"]),
        ("nothing-of-that-name", ["nothing-of-that-name was not found"]),
    ],
)
def test_what_cannot_be_had_is_named(desk: Desk, index: Index, requirement: str, expected: list[str]) -> None:
    with pytest.raises(ManifestError) as caught:
        desk.lock(requirement)
    text = caught.value.render()
    assert "m.yaml:5:3" in text
    for part in expected:
        assert part in text


def test_an_index_that_is_not_there(desk: Desk, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(RegistryError, match="cannot reach"):
        desk.lock("app")


def test_a_version_that_was_passed_over_is_spoken_of(desk: Desk, index: Index) -> None:
    """One that needs a newer glibc or has no wheels at all is; one that is for newer Pythons only is not."""
    desk.lock("lib")
    assert desk.warnings == [], "lib 3.0 is for another Python"
    desk.lock("lib<3")
    assert len(desk.warnings) == 1
    assert "`lib` 2.0 has no wheel" in desk.warnings[0]
    assert "1.5 was locked" in desk.warnings[0]
    desk.warnings.clear()
    index.add(MadeWheel("app-9.0.tar.gz", b""))
    desk.lock("app", "lib==1.5")
    assert ["`app` 9.0 has no wheel" in text for text in desk.warnings] == [True]
    desk.warnings.clear()
    desk.lock("app<3", "lib<2")
    assert desk.warnings == []


def test_a_direct_url(desk: Desk, index: Index) -> None:
    wheel = index.files["app-1.0-py3-none-any.whl"]
    app, lib = desk.lock(f"app @ {index.address(wheel)}")
    assert app.direct == {
        "url": index.address(wheel),
        "archive_info": {"hashes": {"sha256": wheel.sha256}},
    }
    assert (app.requested, lib.direct) == (True, None)


def test_a_wheelhouse_comes_before_any_index(desk: Desk, index: Index, tmp_path: Path) -> None:
    mine = make_wheel("lib", "1.5+mine", "cp311-cp311-linux_x86_64", requires=["extra-thing"])
    app, thing, lib = desk.lock("app", house=house(tmp_path / "house", mine))
    assert (lib.version, lib.url, lib.sha256, lib.requested) == ("1.5+mine", "", mine.sha256, True)
    assert (app.name, thing.name) == ("app", "extra-thing")
    assert lib.direct is None


def test_a_wheelhouse_for_several_bases(tmp_path: Path) -> None:
    wheels = house(
        tmp_path / "house",
        make_wheel("lib", "1.0", "cp311-cp311-linux_x86_64"),
        make_wheel("lib", "1.0", "cp312-cp312-linux_x86_64"),
        make_wheel("app", "1.0"),
    )
    assert [wheel.filename.split("-")[2] for wheel in fitting(wheels, TARGET, "m.yaml")] == ["py3", "cp311"]
    with pytest.raises(ManifestError) as caught:
        fitting(wheels[1:], TARGET, "m.yaml")
    text = caught.value.render()
    assert "`lib-1.0-cp312-cp312-linux_x86_64.whl`" in text
    assert "asks for another Python" in text
    newer = house(tmp_path / "newer", make_wheel("lib", "1.0", "cp311-cp311-manylinux_2_39_x86_64"))
    with pytest.raises(ManifestError) as caught:
        fitting(newer, TARGET, "m.yaml")
    assert "asks for glibc 2.39 or newer; the base has CPython 3.11.2, glibc 2.36, x86_64" in caught.value.render()
    two = house(tmp_path / "two", make_wheel("app", "1.0"), make_wheel("app", "2.0"))
    with pytest.raises(ManifestError, match="two versions of one project"):
        fitting(two, TARGET, "m.yaml")


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_a_wheelhouse_with_something_else(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a-1.0-py3-none-any.whl"
    path.write_bytes(data)
    with pytest.raises(UntrustedInputError) as caught:
        house_wheel(path, Digest.of(data), path.name)
    assert path.name in str(caught.value)


def test_a_requirements_file(desk: Desk, index: Index, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "requirements.txt").write_text("-r sub/more.txt  # the rest\n-c sub/limits.txt\napp[big]\n")
    (tmp_path / "sub/more.txt").write_text("lib >= 1 ; python_version > '3'\n")
    (tmp_path / "sub/limits.txt").write_text("lib==1.0\n")
    locked = desk.lock(files=[tmp_path / "requirements.txt"])
    assert labels(locked) == ["app==2.0", "extra-thing==0.1", "lib==1.0"]
    assert [wheel.requested for wheel in locked] == [True, False, True]


def _entry(index: Index, name: str, version: str, *filenames: str, marker: str = "") -> str:
    files = ", ".join(
        f'{{url = "{index.root}/files/{each}", hashes = {{sha256 = "{index.files[each].sha256}"}}}}'
        for each in filenames
    )
    return f'[[packages]]\nname = "{name}"\nversion = "{version}"\n{marker}\nwheels = [{files}]\n'


def test_a_pylock_file(desk: Desk, index: Index, tmp_path: Path) -> None:
    path = tmp_path / "pylock.toml"
    lib = [name for name in index.files if name.startswith("lib-1.5")]
    windows, gpu = ("marker = \"sys_platform == 'win32'\"", "marker = \"'gpu' in extras\"")
    path.write_text(
        'lock-version = "1.0"\ncreated-by = "tests"\nextras = ["gpu"]\n'
        + _entry(index, "lib", "1.5", *lib)
        + _entry(index, "app", "1.0", "app-1.0-py3-none-any.whl", marker=windows)
        + _entry(index, "extra-thing", "0.1", "extra_thing-0.1-py3-none-any.whl", marker=gpu)
    )
    (found,) = desk.lock(lock_file=path)
    assert found.filename == "lib-1.5-cp311-cp311-manylinux_2_36_x86_64.whl"
    assert found.requested is False
    assert labels(desk.lock(lock_file=path, extras=["GPU"])) == ["extra-thing==0.1", "lib==1.5"]
    with pytest.raises(ManifestError, match="the lock has no `big` among its extras"):
        desk.lock(lock_file=path, extras=["big"])
    with pytest.raises(ManifestError) as caught:
        desk.lock(lock_file=path, target=Target(python="3.13", machine="x86_64", glibc="2.36"))
    assert "`lib-1.5-cp311-cp311-manylinux_2_17_x86_64" in caught.value.render()
    assert labels(desk.lock(lock_file=path, extras=["gpu"], exclude=["lib"])) == ["extra-thing==0.1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lock-version = 3\n", "expected `lock-version` `1.0`"),
        ("[[packages]\n", "cannot be read"),
        ('lock-version = "1.0"\n[[packages]]\nname = "a"\nversion = "1"\nvcs = {type = "git"}\n', "no wheel"),
        (
            'lock-version = "1.0"\n[[packages]]\nname = "a"\nwheels = [{path = "a-1-py3-none-any.whl"}]\n',
            "SHA-256",
        ),
        ('lock-version = "1.0"\nrequires-python = ">=3.12"\n', "asks for Python `>=3.12`"),
        ('lock-version = "1.0"\npackages = 1\n', "expected `packages`"),
    ],
)
def test_a_pylock_file_that_will_not_do(
    desk: Desk, index: Index, tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "pylock.toml").write_text(text)
    with pytest.raises(ManifestError) as caught:
        desk.lock(lock_file=tmp_path / "pylock.toml")
    assert expected in caught.value.render()


def test_a_lock_of_uv(desk: Desk, index: Index, tmp_path: Path) -> None:
    from assembler.build.uv import find_uv
    from assembler.process import run

    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "server"\nversion = "0.1"\nrequires-python = ">=3.11,<3.12"\n'
        'dependencies = ["app<2", "app; sys_platform == \'win32\'"]\n'
        '[project.optional-dependencies]\nbig = ["extra-thing"]\n[dependency-groups]\ndev = ["lib==1.0"]\n'
    )
    argv = [find_uv(), "lock", "--no-python-downloads", "--python", sys.executable]
    run([*argv, "--cache-dir", str(tmp_path / "uv")], cwd=project)
    lock = project / "uv.lock"
    assert labels(desk.lock(lock_file=lock)) == ["app==1.0", "lib==1.0"]
    assert labels(desk.lock(lock_file=lock, extras=["big"])) == ["app==1.0", "extra-thing==0.1", "lib==1.0"]
