"""`assemble sif` and the outputs `sif:` and `sqsh:`, from every place where an image can be, as users run them."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
from support.cli import Program
from support.images import layer_of, saved
from support.layers import Put, directory, hardlink, layer_tar, opaque, symlink, whiteout
from support.needs import lacking, need, need_root
from support.registry import RunningRegistry
from support.sif import Entry, entries, objects, squashfs_of

from assembler.events import Event, Note
from assembler.oci.digest import Digest
from assembler.oci.image import Image, append
from assembler.oci.layout import Store
from assembler.oci.outputs import write_archive
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.process import run
from assembler.registry.client import Client
from assembler.registry.push import push
from assembler.sif.settings import SifSettings
from assembler.steps.session import Options, Session
from assembler.steps.sif import convert

pytestmark = [pytest.mark.tools, pytest.mark.registry]

HOST = Platform.host()
LAYERS = (
    [
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        Put("usr/lib/libz.so", b"old library", mode=0o755, uid=3, gid=4),
        Put("opt/tool", b"#!/bin/sh\n", mode=0o4750, uid=7),
        Put("opt/gone", b"deleted later"),
        Put("opt/cache/x", b"hidden later"),
        Put("changes", b"1"),
        directory("replaced/by"),
        Put("dev/null", kind=tarfile.CHRTYPE),
    ],
    [
        whiteout("opt/gone"),
        opaque("opt/cache"),
        Put("opt/cache/y", b"fresh", pax={"mtime": "1600000000"}),
        Put("lib/libz.so", b"new library"),
        hardlink("opt/alias", "opt/tool"),
        directory("changes", mode=0o700),
        Put("replaced", b"a file"),
    ],
    [Put("big", b"0123456789" * 50_000), hardlink("opt/third", "opt/alias"), whiteout("opt/alias")],
)


def image_in(store: Store, kinds: tuple[str, ...] = ("gzip", "zstd", "none")) -> Image:
    packed = [
        layer_of(store, layer_tar(*puts), compression=kind) for puts, kind in zip(LAYERS, kinds, strict=True)
    ]
    image = append(Image.scratch(HOST), packed)
    store.tag("tool", saved(store, image))
    return image


@pytest.fixture
def program(tmp_path: Path) -> Program:
    need("tar2sqfs")
    return Program(tmp_path / "cache")


@pytest.fixture
def layout(tmp_path: Path) -> Store:
    """A layout in `other`, with one image."""
    store = Store(tmp_path / "other").create()
    image_in(store)
    return store


def of_sif(sif: Path) -> dict[str, Entry]:
    return entries(squashfs_of(sif, sif.with_suffix(".sqfs")))


def unpacked(rootfs: Path) -> dict[str, Entry]:
    """A root file system on disk, without what has no place in a squashfs of an ordinary user."""
    found = {}
    for path in sorted(rootfs.rglob("*")):
        status = path.lstat()
        kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}.get(
            stat.S_IFMT(status.st_mode)
        )
        if kind is None:
            continue
        content: bytes | str = path.read_bytes() if kind == "file" else ""
        content = str(path.readlink()) if kind == "symlink" else content or b""
        mode = 0o777 if kind == "symlink" else stat.S_IMODE(status.st_mode)
        mtime = 0 if kind == "directory" else int(status.st_mtime)
        found[str(path.relative_to(rootfs))] = Entry(kind, mode, (status.st_uid, status.st_gid), content, mtime)
    return found


def same_as_umoci(layout: Path, name: str, sif: Path, room: Path) -> int:
    """Compare every path with what umoci unpacks of the same image; how many there are."""
    need_root()  # for owners
    run([need("umoci"), "unpack", "--image", f"{layout}:{name}", str(room / "bundle")])
    theirs = unpacked(room / "bundle" / "rootfs")
    ours = of_sif(sif)
    for path, entry in theirs.items():
        mine = ours[path]
        # A time of a directory is that of its last change for umoci; capabilities are not looked at here.
        mtime = 0 if entry.kind == "directory" else mine.mtime
        assert Entry(mine.kind, mine.mode, mine.owner, mine.content, mtime) == entry, path
    added = set(ours) - set(theirs) - {"."}
    assert all(path.startswith((".", "etc/hosts", "etc/resolv.conf")) or path in ADDED for path in added), added
    return len(theirs)


ADDED = {"dev", "proc", "root", "var", "var/tmp", "tmp", "etc", "sys", "home", "singularity", "environment"}


def test_what_is_in_it_is_what_umoci_unpacks(tmp_path: Path, program: Program, layout: Store) -> None:
    image_in(layout, ("gzip", "none", "gzip"))  # umoci reads no zstd
    program.ok("sif", f"oci:{layout.root}", tmp_path / "x.sif")
    assert same_as_umoci(layout.root, "tool", tmp_path / "x.sif", tmp_path) > 10


def test_the_same_image_gives_the_same_file_wherever_it_lies(
    tmp_path: Path, program: Program, layout: Store, registry: RunningRegistry, repository: str, client: Client
) -> None:
    reference = registry.reference(f"{repository}:1")
    image = image_in(layout)
    push(client, image, layout, [reference])
    descriptor = layout.find("tool")
    assert descriptor is not None
    write_archive(layout, descriptor.digest, tmp_path / "x.tar", name="tool")
    image_in(Store(program.cache / "store").create())
    files = {}
    places = {
        "layout": f"oci:{layout.root}:tool",
        "archive": f"oci-archive:{tmp_path / 'x.tar'}",
        "registry": f"docker://{reference}",
        "store": "tool",
    }
    for name, text in places.items():
        target = tmp_path / f"{name}.sif"
        ended = program("sif", text, target)
        assert (ended.code, ended.stdout) == (0, f"{target}\n"), ended.stderr
        assert "1 devices and pipes of the image are left out" in ended.stderr
        assert "of disk, " in ended.stderr
        files[name] = target.read_bytes()
    assert len(set(files.values())) == 1, {name: len(data) for name, data in files.items()}
    assert stat.S_IMODE((tmp_path / "store.sif").stat().st_mode) == 0o755
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_layouts_and_archives_are_read_where_they_lie(tmp_path: Path, program: Program, layout: Store) -> None:
    program.ok("sif", f"oci:{layout.root}", tmp_path / "x.sif")
    assert not list((program.cache / "store" / "blobs" / "sha256").iterdir())


def test_a_damaged_layer_of_a_layout_is_an_error(tmp_path: Path, program: Program, layout: Store) -> None:
    blobs = sorted((layout.root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blobs[-1].read_bytes())
    data[-700] ^= 1
    blobs[-1].write_bytes(data)
    ended = program("sif", f"oci:{layout.root}", tmp_path / "x.sif")
    assert ended.code == 1
    assert "the bytes give sha256:" in ended.stderr
    assert not (tmp_path / "x.sif").exists()


def test_without_room_layers_are_read_from_the_registry_twice(
    tmp_path: Path,
    layout: Store,
    registry: RunningRegistry,
    repository: str,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("tar2sqfs")
    reference = registry.reference(f"{repository}:1")
    image = image_in(layout)
    push(client, image, layout, [reference])

    class Full:
        free = 0

    monkeypatch.setattr("assembler.steps.sif_sources.shutil.disk_usage", lambda _path: Full)
    monkeypatch.setattr("assembler.sif.write.check_space", lambda *_: 0)
    events: list[Event] = []
    since = registry.mark()
    with Session(Options(cache=tmp_path / "cache"), events.append) as session:
        convert(session, str(reference), HOST, tmp_path / "x.sif", SifSettings())
        assert not any(session.store.has(layer.descriptor.digest) for layer in image.layers)
    warnings = [event.text for event in events if isinstance(event, Note) and event.level == "warning"]
    assert any("read twice from the registry" in text for text in warnings)
    digests = {str(layer.descriptor.digest) for layer in image.layers}
    gets = [
        asked
        for asked in registry.asked(since)
        if asked.method == "GET" and asked.path.rpartition("/")[2] in digests
    ]
    assert len(gets) == 2 * len(digests)
    with Session(Options(cache=tmp_path / "other-cache"), events.append) as session:
        convert(session, f"oci:{layout.root}", HOST, tmp_path / "y.sif", SifSettings())
    assert (tmp_path / "x.sif").read_bytes() == (tmp_path / "y.sif").read_bytes()


MANIFEST = """\
manifest: 1
name: tiny
args: {text: {default: hello}}
runtime: oci:other
layers: [{files: [{path: /opt/text, content: "${text}"}]}]
image: {env: {A: "1"}, cmd: [/opt/tool]}
"""


def test_a_manifest_becomes_a_sif(tmp_path: Path, program: Program, layout: Store) -> None:
    (tmp_path / "tiny.yaml").write_text(MANIFEST)
    program.ok("sif", "tiny.yaml", "a.sif", "--set", "text=bye", "--fix-perms", cwd=tmp_path)
    found = of_sif(tmp_path / "a.sif")
    assert found["opt/text"].content == b"bye"
    assert found["opt/cache/y"].mtime == 1_600_000_000
    assert (
        found[".singularity.d/runscript"].content
        == b"#!/bin/sh\nif [ $# -eq 0 ]; then set -- '/opt/tool'; fi\nexec \"$@\"\n"
    )
    out = program.ok("tiny.yaml", "-o", "sif:b.sif", "-o", "sqsh:b.sqsh", "--compression", "both", cwd=tmp_path)
    assert out.splitlines() == ["sif:b.sif", "sqsh:b.sqsh"]
    assert of_sif(tmp_path / "b.sif")["opt/text"].content == b"hello"
    assert entries(tmp_path / "b.sqsh")["etc/environment"].content == b"A=1\n"


def test_a_sif_is_pushed_as_apptainer_would(
    tmp_path: Path, program: Program, layout: Store, registry: RunningRegistry, repository: str, client: Client
) -> None:
    reference = registry.reference(f"{repository}:sif")
    target = tmp_path / "tool.sif"
    result = json.loads(program.ok("sif", f"oci:{layout.root}", target, "--push", f"oras://{reference}", "--json"))
    document = client.get_manifest(reference)
    manifest = json.loads(document.data)
    assert result["references"] == [str(reference.at(document.digest))]
    assert result["digest"] == Digest.of(target.read_bytes())
    assert manifest["config"]["mediaType"] == "application/vnd.sylabs.sif.config.v1+json"
    [layer] = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.sylabs.sif.layer.v1.sif"
    assert layer["annotations"] == {"org.opencontainers.image.title": "tool.sif"}
    assert registry.blob_path(Digest.parse(layer["digest"])).read_bytes() == target.read_bytes()
    assert registry.blob_path(Digest.parse(manifest["config"]["digest"])).read_bytes() == b"{}"


def test_credentials_are_tried_before_the_work(
    tmp_path: Path, program: Program, layout: Store, login_registry: RunningRegistry
) -> None:
    reference = Reference.parse(f"{login_registry.host}/private:1")
    ended = program("sif", f"oci:{layout.root}", tmp_path / "x.sif", "--push", f"oras://{reference}")
    assert ended.code == 1
    assert not (tmp_path / "x.sif").exists()


def test_source_date_epoch_is_the_time_of_what_has_none(tmp_path: Path, program: Program, layout: Store) -> None:
    program.ok("sif", f"oci:{layout.root}", tmp_path / "x.sif", env={"SOURCE_DATE_EPOCH": "1700000000"})
    assert "2023-11-14" in run([need("siftool"), "header", str(tmp_path / "x.sif")]).stdout
    found = of_sif(tmp_path / "x.sif")
    assert found[".singularity.d/runscript"].mtime == 1_700_000_000
    assert found["opt/cache/y"].mtime == 1_600_000_000
    ended = program("sif", f"oci:{layout.root}", tmp_path / "x.sif", env={"SOURCE_DATE_EPOCH": "now"})
    assert (ended.code, "SOURCE_DATE_EPOCH: expected seconds since 1970" in ended.stderr) == (2, True)


def test_with_apptainer_its_build_is_called(tmp_path: Path, program: Program, layout: Store) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apptainer").write_text(
        '#!/bin/sh\necho "$@" >&2\nfor last; do [ "${last%.sif}" = "$last" ] || echo "$@" >"$last"; done\n'
    )
    (programs / "apptainer").chmod(0o755)
    env = {"PATH": f"{programs}:{os.environ['PATH']}"}
    arguments = ("sif", f"oci:{layout.root}:tool", tmp_path / "x.sif", "--with", "apptainer")
    program.ok(*arguments, "--fix-perms", "--compression", "zstd", env=env)
    said = (tmp_path / "x.sif").read_text().split()
    assert said[:4] == ["build", "--fix-perms", "--mksquashfs-args", "-comp"]
    assert said[-1] == f"oci:{layout.root}:tool"
    (programs / "apptainer").write_text("#!/bin/sh\necho no luck\nexit 255\n")
    ended = program(*arguments, env=env)
    assert ended.code == 1
    assert "no luck" in ended.stderr
    assert (tmp_path / "x.sif").read_text().split() == said


@pytest.mark.slow
def test_a_real_apptainer_runs_it(tmp_path: Path, program: Program) -> None:
    """Where there is one; Debian and Ubuntu have no package of it."""
    from assembler.process import which

    apptainer = which("apptainer") or which("singularity")
    if apptainer is None:
        pytest.skip("no Apptainer on this host")
    (tmp_path / "base.yaml").write_text(BASE)
    program.ok("sif", "base.yaml", "base.sif", cwd=tmp_path)
    listed = run([apptainer, "inspect", "--environment", str(tmp_path / "base.sif")]).stdout
    assert "10-docker2singularity.sh" in listed
    done = run([apptainer, "-q", "run", "--no-home", str(tmp_path / "base.sif")], check=False)
    if done.returncode and "capability" in done.stderr:
        lacking("this host lets nobody run containers")
    assert done.stdout == "it's $HOME\n", done.stderr


BASE = """\
manifest: 1
name: base
runtime: {bootstrap: {suite: bookworm, packages: [ca-certificates]}}
image: {env: {A: "it's $HOME"}, cmd: [sh, -c, 'echo "$A"']}
"""


@pytest.mark.slow
def test_a_whole_debian_is_what_umoci_unpacks(tmp_path: Path, program: Program) -> None:
    need("mmdebstrap")
    (tmp_path / "base.yaml").write_text(BASE)
    program.ok("base.yaml", "-o", "sif:base.sif", "-o", "oci:layout", "--compression", "gzip", cwd=tmp_path)
    assert same_as_umoci(tmp_path / "layout", "base", tmp_path / "base.sif", tmp_path) > 3000
    program.ok("sif", "oci:layout", "again.sif", cwd=tmp_path)
    assert (tmp_path / "again.sif").read_bytes() == (tmp_path / "base.sif").read_bytes()
    assert [item.name for item in objects(tmp_path / "base.sif")] == [
        "",
        "inspect-metadata.json",
        "oci-config.json",
        "",
    ]
