"""Copying out of other images, end to end: a registry's, a layout's, a manifest's. No container, no root."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support.cli import Program
from support.images import image_of, layer_of, saved
from support.layers import Put, directory, hardlink, layer_tar, opaque, symlink, whiteout
from support.needs import need
from support.registry import RunningRegistry

from assembler.oci.digest import Digest
from assembler.oci.image import Image, append
from assembler.oci.layout import Store
from assembler.registry.client import Client
from assembler.registry.push import push

CAPS = {"SCHILY.xattr.security.capability": "\x01\x02", "SCHILY.xattr.trusted.overlay.opaque": "y"}
LAYERS = (
    [
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        Put("usr/lib/libz.so.1.3", b"old library"),
        symlink("usr/lib/libz.so.1", "libz.so.1.3"),
        Put("opt/tool/bin/tool", b"#!/bin/sh\n", mode=0o750, uid=7),
        hardlink("opt/tool/bin/alias", "opt/tool/bin/tool"),
        Put("opt/tool/secret", b"deleted later"),
        Put("opt/tool/cache/x", b"hidden later"),
        Put("dev/null", kind=tarfile.CHRTYPE),
    ],
    [
        whiteout("opt/tool/secret"),
        opaque("opt/tool/cache"),
        Put("opt/tool/cache/y", b"fresh"),
        Put("lib/libz.so.1.3", b"new library", mode=0o755, pax=CAPS),
        symlink("opt/current", "/opt/tool"),
    ],
    [Put("big", b"0123456789" * 500_000)],
)


def other_image(store: Store, *compressions: str, layers: tuple[list[Put], ...] = LAYERS) -> Image:
    kinds = compressions or ("gzip", "zstd", "none")
    packed = [
        layer_of(store, layer_tar(*members), compression=kind) for members, kind in zip(layers, kinds, strict=True)
    ]
    return append(image_of(store), packed)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "cache")


@pytest.fixture
def layout(tmp_path: Path) -> Store:
    """A layout in `project/other`."""
    store = Store(tmp_path / "project" / "other").create()
    store.tag("tools", saved(store, other_image(store)))
    return store


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir(exist_ok=True)
    return tmp_path / "project"


def manifest(project: Path, *copies: dict[str, Any], name: str = "taken") -> Path:
    path = project / f"{name}.yaml"
    layers = [{"copy": copy} for copy in copies]
    path.write_text(json.dumps({"manifest": 1, "name": name, "runtime": "scratch", "layers": layers}))
    return path


def content(program: Program, name: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """The members of the image's layers, by path, with their contents, as another library reads them."""
    import zstandard

    store = Store(program.cache / "store")
    descriptor = store.find(name)
    assert descriptor is not None
    members: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    for layer in json.loads(store.read(descriptor.digest))["layers"]:
        data = store.read(Digest.parse(layer["digest"]))
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                members[member.name] = member, file.read() if file else b""
    return members


def test_files_come_out_of_a_layout(program: Program, project: Path, layout: Store) -> None:
    image = "oci:other:tools"
    path = manifest(
        project,
        {"image": image, "path": "/lib/libz.so.1", "to": "/usr/lib/"},
        {"image": image, "path": "usr/lib/libz.so*", "to": "/opt/lib/"},
        {"image": image, "path": "/opt/current/", "to": "/opt/copy", "mode": "0755"},
        {"image": image, "path": "big", "to": "/data/big", "user": 1000, "group": 100},
    )
    program.ok(path)
    contents = content(program, "taken")
    found = {name: member for name, (member, _) in contents.items()}
    data = {name: content for name, (_, content) in contents.items()}
    library = found["usr/lib/libz.so.1"]
    assert (data["usr/lib/libz.so.1"], library.mode, library.isreg()) == (b"new library", 0o755, True), "followed"
    assert library.pax_headers["SCHILY.xattr.security.capability"] == "\x01\x02"
    assert not [key for key in library.pax_headers if "trusted" in key]
    assert found["opt/lib/libz.so.1"].linkname == "libz.so.1.3", "what a pattern matches stays a link"
    assert data["opt/lib/libz.so.1.3"] == b"new library"
    assert {name for name in found if name.startswith("opt/copy/")} == {
        *("opt/copy/bin", "opt/copy/bin/alias", "opt/copy/bin/tool", "opt/copy/cache", "opt/copy/cache/y"),
    }
    assert (found["opt/copy/bin/tool"].islnk(), found["opt/copy/bin/tool"].linkname) == (
        True,
        "opt/copy/bin/alias",
    )
    assert (found["opt/copy/bin/alias"].mode, found["opt/copy/bin/alias"].uid) == (0o755, 0)
    assert (found["data/big"].uid, found["data/big"].gid, found["data/big"].size) == (1000, 100, 5_000_000)
    assert data["data/big"] == LAYERS[2][0].content
    assert not (program.cache / "containers").exists()
    assert not list((program.cache / "runs").iterdir())


def test_compression_of_the_other_image_does_not_show(program: Program, project: Path, tmp_path: Path) -> None:
    digests = set()
    for kind in ("gzip", "zstd", "none"):
        store = Store(project / f"other-{kind}").create()
        store.tag("tools", saved(store, other_image(store, kind, kind, kind)))
        copy = {"image": f"oci:other-{kind}", "path": "opt", "to": "/opt/"}
        Program(tmp_path / kind).ok(manifest(project, copy))
        (layer,) = json.loads(_manifest(tmp_path / kind / "store"))["layers"]
        digests.add(layer["digest"])
    assert len(digests) == 1


def _manifest(root: Path) -> bytes:
    store = Store(root)
    descriptor = store.find("taken")
    assert descriptor is not None
    return store.read(descriptor.digest)


def test_a_registry_image_is_pinned_by_the_lock(
    program: Program, project: Path, tmp_path: Path, registry: RunningRegistry, client: Client
) -> None:
    store = Store(tmp_path / "other").create()
    reference = registry.reference("copy/tools:1")
    image = other_image(store)
    saved(store, image)
    push(client, image, store, [reference])
    path = manifest(project, {"image": str(reference), "path": "opt/tool/bin/tool", "to": "/usr/local/bin/"})
    first = program.ok(path)
    lock = (project / "taken.lock.yaml").read_text()
    assert f"copy {reference}" in lock
    mark = registry.mark()
    assert program.ok(path) == first
    assert registry.asked(mark) == []

    other = append(image, [layer_of(store, layer_tar(Put("opt/tool/bin/tool", b"newer")))])
    saved(store, other)
    push(client, other, store, [reference])
    assert program.ok(path) == first, "the tag has moved, the lock has not"
    assert Program(tmp_path / "cold").ok(path, "--locked") == first
    updated = program("lock", path, "--update")
    assert updated.code == 0, updated.stderr
    assert program.ok(path) != first
    assert content(program, "taken")["usr/local/bin/tool"][1] == b"newer"


def test_only_what_changed_in_the_other_image_makes_a_layer_anew(
    program: Program, project: Path, layout: Store
) -> None:
    """The short way notices that the layout has another image under its name."""
    path = manifest(project, {"image": "oci:other:tools", "path": "usr/lib/libz.so.1.3", "to": "/lib/"})
    first = program.ok(path)
    assert program.ok(path) == first
    image = append(other_image(layout), [layer_of(layout, layer_tar(Put("usr/lib/libz.so.1.3", b"third")))])
    layout.tag("tools", saved(layout, image))
    assert program.ok(path) != first
    assert content(program, "taken")["usr/lib/libz.so.1.3"][1] == b"third"


def test_another_manifest_is_built_for_it(program: Program, project: Path) -> None:
    """Also one whose source has to be locked first."""
    with tarfile.open(project / "source.tar", "w") as tar:
        member = tarfile.TarInfo("top/tool")
        tar.addfile(member)
    (project / "tools.yaml").write_text(
        "manifest: 1\nname: tools\nargs: {place: /opt/}\nruntime: scratch\nsources: {s: {archive: source.tar}}\n"
        "layers:\n  - copy: {source: s, to: '${place}'}\n"
    )
    image = {"manifest": "tools.yaml", "with": {"place": "/srv/"}}
    path = manifest(project, {"image": image, "path": "srv/tool", "to": "/usr/bin/tool"})
    assert program("plan", path).code == 10
    program.ok(path)
    assert "usr/bin/tool" in content(program, "taken")
    assert program("plan", path).code == 0
    assert program.ok(path)


@pytest.mark.parametrize(
    ("copy", "words"),
    [
        ({"path": "usr/lib/nothing"}, "`usr/lib/nothing` matches nothing in `oci:other`"),
        ({"path": "opt/tool/secret"}, "`opt/tool/secret` matches nothing in `oci:other`"),
        ({"path": "opt/tool/cache/x"}, "matches nothing"),
        ({"path": "usr/*.json"}, "matches nothing"),
        ({"path": "dev/null"}, "`dev/null` is a device or a pipe in `oci:other`"),
        ({"path": "opt", "image": "oci:none"}, "there is no readable `index.json`"),
        ({"path": "opt", "image": "oci:other:none"}, "the layout holds `tools`"),
    ],
)
def test_what_cannot_be_copied_is_named(
    program: Program, project: Path, layout: Store, copy: dict[str, str], words: str
) -> None:
    ended = program(manifest(project, {"image": "oci:other", "to": "/x/", **copy}))
    assert ended.code in (1, 2)
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([Put("../../evil", b"x")], "`../../evil`"),
        ([hardlink("a", "/etc/passwd")], "`a` is a hard link to `/etc/passwd`"),
        ([Put("f"), Put("f/x")], "`f/x`"),
        ([Put("a/.wh...")], "whiteout of nothing"),
    ],
)
def test_a_hostile_layer_is_refused_by_name(
    program: Program, project: Path, members: list[Put], words: str
) -> None:
    store = Store(project / "evil").create()
    image = append(image_of(store), [layer_of(store, layer_tar(*members))])
    store.tag("evil", saved(store, image))
    before = {path for path in project.parent.rglob("*") if "cache" not in path.parts}
    ended = program(manifest(project, {"image": "oci:evil", "path": "a", "to": "/x/"}))
    assert ended.code == 1
    assert words in ended.stderr
    assert str(image.layers[0].descriptor.digest) in ended.stderr
    after = {path for path in project.parent.rglob("*") if "cache" not in path.parts}
    assert {path.name for path in after - before} <= {"taken.yaml", "taken.lock.yaml"}


def test_a_bomb_is_refused(program: Program, project: Path) -> None:
    store = Store(project / "bomb").create()
    image = append(image_of(store), [layer_of(store, layer_tar(Put("zeros", bytes(300 << 20))))])
    store.tag("bomb", saved(store, image))
    ended = program(manifest(project, {"image": "oci:bomb", "path": "zeros", "to": "/x"}))
    assert ended.code == 1
    assert "times as much comes out as goes in" in ended.stderr


def test_a_name_that_is_no_text_cannot_ship(program: Program, project: Path) -> None:
    store = Store(project / "latin").create()
    data = layer_tar(Put("ok", b"1"), Put("d/\udcff", b"2"))
    store.tag("latin", saved(store, append(image_of(store), [layer_of(store, data)])))
    program.ok(manifest(project, {"image": "oci:latin", "path": "ok", "to": "/ok"}))
    ended = program(manifest(project, {"image": "oci:latin", "path": "d", "to": "/d"}))
    assert ended.code == 1
    assert "UTF-8" in ended.stderr


def test_no_root_is_needed(project: Path, layout: Store, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("everything here runs without root already")
    need("setpriv")
    path = manifest(project, {"image": "oci:other:tools", "path": "opt/tool/bin/tool", "to": "/tool"})
    cache = tmp_path / "users"
    for place in (cache, project):
        place.mkdir(exist_ok=True)
        os.chown(place, 4711, 4711)
    for parent in (tmp_path, *list(tmp_path.parents)[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    path.chmod(0o644)
    done = subprocess.run(
        [
            need("setpriv"),
            "--reuid=4711",
            "--regid=4711",
            "--clear-groups",
            sys.executable,
            "-m",
            "assembler",
            str(path),
        ],
        env={**Program(cache).environment(), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named" in done.stderr or "Permission denied: '/root" in done.stderr:
        pytest.skip("another user cannot read this interpreter")
    assert done.returncode == 0, done.stderr
