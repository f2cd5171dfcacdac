"""Whole files, by each program that makes a squashfs, against what other tools make of the same layers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.layers import Put, directory, hardlink, opaque, symlink, whiteout
from support.needs import lacking, need, need_root
from support.sif import Entry, entries, image_input, inode_numbers, objects, squashfs_of

from assembler import process
from assembler.errors import NodeError, RequestError, StepError
from assembler.oci.platform import Platform
from assembler.process import run
from assembler.sif import squashfs, write
from assembler.sif.rootfs import ImageInput
from assembler.sif.settings import COMPRESSORS, SifSettings
from assembler.sif.squashfs import Tool

pytestmark = pytest.mark.tools

TOOLS = {
    "tar2sqfs": Tool(name="tar2sqfs", places=False, heeds_root=True),
    "mksquashfs": Tool(name="mksquashfs", places=True, heeds_root=True),
}
LAYERS: tuple[list[Put], ...] = (
    [
        directory(".", mode=0o755),
        directory("usr/lib", mode=0o2755),
        symlink("lib", "usr/lib"),
        Put("usr/lib/libz.so.1.3", b"old" * 100_000, pax={"mtime": "1600000000"}),
        symlink("usr/lib/libz.so.1", "libz.so.1.3"),
        Put("opt/tool", b"#!/bin/sh\n", mode=0o4750, uid=7, gid=3_000_000),
        hardlink("opt/alias", "opt/tool"),
        Put("opt/gone", b"deleted later"),
        Put("opt/cache/x", b"hidden later"),
        Put("was/file", b"1"),
        symlink("up", "../" * 60 + "x"),
        Put("latin-\udce9", b"1"),
    ],
    [
        whiteout("opt/gone"),
        opaque("opt/cache"),
        Put("opt/cache/y", b"fresh"),
        Put("lib/libz.so.1.3", b"new" * 100_000, pax={"SCHILY.xattr.security.capability": "\x01\x02"}),
        hardlink("opt/third", "opt/tool"),
        Put("was", b"now a file"),
        Put("empty"),
        directory("private", mode=0o500),
        Put("private/key", b"k", mode=0o400),
    ],
)


@pytest.fixture(params=sorted(TOOLS))
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    need(name)
    monkeypatch.setattr(squashfs, "find_tool", lambda: TOOLS[name])
    return name


def made(tmp_path: Path, image: ImageInput, settings: SifSettings | None = None, name: str = "x.sif") -> Path:
    target = tmp_path / name
    kind: write.Kind = "sif" if name.endswith(".sif") else "sqsh"
    size = write.write(write.prepare(kind, image, settings or SifSettings()), target)
    assert target.stat().st_size == size
    return target


def plain(found: dict[str, Entry]) -> dict[str, Entry]:
    """Without what is added for Apptainer."""
    added = {"dev", "proc", "root", "etc", "sys", "home", "tmp", "var", "singularity", "environment", "."}
    return {
        path: entry
        for path, entry in found.items()
        if not path.startswith((".", "etc/", "var/")) and path not in added
    }


def test_every_path_is_what_the_layers_say(tmp_path: Path, tool: str) -> None:
    sif = made(tmp_path, image_input(tmp_path / "layers", *LAYERS))
    image = squashfs_of(sif, tmp_path / "x.sqfs")
    found = entries(image)
    assert found["."].owner == (0, 0)
    assert found["."].mode == 0o755
    capability = (("security.capability", "\x01\x02"),)
    owner = (7, 3_000_000)
    tool_file = Entry("file", 0o4750, owner, b"#!/bin/sh\n")
    assert plain(found) == {
        "empty": Entry("file", 0o644, (0, 0)),
        "latin-\udce9": Entry("file", 0o644, (0, 0), b"1"),
        "lib": Entry("symlink", 0o777, (0, 0), "usr/lib"),
        "opt": Entry("directory", 0o755, (0, 0)),
        "opt/alias": tool_file,
        "opt/cache": Entry("directory", 0o755, (0, 0)),
        "opt/cache/y": Entry("file", 0o644, (0, 0), b"fresh"),
        "opt/third": tool_file,
        "opt/tool": tool_file,
        "private": Entry("directory", 0o500, (0, 0)),
        "private/key": Entry("file", 0o400, (0, 0), b"k"),
        "up": Entry("symlink", 0o777, (0, 0), "../" * 60 + "x"),
        "usr": Entry("directory", 0o755, (0, 0)),
        "usr/lib": Entry("directory", 0o2755, (0, 0)),
        "usr/lib/libz.so.1": Entry("symlink", 0o777, (0, 0), "libz.so.1.3"),
        "usr/lib/libz.so.1.3": Entry("file", 0o644, (0, 0), b"new" * 100_000, xattrs=capability),
        "was": Entry("file", 0o644, (0, 0), b"now a file"),
    }
    assert len(set(inode_numbers(image, "opt/alias", "opt/third", "opt/tool"))) == 1
    assert found["environment"].content == ".singularity.d/env/90-environment.sh"
    assert found[".singularity.d/runscript"].mode == 0o755


def test_equal_images_give_equal_files_whatever_the_processors(tmp_path: Path, tool: str) -> None:
    settings = SifSettings(epoch=1_700_000_000)
    first = made(tmp_path, image_input(tmp_path / "layers", *LAYERS), settings, "a.sif")
    one = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(one)})
        second = made(tmp_path, image_input(tmp_path / "again", *LAYERS), settings, "b.sif")
    finally:
        os.sched_setaffinity(0, one)
    assert first.read_bytes() == second.read_bytes()
    assert objects(first)[-1].offset % 4096 == 0


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_every_compression_is_what_was_asked_for(tmp_path: Path, tool: str, compressor: str) -> None:
    names = {"gzip": 1, "lz4": 5, "xz": 4, "zstd": 6}
    settings = SifSettings(compressor=compressor)  # type: ignore[arg-type]
    sif = made(tmp_path, image_input(tmp_path / "layers", *LAYERS), settings)
    assert int.from_bytes(objects(sif)[-1].data[20:22], "little") == names[compressor]
    assert entries(squashfs_of(sif, tmp_path / "x.sqfs"))["opt/cache/y"].content == b"fresh"


def test_fixed_permissions_let_owners_in(tmp_path: Path, tool: str) -> None:
    settings = SifSettings(fix_permissions=True)
    found = entries(
        squashfs_of(made(tmp_path, image_input(tmp_path / "l", *LAYERS), settings), tmp_path / "x.sqfs")
    )
    assert found["private"].mode == 0o700
    assert found["private/key"].mode == 0o600
    assert found["opt/tool"].mode == 0o4750


def test_a_squashfs_for_enroot_belongs_to_root(tmp_path: Path, tool: str) -> None:
    image = image_input(tmp_path / "l", *LAYERS, config={"Cmd": ["x"], "WorkingDir": "/srv/here"})
    found = entries(made(tmp_path, image, name="x.sqsh"))
    assert {entry.owner for entry in found.values()} == {(0, 0)}
    assert found["etc/rc"].content
    assert found["srv/here"].kind == "directory"
    assert found["private/key"].mode == 0o600
    assert ".singularity.d" not in found


def test_a_program_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / tool).write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    (programs / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    (tmp_path / "x.sif").write_text("old")
    with pytest.raises(StepError) as caught:
        made(tmp_path, image_input(tmp_path / "layers", *LAYERS))
    assert "exited with 3" in caught.value.fact
    assert "out of luck" in caught.value.detail
    assert (tmp_path / "x.sif").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "layers", "x.sif"]


def test_a_squashfs_that_lacks_something_is_an_error(
    tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = process.feed
    monkeypatch.setattr(
        squashfs, "feed", lambda argv, pieces, env: real(argv, [*list(pieces)[:1], bytes(1024)], env=env)
    )
    with pytest.raises(StepError, match=r"expected a squashfs with \d+ inodes"):
        made(tmp_path, image_input(tmp_path / "layers", *LAYERS))
    assert not (tmp_path / "x.sif").exists()


def fake(directory_: Path, name: str, said: str) -> None:
    directory_.mkdir(exist_ok=True)
    (directory_ / name).write_text(f"#!/bin/sh\necho '{said}'\n")
    (directory_ / name).chmod(0o755)


def test_the_program_is_chosen_by_what_it_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    monkeypatch.setattr(
        squashfs, "which", lambda name: str(programs / name) if (programs / name).exists() else None
    )
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(NodeError, match="neither `tar2sqfs` nor `mksquashfs`") as caught:
        squashfs.find_tool()
    assert "squashfs-tools-ng" in (caught.value.hint or "")
    fake(programs, "mksquashfs", "mksquashfs version 4.4 (2019/08/29)")
    with pytest.raises(NodeError, match=r"version 4\.4, which reads no tar"):
        squashfs.find_tool()
    fake(programs, "mksquashfs", "mksquashfs version 4.5.1 (2022/03/17)")
    assert squashfs.find_tool().heeds_root == (os.geteuid() == 0)
    fake(programs, "mksquashfs", "mksquashfs version 4.6.1 (2023/03/25)")
    assert squashfs.find_tool() == TOOLS["mksquashfs"]
    fake(programs, "tar2sqfs", "")
    assert squashfs.find_tool() == TOOLS["tar2sqfs"]


def test_what_cannot_be_is_said_before_any_layer_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_input(tmp_path / "layers", *LAYERS, platform=Platform("linux", "vax"))
    with pytest.raises(RequestError, match="architecture `vax`"):
        write.prepare("sif", image, SifSettings())
    prepared = write.prepare("sif", image_input(tmp_path / "layers", *LAYERS), SifSettings())
    prepared.rootfs.packed_bytes = 1 << 60
    with pytest.raises(NodeError, match="of free disk"):
        write.check_space(prepared, tmp_path / "x.sif")


def test_the_identity_is_of_image_and_settings(tmp_path: Path) -> None:
    image = image_input(tmp_path / "layers", [Put("a", b"1")])
    first = made(tmp_path, image, name="a.sif").read_bytes()[48:64]
    assert made(tmp_path, image, name="b.sif").read_bytes()[48:64] == first
    assert made(tmp_path, image, SifSettings(fix_permissions=True), "c.sif").read_bytes()[48:64] != first
    assert (
        made(tmp_path, replace(image, identity=image.identity.of(b"x")), name="d.sif").read_bytes()[48:64] != first
    )


ORDINARY = """
import sys
from pathlib import Path
from support.sif import image_input
from test_sif_write import LAYERS
from assembler.sif import write
from assembler.sif.settings import SifSettings
place = Path(sys.argv[1])
write.write(write.prepare("sif", image_input(place / "layers", *LAYERS), SifSettings()), place / "x.sif")
"""


def test_an_ordinary_user_makes_the_same_file_as_root(tmp_path: Path) -> None:
    """No subordinate ids, no capabilities, no way to gain any."""
    need_root()
    need("tar2sqfs")
    need("setpriv")
    by_root = made(tmp_path, image_input(tmp_path / "layers", *LAYERS)).read_bytes()
    argv = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--no-new-privs", "--inh-caps=-all"]
    tests = Path(__file__).parents[1]
    with TemporaryDirectory() as place:  # pytest's own are closed to others
        Path(place).chmod(0o777)
        paths = f"{tests.parent}:{tests}:{Path(__file__).parent}"
        env = {**os.environ, "PYTHONPATH": paths, "HOME": place}
        subprocess.run([*argv, sys.executable, "-B", "-c", ORDINARY, place], env=env, check=True)
        by_user = Path(place) / "x.sif"
        assert by_user.stat().st_uid == 54321
        assert by_user.read_bytes() == by_root


def test_a_full_disk_is_called_so(tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a real small file system, where the programs speak of an input or output error."""
    need_root()
    disk = tmp_path / "disk"
    disk.mkdir()
    if run([need("mount"), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False).returncode:
        lacking("this host mounts no tmpfs")
    try:
        image = image_input(tmp_path / "layers", [Put("big", os.urandom(2 << 20))])
        prepared = write.prepare("sif", image, SifSettings())
        with pytest.raises(NodeError, match="no space is left"):
            write.write(prepared, disk / "x.sif")
        assert not list(disk.iterdir())
    finally:
        run(["umount", str(disk)])
