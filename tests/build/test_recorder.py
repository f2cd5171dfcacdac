"""Owners that are written down: real programs see and leave them as if they were real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.containers import busybox, shared_directory
from support.needs import need_root

from assembler.build import launcher
from assembler.build.owners import Recorded, unknown_owners
from assembler.build.recorder import Journal
from assembler.errors import StepError

pytestmark = pytest.mark.tools

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    need_root()
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


@pytest.fixture
def recorded(room: Path) -> Recorded:
    return Recorded(room.parent / "owners.json")


@pytest.fixture
def shell(room: Path, recorded: Recorded) -> Shell:
    def run(script: str, mode: str = "everywhere") -> subprocess.CompletedProcess[str]:
        owners = f"{mode}:{recorded.journal}" if mode != "faked" else mode
        words = [sys.executable, "-I", str(Path(launcher.__file__)), "host", owners, "/bin/sh", "-ec", script]
        return subprocess.run(words, cwd=room, capture_output=True, text=True, check=False)

    return run


def owner(recorded: Recorded, path: Path) -> tuple[int, int] | None:
    return recorded.reader(str(path), path.lstat())


def test_a_program_sees_the_owner_and_the_disk_does_not(shell: Shell, room: Path, recorded: Recorded) -> None:
    done = shell("touch a; chown 5:7 a; stat -c %u:%g a; exec 3<a; stat -Lc %u:%g /dev/fd/3; ls -ln a")
    assert done.stdout.split()[:2] == ["5:7", "5:7"], done.stderr
    assert done.stdout.split()[4:6] == ["5", "7"]
    assert (room / "a").stat().st_uid == (room / "a").stat().st_gid == 0
    assert owner(recorded, room / "a") == (5, 7)


def test_the_owner_goes_where_the_file_goes(shell: Shell, room: Path, recorded: Recorded) -> None:
    done = shell("touch a; chown 5:7 a; mv a b; ln b c; cp -a b d; cp b e; chown --reference=b e; chgrp 9 b; rm c")
    assert done.returncode == 0, done.stderr
    assert [owner(recorded, room / name) for name in "bde"] == [(5, 9), (5, 7), (5, 7)]


def test_links_have_owners_of_their_own(shell: Shell, room: Path, recorded: Recorded) -> None:
    done = shell("touch a; ln -s a l; chown -h 5:7 l; mv l m; stat -c %u m a; ln -s a n; stat -c %u n")
    assert done.stdout.split() == ["5", "0", "0"], done.stderr
    assert owner(recorded, room / "m") == (5, 7)
    assert owner(recorded, room / "n") is None


def test_a_new_inode_has_no_owner_of_before(shell: Shell, room: Path, recorded: Recorded) -> None:
    shell("for n in 1 2 3; do rm -f l; ln -s x l; chown -h 5:7 l; rm l; ln -s x l; done")
    shell("touch a; chown 5 a; rm a; touch a")
    assert owner(recorded, room / "l") is None
    assert owner(recorded, room / "a") is None


def test_a_new_owner_takes_setuid_away_as_it_does(shell: Shell, room: Path) -> None:
    shell("touch a b; chmod 6755 a b; chown 5:7 a; chown 5:7 b; chmod 4755 b")
    assert (room / "a").stat().st_mode & 0o7777 == 0o755
    assert (room / "b").stat().st_mode & 0o7777 == 0o4755


def test_what_fails_fails_as_it_does(shell: Shell) -> None:
    done = shell("! chown 5 none; ln -s loop loop; ! chown 5 loop; touch f; ! chown 5 f/x; ! stat none")
    assert done.returncode == 0
    for text in ("No such file", "symbolic links", "Not a directory"):
        assert text in done.stderr


def test_only_what_is_unchanged_stays(shell: Shell, room: Path, recorded: Recorded) -> None:
    shell("touch a; chown 5:7 a; chown 6 a; touch b; chown 0:0 b; touch c; mkdir -m 2755 d; chgrp 8 d")
    assert owner(recorded, room / "a") == (6, 7)
    assert owner(recorded, room / "b") == (0, 0)
    assert owner(recorded, room / "c") is None
    assert owner(recorded, room / "d") == (0, 8)


def test_python_and_deep_directories(shell: Shell, room: Path, recorded: Recorded) -> None:
    script = (
        "import os; os.makedirs('x/y'); d = os.open('x', os.O_RDONLY); os.chown('y', 5, 7, dir_fd=d); "
        "f = os.open('x/f', os.O_CREAT); os.fchown(f, 3, -1); "
        "print(os.stat('y', dir_fd=d).st_uid, os.fstat(f).st_uid)"
    )
    done = shell(f"/usr/bin/python3 -c {json.dumps(script)}")
    assert done.stdout.split() == ["5", "3"], done.stderr
    assert owner(recorded, room / "x/f") == (3, 0)


def test_outside_a_container_nothing_is_written_down(shell: Shell, room: Path, recorded: Recorded) -> None:
    done = shell("touch a; chown 5:7 a; stat -c %u:%g a", mode="recorded")
    assert done.stdout.split() == ["0:0"]
    assert owner(recorded, room / "a") is None


def test_in_another_root_paths_are_those_of_that_root(
    shell: Shell, room: Path, recorded: Recorded, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (room / "r/etc").mkdir(parents=True)
    (room / "r/busybox").write_bytes(busybox(shared_directory(tmp_path_factory.getbasetemp(), "busybox")))
    (room / "r/busybox").chmod(0o755)
    (room / "r/link").symlink_to("/etc/f")
    inside = "touch /etc/f; chown 5:7 /link; stat -c %u:%g /etc/f; chown 1 /etc/.."
    done = shell(f"cd r; chroot . /busybox sh -c '{inside}'", mode="recorded")
    assert done.stdout.split() == ["5:7"], done.stderr
    assert owner(recorded, room / "r/etc/f") == (5, 7)
    assert owner(recorded, room / "r") == (1, 0)


def test_devices_are_not_made_and_pipes_are(shell: Shell, room: Path) -> None:
    done = shell("mknod null c 1 3; mkfifo pipe; chown 5 pipe", mode="faked")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in room.iterdir()) == ["pipe"]


def test_the_status_of_the_program_is_ours(shell: Shell) -> None:
    assert shell("exit 7").returncode == 7
    assert shell("kill -9 $$").returncode == 137


def test_who_became_somebody_else_is_told(recorded: Recorded) -> None:
    need_root()
    recorded.check()
    journal = Journal(os.fspath(recorded.journal))
    journal.write(identity="`su` becomes user 1")
    journal.close()
    with pytest.raises(StepError, match="becomes another user") as caught:
        recorded.check()
    assert caught.value.detail == ("`su` becomes user 1",)


def test_many_unknown_owners_are_counted() -> None:
    error = unknown_owners([f"var/local/{number:02}" for number in range(23)])
    assert len(error.detail) == 21
    assert error.detail[-1] == "and 3 more"
