"""The one tar of all layers: equal to a simple model for random layers, and right where formats are tricky."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layers import Put, directory, hardlink, opaque, symlink, whiteout
from support.sif import Entry, FileLayer, image_input, tar_entries

from assembler.errors import UntrustedInputError
from assembler.sif.archive import expected, tar
from assembler.sif.rootfs import merged

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@st.composite
def stacks(draw: st.DrawFn) -> list[list[Put]]:
    """Layers in which no path lies below what is no directory, as an engine writes them."""
    layers = []
    below: dict[str, str] = {}
    for number in range(draw(st.integers(1, 4))):
        members: list[Put] = []
        here: dict[str, str] = {}
        hidden = draw(st.lists(PATHS, max_size=3, unique=True))
        for path in hidden:
            if path in below:
                members.append(opaque(path) if below[path] == "d" and draw(st.booleans()) else whiteout(path))
                gone = path + "/" if members[-1].name.endswith(".opq") else path
                below = {
                    p: k
                    for p, k in below.items()
                    if not (p == path and gone == path) and not p.startswith(path + "/")
                }
        for count, path in enumerate(draw(st.lists(PATHS, max_size=6, unique=True))):
            known = {**below, **here}
            parents = [path[:i] for i, c in enumerate(path) if c == "/"]
            if any(known.get(parent, "d") != "d" for parent in parents) or path in here:
                continue
            kind = draw(st.sampled_from(["f", "d", "s", "h"]))
            files = [p for p, k in known.items() if k == "f" and p != path and not p.startswith(path + "/")]
            if kind == "h" and not files:
                kind = "f"
            if kind != "d":
                if any(p.startswith(path + "/") for p in here):
                    continue
                below = {p: k for p, k in below.items() if not p.startswith(path + "/")}
            for parent in parents:
                here.setdefault(parent, "d")
            here[path] = "f" if kind == "h" else kind
            uid = draw(st.integers(0, 3))
            if kind == "f":
                text = draw(st.binary(max_size=3))
                members.append(
                    Put(
                        path,
                        text + b"%d.%d" % (number, count),
                        mode=draw(st.sampled_from([0o600, 0o4755])),
                        uid=uid,
                    )
                )
            elif kind == "d":
                members.append(replace(directory(path, mode=0o750), uid=uid))
            elif kind == "s":
                members.append(symlink(path, f"target-{number}"))
            else:
                members.append(hardlink(path, draw(st.sampled_from(sorted(files)))))
        below.update(here)
        layers.append(members)
    return layers


def model(layers: list[list[Put]]) -> dict[str, Entry]:
    """What the layers stand for, the simplest way: a dictionary of paths, layer by layer."""
    tree: dict[str, Entry] = {}
    for members in layers:
        own: set[str] = set()
        for put in members:
            parent, _, name = put.name.rpartition("/")
            if name == ".wh..wh..opq":
                tree = {p: e for p, e in tree.items() if not p.startswith(parent + "/") or p in own}
                continue
            if name.startswith(".wh."):
                path = f"{parent}/{name[4:]}".lstrip("/")
                tree = {p: e for p, e in tree.items() if p != path and not p.startswith(path + "/")}
                continue
            for depth, letter in enumerate(put.name):
                if letter == "/":
                    tree.setdefault(put.name[:depth], Entry("directory", 0o755, (0, 0)))
            if put.kind != tarfile.DIRTYPE:
                tree = {p: e for p, e in tree.items() if not p.startswith(put.name + "/")}
            owner = (put.uid, put.gid)
            if put.kind == tarfile.DIRTYPE:
                tree[put.name] = Entry("directory", put.mode, owner)
            elif put.kind == tarfile.SYMTYPE:
                tree[put.name] = Entry("symlink", 0o777, owner, put.link)
            elif put.kind == tarfile.LNKTYPE:
                tree[put.name] = tree[put.link]
            else:
                tree[put.name] = Entry("file", put.mode, owner, put.content)
            own.add(put.name)
    return tree


def archive_of(place: Path, *layers: list[Put]) -> bytes:
    rootfs = merged(image_input(place, *layers).layers)
    return b"".join(tar(rootfs, root=False))


@settings(max_examples=80, deadline=None)
@given(stacks())
def test_random_layers_give_what_a_simple_model_says(layers: list[list[Put]]) -> None:
    with TemporaryDirectory() as place:
        rootfs = merged(image_input(Path(place), *layers).layers)
        data = b"".join(tar(rootfs, root=False))
    found = tar_entries(data)
    assert found == model(layers)
    with_names = {id(entry) for entry in found.values()}
    assert expected(rootfs).inodes == len(with_names) + 1


def test_parents_come_before_children_and_links_after_all_files(tmp_path: Path) -> None:
    lower = [Put("d/e/f", b"1"), Put("z", b"2")]
    upper = [hardlink("a", "z"), hardlink("d/g", "d/e/f"), Put("d/e/h", b"3")]
    data = archive_of(tmp_path, lower, upper)
    (tmp_path / "all.tar").write_bytes(data)
    with tarfile.open(tmp_path / "all.tar") as found:
        names = [(member.name, member.type) for member in found]
    assert [name for name, _ in names[:2]] == ["d", "d/e"]
    assert [name for name, kind in names if kind == tarfile.REGTYPE] == ["d/e/f", "a", "d/e/h"]
    assert names[-2:] == [("d/g", tarfile.LNKTYPE), ("z", tarfile.LNKTYPE)]


def test_a_file_whose_first_name_is_gone_lives_on_under_the_others(tmp_path: Path) -> None:
    found = tar_entries(
        archive_of(tmp_path, [Put("a", b"x")], [hardlink("b", "a")], [whiteout("a"), hardlink("c", "b")])
    )
    assert sorted(found) == ["b", "c"]
    assert found["b"] is found["c"]
    assert found["b"].content == b"x"


def test_long_names_and_bytes_that_are_no_text_survive(tmp_path: Path) -> None:
    deep = "/".join(["d" * 90] * 8)
    puts = [
        Put(f"{deep}/{'f' * 255}", b"deep"),
        symlink("up", "../" * 60 + "x"),
        symlink("root", "/" + "y" * 150),
        symlink("here", "./" + "z" * 150),
        Put("latin-\udce9", b"1"),
        Put("ünï", b"2"),
        Put("new\nline", b"3"),
        Put("owned", b"4", uid=3_000_000, gid=4_000_000_000),
        hardlink("linked", f"{deep}/{'f' * 255}"),
    ]
    found = tar_entries(archive_of(tmp_path, puts))
    assert found[f"{deep}/{'f' * 255}"].content == found["linked"].content == b"deep"
    assert [found[name].content for name in ("up", "root", "here")] == [put.link for put in puts[1:4]]
    assert found["latin-\udce9"].content == b"1"
    assert found["ünï"].content == b"2"
    assert found["new\nline"].content == b"3"
    assert found["owned"].owner == (3_000_000, 4_000_000_000)


def test_times_are_the_layers_own_and_devices_are_left_out(tmp_path: Path) -> None:
    """Python takes its compiled files only beside sources of the time that was compiled in."""
    put = Put("m.py", b"1", pax={"mtime": "1600000000.5"})
    image = image_input(tmp_path, [put, Put("dev/null", kind=tarfile.CHRTYPE), Put("pipe", kind=tarfile.FIFOTYPE)])
    rootfs = merged(image.layers)
    found = tar_entries(b"".join(tar(rootfs, root=False)))
    assert found["m.py"].mtime == 1_600_000_000
    assert sorted(found) == ["dev", "m.py"]
    assert rootfs.specials == 2


def test_capabilities_and_own_attributes_are_kept_and_no_others(tmp_path: Path) -> None:
    pax = {
        "SCHILY.xattr.security.capability": "\x01\x02",
        "SCHILY.xattr.user.note": "ü",
        "SCHILY.xattr.security.selinux": "host",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
    }
    found = tar_entries(archive_of(tmp_path, [Put("a", b"1", pax=pax)]))
    assert found["a"].xattrs == (("security.capability", "\x01\x02"), ("user.note", "ü"))


@pytest.mark.parametrize(
    ("puts", "fact"),
    [
        ([Put("a/../../b", b"1")], "without `..`"),
        ([Put("a", b"1", uid=1 << 40)], "nobody can be"),
        ([Put("a", b"1", pax={"SCHILY.xattr.user.x": "v" * 70_000})], "extended attribute"),
        ([hardlink("a", "../../etc/passwd")], "without `..`"),
        ([hardlink("a", "b")], "not there"),
        ([symlink("a", "/etc"), symlink("b", "b"), Put("b/c", b"1")], "too many symbolic links"),
    ],
)
def test_layers_that_lie_are_refused_by_name(tmp_path: Path, puts: list[Put], fact: str) -> None:
    with pytest.raises(UntrustedInputError, match=fact):
        archive_of(tmp_path, puts)


def test_a_layer_that_changes_between_its_two_readings_is_an_error(tmp_path: Path) -> None:
    image = image_input(tmp_path, [Put("a", b"1" * 100_000)])
    rootfs = merged(image.layers)
    layer = image.layers[0]
    assert isinstance(layer, FileLayer)
    layer.path.write_bytes(layer.path.read_bytes()[:50_000])
    with pytest.raises(UntrustedInputError, match="truncated"):
        b"".join(tar(rootfs, root=False))
