"""The way into a user namespace: what is read, and what is said where there is none."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from assembler.build import enter, namespace
from assembler.build.namespace import (
    INSIDE,
    WayIn,
    blocking_settings,
    identity,
    no_way,
    subordinate_ids,
    way_in,
    way_or_error,
)
from assembler.errors import NodeError

NAME = pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("         0          0 4294967295\n", "root"),
        ("         0       1001          1\n", "one"),
        ("         0       1001          1\n         1     100000      65536\n", "ranges"),
        ("         0     100000      65536\n", "ranges"),
    ],
)
def test_identities_by_their_number(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "uid_map").write_text(text)
    assert identity(tmp_path / "uid_map") == wanted


def test_a_kernel_without_namespaces_has_root(tmp_path: Path) -> None:
    assert identity(tmp_path / "none") == "root"


@pytest.fixture
def without_getsubids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "which", lambda name: None if name == "getsubids" else f"/usr/bin/{name}")


@pytest.mark.usefixtures("without_getsubids")
@pytest.mark.parametrize(
    ("text", "ranges", "trouble"),
    [
        (f"somebody:1:2\n{NAME}:100000:65536\n", ((100000, 65536),), ""),
        (f"{os.getuid()}:200000:65536\n", ((200000, 65536),), ""),
        (f"{NAME}:100000:40000\n{NAME}:300000:40000\n", ((100000, 40000), (300000, 40000)), ""),
        (f"{NAME}:100000:1000\n", ((100000, 1000),), "has 1000 ids, expected 65536"),
        (f"{NAME}x:100000:65536\nnonsense\n{NAME}:x:y\n", (), "has no range in"),
    ],
)
def test_ranges_of_the_file_by_name_and_by_number(
    tmp_path: Path, text: str, ranges: tuple[tuple[int, int], ...], trouble: str
) -> None:
    (tmp_path / "subuid").write_text(text)
    found = subordinate_ids("uid", tmp_path)
    assert found.ranges == ranges
    assert trouble in found.trouble
    assert bool(found.trouble) == bool(trouble)


def test_without_the_programs_that_give_them_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "which", lambda _name: None)
    assert "`newuidmap` is not installed" in subordinate_ids("uid").trouble


def test_ranges_that_cannot_be_had_lead_to_one_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        namespace, "subordinate_ids", lambda _kind: namespace.Subordinate(ranges=((100000, 65536),))
    )
    monkeypatch.setattr(namespace, "_tried", lambda maps: "newuidmap: not allowed" if "," in maps[0] else "")
    way = way_in()
    assert (way.identity, way.trouble) == ("one", "newuidmap: not allowed")
    assert way.before[-2:] == (f"0 {os.getuid()} 1", f"0 {os.getgid()} 1")


def test_settings_that_block_are_found(tmp_path: Path) -> None:
    for name, value in (
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    assert [setting.text for setting in blocking_settings(tmp_path)] == [
        "user.max_user_namespaces = 0",
        "kernel.apparmor_restrict_unprivileged_userns = 1",
    ]
    assert blocking_settings(tmp_path / "none") == ()


def test_an_unknown_reason_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "blocking_settings", lambda: ())
    error = no_way(WayIn(identity=None, trouble="a user namespace is refused: operation not permitted"))
    assert "operation not permitted" in error.fact
    assert error.hint is not None
    assert error.hint.startswith("without, images of wheels, copies and files")


def test_nobody_goes_in_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INSIDE, "1")
    with pytest.raises(NodeError, match="is not its root"):
        way_or_error()


def test_what_cannot_be_entered_says_so_and_ends_with_125() -> None:
    words = [sys.executable, "-I", str(Path(enter.__file__)), "0 1 1,1 1 1", "0 1 1,1 1 1", "true"]
    environment = {"PATH": "/none"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == enter.FAILED
    assert done.stderr.startswith(enter.PREFIX)
