"""A Debian root from packages: complete, exact, and the same twice. The base is shared with the other tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.debian import WISH, DebianBase, debian_base, shared_directory
from support.needs import need

from assembler.build import bootstrap
from assembler.build.debs import Package, fetch
from assembler.build.host_apt import isolated_apt, keyring_path
from assembler.errors import LockError, ManifestError, NodeError, UntrustedInputError, VerifyError
from assembler.events import ignore
from assembler.manifest.models import Bootstrap
from assembler.oci.platform import Platform
from assembler.tree.entry import Slice


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianBase]:
    need("mmdebstrap", "buildah")
    with debian_base(shared_directory(tmp_path_factory.getbasetemp())) as made:
        yield made


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    return info


def test_reads_a_root(tmp_path: Path) -> None:
    ping = member("./usr/bin/ping", mode=0o4755)
    ping.uid, ping.gid, ping.mtime = 3, 42, 1700000000
    ping.pax_headers = {"SCHILY.xattr.security.capability": b"\x01\x00\xff".decode("utf-8", "surrogateescape")}
    tar = make_tar(
        tmp_path / "root.tar",
        (member("./", tarfile.DIRTYPE, 0o755), b""),
        (member("./dev/", tarfile.DIRTYPE, 0o755), b""),
        (member("./dev/null", tarfile.CHRTYPE, 0o666), b""),
        (member("./etc/apt/sources.list"), b"deb copy:///somewhere ./"),
        (member("./etc/machine-id"), b"0123"),
        (ping, b"ELF"),
        (member("./usr/bin/ping4", tarfile.LNKTYPE, link="./usr/bin/ping"), b""),
        (member("./bin", tarfile.SYMTYPE, 0o777, "usr/bin"), b""),
        (member("./var/log/dpkg.log"), b"today"),
    )
    found = {e.path: e for e in bootstrap.entries(tar, sources=["deb http://h/debian s main"], keyring="/none")}
    assert list(found) == ["bin", "dev", "etc/apt/sources.list", "etc/machine-id", "usr/bin/ping", "usr/bin/ping4"]
    assert found["etc/apt/sources.list"].content == b"deb http://h/debian s main\n"
    assert found["etc/machine-id"].content == b""
    entry = found["usr/bin/ping"]
    assert (entry.mode, entry.uid, entry.gid, entry.size) == (0o4755, 3, 42, 3)
    assert entry.xattrs == {"security.capability": b"\x01\x00\xff"}
    assert isinstance(entry.content, Slice)
    with tar.open("rb") as file:
        file.seek(entry.content.offset)
        assert file.read(entry.content.size) == b"ELF"
    assert found["usr/bin/ping4"].link == "usr/bin/ping"


def test_refuses_a_root_with_a_way_out(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "root.tar", (member("./usr/../../etc/passwd"), b""))
    with pytest.raises(UntrustedInputError, match="etc/passwd"):
        bootstrap.entries(tar)


def test_reads_a_dpkg_status() -> None:
    status = (
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\nDescription: x\n\n"
        "Package: old\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n"
    )
    assert bootstrap.installed_packages(status) == {("libc6", "2.36-9", "amd64")}


def test_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ManifestError, match="mips"):
        bootstrap.debian_architecture(Platform.parse("linux/mips"))
    with pytest.raises(ManifestError, match="minbase"):
        bootstrap.assemble(Bootstrap(suite="bookworm", variant="huge"), [], {}, tmp_path)
    keyring = keyring_path("ubuntu")
    if not Path(keyring).exists():
        with (
            pytest.raises(NodeError) as caught,
            isolated_apt(["deb http://h/ubuntu jammy main"], "ubuntu", "amd64"),
        ):
            pass
        assert "ubuntu-keyring" in caught.value.render()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NodeError, match="mmdebstrap"):
        bootstrap.assemble(WISH, [], {}, tmp_path)


@pytest.mark.tools
def test_a_package_that_is_not_there() -> None:
    with pytest.raises(LockError) as caught:
        bootstrap.resolve(Bootstrap(suite="bookworm", packages=("ca-certificate",)), Platform.host())
    assert "did you mean `ca-certificates`" in caught.value.render()


@pytest.mark.tools
def test_the_root_is_whole(base: DebianBase) -> None:
    entries = bootstrap.entries(base.tar, sources=WISH.apt_sources(), keyring=keyring_path("debian"))
    found = {entry.path: entry for entry in entries}
    assert (found["bin"].kind, found["bin"].link) == ("symlink", "usr/bin")
    assert found["usr/bin/su"].mode == 0o4755
    assert found["etc/shadow"].gid == 42
    sources = found["etc/apt/sources.list"].content
    assert isinstance(sources, bytes)
    assert sources.startswith(b"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http")
    names = {package.name for package in base.packages}
    assert {"apt", "ca-certificates", "dpkg", "libc6", "usr-is-merged"} <= names
    assert "usrmerge" not in names
    assert all(package.snapshot for package in base.packages)


@pytest.mark.tools
def test_the_same_packages_give_the_same_root(base: DebianBase, tmp_path: Path) -> None:
    paths = fetch(base.packages, base.store, ignore, offline=True)
    log = tmp_path / "log"
    again = bootstrap.assemble(WISH, base.packages, paths, tmp_path, log=log)
    assert "success" in log.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []

    def described(tar: Path) -> list[object]:
        return [
            (e.path, e.kind, e.mode, e.uid, e.gid, e.link, e.size, e.xattrs, content(tar, e.content))
            for e in bootstrap.entries(tar, sources=WISH.apt_sources())
        ]

    assert described(again) == described(base.tar)


def content(tar: Path, where: object) -> bytes | None:
    if isinstance(where, Slice):
        with tar.open("rb") as file:
            file.seek(where.offset)
            return file.read(where.size)
    assert where is None or isinstance(where, bytes)
    return where


@pytest.mark.tools
def test_a_deb_that_is_another_package_is_refused(base: DebianBase, tmp_path: Path) -> None:
    real = next(package for package in base.packages if package.name == "usr-is-merged")
    paths = fetch(base.packages, base.store, ignore, offline=True)
    liar = Package.from_json({**real.to_json(), "name": "dash"})
    with pytest.raises(UntrustedInputError, match="usr-is-merged"):
        bootstrap.assemble(WISH, [liar], {liar: paths[real]}, tmp_path)


@pytest.mark.tools
def test_a_root_with_other_packages_than_locked_is_refused(base: DebianBase) -> None:
    entries = bootstrap.entries(base.tar)
    with pytest.raises(VerifyError) as caught:
        bootstrap._verify(entries, base.packages[1:])
    assert "not in the lock: adduser" in caught.value.render()
