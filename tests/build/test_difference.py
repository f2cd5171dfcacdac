"""Differences of two roots, by a walk of both and by the overlay's upper directory; what never counts."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.debian import DebianBase, debian_base, shared_directory
from support.needs import lacking, need

from assembler.build.difference import difference
from assembler.build.normalise import RULES, is_dropped, normalise
from assembler.build.owners import ReadOwner
from assembler.errors import StepError, UntrustedInputError
from assembler.oci.layout import Store
from assembler.pack.tarball import pack
from assembler.process import run
from assembler.tree.entry import Entry

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal roots."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for root in (lower, upper):
        fill(root)
    return lower, upper


def fill(root: Path) -> None:
    for directory in ("etc", "usr/bin", "usr/share/doc/a", "var/log", "opt/old/deep"):
        (root / directory).mkdir(parents=True)
    (root / "etc/same").write_text("same")
    (root / "etc/text").write_text("one")
    (root / "etc/link").symlink_to("text")
    (root / "usr/bin/tool").write_text("tool")
    (root / "usr/bin/tool").chmod(0o755)
    (root / "usr/share/doc/a/copyright").write_text("c")
    (root / "opt/old/deep/file").write_text("f")
    (root / "opt/file").write_text("f")


def change(root: Path) -> None:
    """Every kind of change there is, and touches that change nothing."""
    (root / "etc/same").write_text("same")
    os.utime(root / "etc/same", (5, 5))
    (root / "etc/text").write_text("two")
    (root / "etc/link").unlink()
    (root / "etc/link").symlink_to("same")
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "usr/bin/tool2").hardlink_to(root / "usr/bin/tool")
    (root / "usr/share/doc/a/copyright").unlink()
    run(["rm", "-r", str(root / "opt/old")])
    (root / "opt/old").mkdir()
    (root / "opt/old/new").write_text("n")
    (root / "opt/file").unlink()
    (root / "opt/file").mkdir()
    (root / "opt/file/inside").write_text("i")
    (root / "etc/machine-id").write_text("0123456789abcdef")
    (root / "var/log/dpkg.log").write_text("today")
    (root / "tmp").mkdir(mode=0o1777)
    (root / "tmp/x").write_text("x")
    os.mkfifo(root / "etc/pipe")


def kinds(entries: Sequence[Entry]) -> dict[str, str]:
    return {entry.path: entry.kind for entry in entries}


CHANGES = {
    "etc/link": "symlink",
    "etc/machine-id": "file",
    "etc/text": "file",
    "opt/file": "directory",
    "opt/file/inside": "file",
    "opt/old/deep": "whiteout",
    "opt/old/new": "file",
    "tmp": "directory",
    "usr/bin/tool": "file",
    "usr/bin/tool2": "hardlink",
    "usr/share/doc/a/copyright": "whiteout",
}


def test_equal_roots_have_no_difference(roots: tuple[Path, Path]) -> None:
    assert difference(*roots) == ()


def test_every_kind_of_change(roots: tuple[Path, Path]) -> None:
    change(roots[1])
    entries = difference(*roots)
    assert kinds(entries) == CHANGES
    by_path = {entry.path: entry for entry in entries}
    assert by_path["usr/bin/tool"].mode == 0o4755
    assert by_path["usr/bin/tool2"].link == "usr/bin/tool"
    assert by_path["etc/link"].link == "same"
    assert (by_path["etc/machine-id"].content, by_path["etc/machine-id"].mode) == (b"", 0o444)


def test_a_machine_id_that_the_base_has_stays(roots: tuple[Path, Path]) -> None:
    (roots[0] / "etc/machine-id").write_text("")
    (roots[1] / "etc/machine-id").write_text("0123")
    assert difference(*roots) == ()


def test_directory_becomes_file_and_link(roots: tuple[Path, Path]) -> None:
    run(["rm", "-r", str(roots[1] / "opt/old"), str(roots[1] / "usr/share/doc")])
    (roots[1] / "opt/old").write_text("file now")
    (roots[1] / "usr/share/doc").symlink_to("/opt")
    assert kinds(difference(*roots)) == {"opt/old": "file", "usr/share/doc": "symlink"}


def test_a_removed_tree_is_one_whiteout(roots: tuple[Path, Path]) -> None:
    run(["rm", "-r", str(roots[1] / "opt")])
    assert difference(*roots) == (Entry(path="opt", kind="whiteout"),)


def test_a_link_in_the_root_is_not_followed(roots: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("s")
    for root in roots:
        (root / "etc/way-out").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/more").write_text("m")
    assert difference(*roots) == ()


def test_refuses_a_name_that_no_layer_can_hold(roots: tuple[Path, Path]) -> None:
    (roots[1] / "etc/.wh.passwd").write_text("")
    with pytest.raises(UntrustedInputError, match=r"\.wh\."):
        difference(*roots)


def test_user_attributes_count(roots: tuple[Path, Path]) -> None:
    try:
        os.setxattr(roots[1] / "etc/same", "user.note", b"n")
        os.setxattr(roots[1] / "etc/text", "user.overlay.origin", b"o")
    except OSError:
        lacking("the file system of the temporary directory has no extended attributes")
    (entry,) = difference(*roots)
    assert (entry.path, entry.xattrs) == ("etc/same", {"user.note": b"n"})


@contextlib.contextmanager
def overlay(lower: Path, work: Path) -> Iterator[tuple[Path, Path]]:
    """A mounted overlay and its upper directory."""
    for name in ("diff", "work", "merged"):
        (work / name).mkdir()
    option = f"lowerdir={lower},upperdir={work / 'diff'},workdir={work / 'work'}"
    mounted = run(["mount", "-t", "overlay", "overlay", "-o", option, str(work / "merged")], check=False)
    if mounted.returncode:
        lacking("this user cannot mount an overlay")
    try:
        yield work / "merged", work / "diff"
    finally:
        run(["umount", str(work / "merged")])


@pytest.mark.tools
def test_the_upper_directory_gives_the_same(tmp_path: Path) -> None:
    fill(tmp_path / "lower")
    with overlay(tmp_path / "lower", tmp_path) as (merged, upper):
        change(merged)
        (merged / "opt/renamed").mkdir()
        run(["mv", str(merged / "usr/share/doc"), str(merged / "usr/share/documents")])
        os.chown(merged / "usr/bin/tool", 12, 34)
        entries = difference(tmp_path / "lower", merged, upper)
        assert entries == difference(tmp_path / "lower", merged)
        found = kinds(entries)
        assert {path: found.get(path) for path in CHANGES if "doc" not in path} == {
            path: kind for path, kind in CHANGES.items() if "doc" not in path
        }
        assert found["usr/share/doc"] == "whiteout"
        assert found["usr/share/documents"] == "directory"
        os.setxattr(merged / "usr/bin/tool", "security.capability", CAPABILITY)
        by_path = {entry.path: entry for entry in difference(tmp_path / "lower", merged, upper)}
        assert by_path["usr/bin/tool"].xattrs == {"security.capability": CAPABILITY}
        assert (by_path["usr/bin/tool"].uid, by_path["usr/bin/tool"].gid) == (12, 34)


def pyc(flags: int, time: int, rest: bytes = b"size" + b"code") -> bytes:
    return b"\xa7\r\r\n" + struct.pack("<II", flags, time) + rest


def file(path: str, data: bytes = b"") -> Entry:
    return Entry(path=path, kind="file", size=len(data), content=data)


def test_compiled_python_names_the_time_of_the_layer() -> None:
    cache = "usr/lib/python3/__pycache__"
    entries = (
        file("usr/lib/python3/a.py"),
        file(f"{cache}/a.cpython-311.pyc", pyc(0, 1700000000)),
        file(f"{cache}/a.cpython-311.opt-1.pyc", pyc(0, 1700000000)),
        file(f"{cache}/b.cpython-311.pyc", pyc(0, 1700000000)),
        file("opt/c.py"),
        file("opt/c.pyc", pyc(0, 1700000000)),
        file("opt/d.py"),
        file("opt/d.pyc", pyc(3, 1700000000)),
        file("opt/e.py"),
        file("opt/e.pyc", b"short"),
    )
    contents = {entry.path: entry.content for entry in normalise(entries, epoch=7)}
    for path in (f"{cache}/a.cpython-311.pyc", f"{cache}/a.cpython-311.opt-1.pyc", "opt/c.pyc"):
        assert contents[path] == pyc(0, 7)
    assert contents[f"{cache}/b.cpython-311.pyc"] == pyc(0, 1700000000)  # its source is the base's, with its time
    assert contents["opt/d.pyc"] == pyc(3, 1700000000)  # by hash
    assert contents["opt/e.pyc"] == b"short"


def test_the_table_takes_out_what_it_says() -> None:
    gone = (
        *("dev/null", "run/lock/x", "tmp/a/b", "var/log/apt/term.log", "var/lib/apt/lists/lock"),
        *("var/cache/apt/pkgcache.bin", "var/cache/debconf/config.dat-old", "var/lib/dpkg/status-old"),
        *("etc/resolv.conf", "etc/shadow-", "var/cache/ldconfig/aux-cache", "var/lib/dpkg/lock-frontend"),
    )
    stays = (
        *(
            "etc/shadow",
            "var/lib/dpkg/status",
            "etc/hosts.allow",
            "devices",
            "opt/tmp/x",
            "var/cache/debconf/config.dat",
        ),
        *("usr/lib/tmpfiles.d/x", "etc/ld.so.cache", "var/lib/apt/extended_states"),
    )
    assert all(is_dropped(path, directory=False) for path in gone)
    assert not any(is_dropped(path, directory=False) for path in stays)
    assert not is_dropped("var/log/apt", directory=True)
    assert not is_dropped("run/lock", directory=True)
    assert is_dropped("run/user", directory=True)
    assert all(rule.why for rule in RULES)


def test_owners_can_be_those_that_were_written_down(roots: tuple[Path, Path]) -> None:
    """Where the file system gives all files to one id: a change of owner alone shows, no change does not."""
    lower, upper = roots
    (upper / "etc/new").write_text("n")
    owners = {lower: {"etc/text": (0, 42)}, upper: {"etc/text": (0, 42), "etc/link": (7, 8), "etc/new": (5, 0)}}

    def reader(root: Path) -> ReadOwner:
        return lambda path, _status: owners[root].get(path.removeprefix(f"{root}/"))

    found = difference(lower, upper, lower_owner=reader(lower), upper_owner=reader(upper))
    assert [(entry.path, entry.uid, entry.gid) for entry in found] == [("etc/link", 7, 8), ("etc/new", 5, 0)]
    owners[upper]["etc/text"] = (0, 0)
    found = difference(lower, upper, lower_owner=reader(lower), upper_owner=reader(upper))
    assert ("etc/text", 0, 0) in [(entry.path, entry.uid, entry.gid) for entry in found]


def test_an_owner_that_may_have_been_inherited_is_refused(roots: tuple[Path, Path]) -> None:
    lower, upper = roots
    for root in roots:
        (root / "opt").chmod(0o2775)
    (upper / "opt/new").write_text("n")
    (upper / "opt/given").write_text("n")

    def owner(path: str, _status: os.stat_result) -> tuple[int, int] | None:
        return {"opt": (0, 50), "given": (0, 0)}.get(path.rpartition("/")[2])

    with pytest.raises(StepError, match="not known whose") as caught:
        difference(lower, upper, lower_owner=owner, upper_owner=owner)
    assert caught.value.detail == ("opt/new",)


def test_a_link_to_what_is_taken_out_becomes_the_file() -> None:
    entries = (
        file("tmp/first", b"data"),
        Entry(path="usr/a", kind="hardlink", link="tmp/first"),
        Entry(path="usr/b", kind="hardlink", link="tmp/first"),
    )
    assert normalise(entries) == (file("usr/a", b"data"), Entry(path="usr/b", kind="hardlink", link="usr/a"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianBase]:
    need("mmdebstrap", "buildah")
    with debian_base(shared_directory(tmp_path_factory.getbasetemp())) as made:
        yield made


SCRIPT = """
set -e
touch /etc/hostname /etc/passwd
chmod 644 /etc/passwd
cp /etc/group /etc/group.new; mv /etc/group.new /etc/group
rm -r /usr/share/doc/dash
rm -r /etc/cron.d || true
rm -r /etc/skel; mkdir /etc/skel; echo new > /etc/skel/.profile
mkdir -p /opt/app/bin; echo hello > /opt/app/bin/a; ln /opt/app/bin/a /opt/app/bin/b; ln -s a /opt/app/bin/c
useradd --system --no-create-home service
date > /var/log/today; date > /tmp/today
"""


@pytest.mark.tools
def test_commands_in_two_containers_give_one_layer(base: DebianBase, store: Store) -> None:
    digests = set()
    for _ in range(2):
        with base.container() as container, base.container() as below:
            container.run(["sh", "-c", SCRIPT], env={"SOURCE_DATE_EPOCH": "0"})
            with below.mounted() as lower, container.mounted() as upper:
                entries = difference(lower, upper, container.upper_directory(upper))
                assert entries == difference(lower, upper)
                digests.add(pack(entries, store).layer.diff_id)
    found = kinds(entries)
    assert found["opt/app/bin/b"] == "hardlink"
    assert found["usr/share/doc/dash"] == "whiteout"
    assert found["etc/skel/.bashrc"] == "whiteout"
    assert found["etc/skel/.profile"] == "file"
    assert {"etc/hostname", "etc/cron.d", "tmp/today", "var/log/today"} & set(found) <= {"etc/cron.d"}
    assert len(digests) == 1
