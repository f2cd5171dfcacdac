"""Layers merged: whiteouts, opaque directories, links and hard links, as the specification and umoci have them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.images import image_of, layer_of, saved
from support.layers import Put, directory, hardlink, layer_tar, opaque, symlink, whiteout
from support.needs import need

from assembler.errors import UntrustedInputError
from assembler.oci.image import append
from assembler.oci.layout import Store
from assembler.process import run
from assembler.tree.decompress import Stream
from assembler.tree.merge import MergedTree, Node, contents


class Bytes:
    """A tar in memory as a stream."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, amount: int, /) -> bytes:
        return self._file.read(amount)

    def skip(self, amount: int, /) -> None:
        self._file.seek(amount, io.SEEK_CUR)


def merged(*layers: list[Put]) -> MergedTree:
    tree = MergedTree()
    for number, members in enumerate(layers):
        tree.add_layer(Bytes(layer_tar(*members)), f"layer {number}")
    return tree


def shown(*layers: list[Put]) -> dict[str, str]:
    """Path → content of a file, `/` of a directory, `-> TARGET` of a link, `special`."""
    tree = merged(*layers)
    texts: dict[Node, str] = {}
    for number, members in enumerate(layers):
        nodes = [node for _, node in tree.walk() if node.kind == "file" and node.layer == number]
        for node, pieces in contents(Bytes(layer_tar(*members)), nodes, "layer"):
            texts[node] = b"".join(pieces).decode()
    other = {"directory": "/", "special": "special"}
    return {
        path: f"-> {node.link}" if node.kind == "symlink" else other.get(node.kind) or texts[node]
        for path, node in tree.walk()
    }


LOWER = [
    directory("etc"),
    Put("etc/passwd", b"root"),
    directory("usr/lib"),
    Put("usr/lib/a", b"a"),
    Put("usr/lib/deep/b", b"b"),
    symlink("lib", "usr/lib"),
]


@pytest.mark.parametrize(
    ("upper", "gone", "there"),
    [
        pytest.param([whiteout("etc/passwd")], ["etc/passwd"], {"etc": "/"}, id="a file"),
        pytest.param([whiteout("etc")], ["etc", "etc/passwd"], {}, id="a directory with what is in it"),
        pytest.param([whiteout("lib")], ["lib"], {"usr/lib/a": "a"}, id="a link, not what it leads to"),
        pytest.param([whiteout("lib/a")], ["usr/lib/a"], {"lib": "-> usr/lib"}, id="by way of a link"),
        pytest.param([whiteout("none"), whiteout("no/where")], [], {"etc/passwd": "root"}, id="nothing"),
        pytest.param([whiteout("etc/passwd/x")], [], {"etc/passwd": "root"}, id="below a file"),
        pytest.param(
            [directory("usr/lib"), opaque("usr/lib"), Put("usr/lib/c", b"c")],
            ["usr/lib/a", "usr/lib/deep"],
            {"usr/lib/c": "c"},
            id="opaque",
        ),
        pytest.param(
            [Put("usr/lib/deep/c", b"c"), Put("usr/lib/d", b"d"), opaque("usr/lib")],
            ["usr/lib/a", "usr/lib/deep/b"],
            {"usr/lib/deep/c": "c", "usr/lib/d": "d"},
            id="opaque comes last, and hides nothing of its own layer",
        ),
        pytest.param([opaque("")], ["etc", "usr", "lib"], {}, id="opaque root"),
        pytest.param(
            [Put("etc/passwd", b"new"), whiteout("etc/passwd")],
            [],
            {"etc/passwd": "new"},
            id="a whiteout hides nothing of its own layer",
        ),
        pytest.param(
            [Put("usr/lib/deep/c", b"c"), whiteout("usr/lib/deep")],
            ["usr/lib/deep/b"],
            {"usr/lib/deep/c": "c"},
            id="a directory that is hidden and made again",
        ),
        pytest.param([Put("etc", b"file")], ["etc/passwd"], {"etc": "file"}, id="a file replaces a directory"),
        pytest.param([directory("etc/passwd")], [], {"etc/passwd": "/"}, id="a directory replaces a file"),
        pytest.param([directory("lib")], [], {"lib": "/", "usr/lib/a": "a"}, id="a directory replaces a link"),
        pytest.param([directory("usr/lib")], [], {"usr/lib/a": "a"}, id="a directory meets a directory"),
        pytest.param(
            [Put("lib/c", b"c")], ["lib/c"], {"usr/lib/c": "c"}, id="a parent that is a link is followed"
        ),
        pytest.param(
            [Put("./etc//x/", b"", tarfile.DIRTYPE), Put("/abs", b"1")], [], {"etc/x": "/", "abs": "1"}, id="names"
        ),
        pytest.param([Put("a", b"1"), Put("a", b"22")], [], {"a": "22"}, id="the later one of two wins"),
        pytest.param([Put("dev/null", kind=tarfile.CHRTYPE)], [], {"dev/null": "special"}, id="a device"),
        pytest.param([Put(".wh..wh.plnk/1.2"), Put("etc/.wh..wh.aufs")], ["etc/.wh..wh.aufs"], {}, id="aufs"),
    ],
)
def test_an_upper_layer(upper: list[Put], gone: list[str], there: dict[str, str]) -> None:
    found = shown(LOWER, upper)
    assert not set(gone) & found.keys()
    assert there.items() <= found.items()


def test_attributes_are_the_uppermost() -> None:
    caps = {"SCHILY.xattr.security.capability": "\x01\x02"}
    tree = merged(
        [directory("srv", 0o700), Put("srv/x", b"1", mode=0o4755, uid=5, gid=6, pax=caps)],
        [Put("srv", kind=tarfile.DIRTYPE, mode=0o1777, uid=1, gid=2), directory(".", 0o711)],
    )
    found = dict(tree.walk())
    assert (found["srv"].mode, found["srv"].uid, found["srv"].gid) == (0o1777, 1, 2)
    assert (found["srv/x"].mode, found["srv/x"].uid, found["srv/x"].gid) == (0o4755, 5, 6)
    assert found["srv/x"].xattrs == {"security.capability": b"\x01\x02"}
    assert tree.root.mode == 0o711
    assert merged([Put("a/b/c", b"")]).find("a/b").mode == 0o755  # type: ignore[union-attr]


def test_hard_links_are_one_file() -> None:
    lower = [Put("a", b"content"), hardlink("b", "a"), hardlink("dir/c", "./b")]
    tree = merged(lower)
    assert tree.find("a") is tree.find("b") is tree.find("dir/c")
    assert shown(lower, [whiteout("a")]) == {"b": "content", "dir": "/", "dir/c": "content"}
    assert shown(lower, [Put("a", b"new")])["dir/c"] == "content", "the others keep the old content"
    assert shown(lower, [hardlink("d", "b"), whiteout("b")])["d"] == "content", "to a file of a lower layer"
    assert shown([symlink("l", "x"), hardlink("m", "l")])["m"] == "-> x"
    assert shown([symlink("up", "dir"), Put("dir/x", b"1"), hardlink("y", "up/x")])["y"] == "1"


def test_find_stays_in_the_root() -> None:
    tree = merged(
        [Put("usr/lib/a", b"1"), symlink("lib", "/usr/lib"), symlink("out", "../../../usr"), symlink("o", "o")]
    )
    assert tree.find("/lib/a") is tree.find("usr/lib/a") is tree.find("out/lib/../lib/a")
    assert tree.find("o") is tree.find("lib/none") is tree.find("usr/lib/a/x") is None
    assert tree.find("") is tree.find("../..") is tree.root


def test_contents_come_in_the_order_of_the_layer() -> None:
    data = layer_tar(Put("z", b"first"), Put("skipped", b"x" * 3000), Put("a", b"second" * 200_000), Put("m", b""))
    tree = MergedTree()
    tree.add_layer(Bytes(data), "layer")
    found = dict(tree.walk())
    wanted = [found["a"], found["m"], found["z"], found["z"]]
    read = [(node, b"".join(pieces)) for node, pieces in contents(Bytes(data), wanted, "layer")]
    assert read == [(found["z"], b"first"), (found["a"], b"second" * 200_000), (found["m"], b"")]


# hostile layers


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([Put("../x")], ["`../x`", "without `..`"]),
        ([Put("a/../../x")], ["`a/../../x`"]),
        ([Put("file"), Put("file/x")], ["`file/x` lies below a path that is no directory"]),
        ([hardlink("a", "gone")], ["`a` is a hard link to `gone`, which is not there"]),
        ([hardlink("a", "../../etc/shadow")], ["without `..`", "the target of `a`"]),
        ([directory("d"), hardlink("a", "d")], ["`a` is a hard link to `d`, which is a directory"]),
        ([symlink("l", "l"), Put("l/x")], ["`l/x` leads through too many symbolic links"]),
        ([symlink("l", "")], ["`l` is a symbolic link to nothing"]),
        ([Put(".wh.")], ["`.wh.` is a whiteout of nothing"]),
        ([Put("a/.wh...")], ["is a whiteout of nothing"]),
        ([Put("x" * 256)], ["255 bytes"]),
        ([Put("x/" * 2500 + "y")], ["4095 bytes"]),
    ],
)
def test_what_cannot_be_applied_is_named(members: list[Put], words: list[str]) -> None:
    with pytest.raises(UntrustedInputError) as caught:
        merged([Put("etc/passwd", b"root")], members)
    assert caught.value.place == "layer 1"
    for word in words:
        assert word in caught.value.fact


def test_links_never_lead_out() -> None:
    members = [
        symlink("up", "../../../.."),
        Put("up/etc/passwd", b"evil"),
        symlink("abs", "/"),
        Put("abs/x", b"1"),
    ]
    assert shown(members) == {"abs": "-> /", "etc": "/", "etc/passwd": "evil", "up": "-> ../../../..", "x": "1"}


def test_a_deep_tree_is_no_trouble() -> None:
    deep = "/".join(["d"] * 1900)
    found = shown([Put(f"{deep}/x", b"1")], [opaque("d"), Put(f"{deep}/y", b"2")])
    assert f"{deep}/x" not in found
    assert found[f"{deep}/y"] == "2"


@pytest.mark.parametrize("cut", [100, 512, 700, 1024 + 300])
def test_a_truncated_layer_is_named(cut: int) -> None:
    data = layer_tar(Put("a", b"x" * 1000), Put("b", b"y" * 2000))
    tree = MergedTree()
    try:
        tree.add_layer(Bytes(data), "whole")
        nodes = [node for _, node in tree.walk()]
        with pytest.raises(UntrustedInputError):
            for _, pieces in contents(Bytes(data[:cut]), nodes, "cut"):
                list(pieces)
    finally:
        assert len(nodes) == 2


def test_names_that_are_no_text_are_kept_for_who_needs_them() -> None:
    data = bytearray(layer_tar(Put("a", b"1")).replace(b"a" + bytes(99), b"\xff" + bytes(99), 1))
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    tree = MergedTree()
    tree.add_layer(Bytes(bytes(data)), "layer")
    assert [os.fsencode(path) for path, _ in tree.walk()] == [b"\xff"]


# as another tool sees it


_NAMES = st.sampled_from(["a", "b", "c"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_MEMBERS = st.one_of(
    st.builds(lambda path, text: Put(path, text.encode()), _PATHS, st.sampled_from(["1", "22", ""])),
    st.builds(directory, _PATHS, st.sampled_from([0o755, 0o711])),
    st.builds(symlink, _PATHS, st.sampled_from(["a", "b/c", "../a", "/c", "../../b"])),
    st.builds(whiteout, _PATHS),
    st.builds(opaque, _PATHS),
)


def ordered(members: list[Put]) -> list[Put]:
    """As a tool would write them: whiteouts first, no path twice, nothing below what is no directory."""
    kept: dict[str, Put] = {}
    for put in sorted(members, key=lambda put: ("/.wh." not in f"/{put.name}", put.name.count("/"), put.name)):
        own = put.name.replace("/.wh..wh..opq", "").replace(".wh.", "")
        parents = [own.rsplit("/", count)[0] for count in range(1, own.count("/") + 1)]
        if own in kept or any(parent in kept and kept[parent].kind != tarfile.DIRTYPE for parent in parents):
            continue
        kept[own] = put
    return list(kept.values())


@pytest.mark.tools
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(_MEMBERS, max_size=6).map(ordered), min_size=1, max_size=3))
def test_umoci_unpacks_the_same_tree(tmp_path_factory: pytest.TempPathFactory, layers: list[list[Put]]) -> None:
    umoci = need("umoci")
    try:
        expected = shown(*layers)
    except UntrustedInputError:
        return
    room = tmp_path_factory.mktemp("umoci")
    store = Store(room / "store").create()
    image = append(image_of(store), [layer_of(store, layer_tar(*members)) for members in layers])
    store.tag("image", saved(store, image))
    options = [] if os.geteuid() == 0 else ["--rootless"]
    unpacked = run(
        [umoci, "unpack", *options, "--image", f"{store.root}:image", str(room / "bundle")], check=False
    )
    if "too many levels of symbolic links" in unpacked.stderr:
        return  # a whiteout below a circle: umoci refuses it, we say that it hides nothing
    assert unpacked.returncode == 0, unpacked.stderr
    root = room / "bundle" / "rootfs"
    found: dict[str, str] = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    assert found == expected


def test_compressed_layers_are_read_as_they_lie(store: Store) -> None:
    tar = layer_tar(Put("a", b"x" * 100_000), Put("b", b"y"))
    for compression in ("none", "gzip", "zstd"):
        layer = layer_of(store, tar, compression=compression)
        path = store.blob_path(layer.descriptor.digest)
        tree = MergedTree()
        with Stream(path) as stream:
            tree.add_layer(stream, compression)
        nodes = [node for _, node in tree.walk()]
        with Stream(path) as stream:
            assert [len(b"".join(pieces)) for _, pieces in contents(stream, nodes, "layer")] == [100_000, 1]
    assert isinstance(path, Path)
