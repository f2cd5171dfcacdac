"""Archives: honest ones in every format, and hostile ones, which must leave nothing anywhere."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assembler.errors import RequestError, UntrustedInputError
from assembler.tree.archive import SOURCE_TIME, read_archive, unpack
from assembler.tree.entry import Slice

Change = Callable[[tarfile.TarInfo], None]


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _item(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def _tar(*items: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for item in items:
            info, data = item if isinstance(item, tuple) else (item, b"")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _link(name: str, target: str) -> tarfile.TarInfo:
    return _item(name, tarfile.SYMTYPE, target)


def _hard(name: str, target: str) -> tarfile.TarInfo:
    return _item(name, tarfile.LNKTYPE, target)


def _directory(name: str) -> tarfile.TarInfo:
    return _item(name, tarfile.DIRTYPE)


def _zip(*items: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in items:
            archive.writestr(name, data)
    return buffer.getvalue()


def _zip_item(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def _honest(form: int = tarfile.PAX_FORMAT) -> bytes:
    long = "d" * 120 + "/" + "f" * 150
    return _tar(
        _directory("./top"),
        (_item("./top/run", mode=0o4755), b"#!"),
        (_item("top/data"), b"data" * 1000),
        (_item("top/" + long), b"long"),
        _link("top/sub/up", "../data"),
        _link("top/loop", "loop"),
        _hard("top/sub/same", "top/data"),
        form=form,
    )


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip-members": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "xz-streams": lambda data: lzma.compress(data[:700]) + lzma.compress(data[700:]) + b"\0" * 8,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("compression", COMPRESSORS)
def test_honest_tar(tmp_path: Path, compression: str, form: int) -> None:
    path = tmp_path / "archive.bin"
    path.write_bytes(COMPRESSORS[compression](_honest(form)))
    unpack(path, tmp_path / "out", strip="single")
    out = tmp_path / "out"
    assert (out / "data").read_bytes() == b"data" * 1000
    assert stat.S_IMODE((out / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "data").stat().st_mode) == 0o644
    assert (out / "sub/up").read_bytes() == (out / "data").read_bytes()
    assert (out / "sub/same").samefile(out / "data")
    assert (out / ("d" * 120) / ("f" * 150)).read_bytes() == b"long"
    times = {p.lstat().st_mtime for p in [out, *out.rglob("*")]}
    assert times == {SOURCE_TIME}
    assert _names(tmp_path) == ["archive.bin", "out"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    entries = {entry.path: entry for entry in read_archive(path, strip="single", scratch=scratch)}
    assert entries["sub/same"].link == "data"
    content = entries["data"].content
    assert isinstance(content, Slice)
    assert content.path.read_bytes()[content.offset :][: content.size] == b"data" * 1000
    in_memory = {entry.path: entry.content for entry in read_archive(path)}
    if compression != "plain":
        assert in_memory["top/data"] == b"data" * 1000


def test_gnu_tar_makes_what_we_read(tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_bytes(os.urandom(3000))
    (root / "a/ü").write_text("umlaut")
    (root / "a/link").symlink_to("b/file")
    for form in ("v7", "ustar", "gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        subprocess.run(["tar", f"--format={form}", "-C", tmp_path, "-cf", path, "project"], check=True)
        unpack(path, tmp_path / form, strip=1)
        assert (tmp_path / form / "a/link").read_bytes() == (root / "a/b/file").read_bytes()
        assert (tmp_path / form / "a/ü").read_text() == "umlaut"


def test_strip_counts_components(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(_tar((_item("a/b/c"), b"1"), (_item("a/d"), b"2"), (_item("e"), b"3")))
    assert [entry.path for entry in read_archive(path, strip=1)] == ["b/c", "d"]
    assert [entry.path for entry in read_archive(path, strip=2)] == ["c"]
    assert [entry.path for entry in read_archive(path, strip="single")] == ["a/b/c", "a/d", "e"]


def test_ignored_entries_are_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(_tar((_item("p/ok"), b""), _link("p/tests/abs", "/etc/passwd"), (_item("p/x.o"), b"")))
    unpack(path, tmp_path / "out", strip="single", ignore=["tests/", "*.o"])
    assert _names(tmp_path / "out") == ["ok"]
    path.write_bytes(_tar((_item("p/ok"), b""), (_item("q/tests/x"), b"")))
    unpack(path, tmp_path / "two", strip="single", ignore=["/q/tests"])
    assert _names(tmp_path / "two") == ["p"]


def test_honest_zip(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(
        _zip(
            ("top/", b""),
            (_zip_item("top/run", stat.S_IFREG | 0o755), b"#!"),
            (_zip_item("top/link", stat.S_IFLNK | 0o777), b"sub/data"),
            ("top/sub/data", b"data" * 1000),
            ("top/ü", b"umlaut"),
        )
    )
    unpack(path, tmp_path / "out", strip="single")
    assert (tmp_path / "out/link").read_bytes() == b"data" * 1000
    assert os.access(tmp_path / "out/run", os.X_OK)
    assert (tmp_path / "out/ü").read_bytes() == b"umlaut"


def _lying(data: bytes, size: int) -> bytes:
    """The first header states another size; its checksum is right."""
    header = bytearray(data[:512])
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def _renamed(data: bytes, name: bytes) -> bytes:
    header = bytearray(data[:512])
    header[:100] = name.ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def _encrypted() -> bytes:
    data = bytearray(_zip(("secret", b"x" * 100)))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = data.index(magic) + offset
        data[position] |= 1
    return bytes(data)


def _overlapping() -> bytes:
    """Two central entries that share one local header."""
    data = _zip(("bomb", b"0" * 100_000))
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    central, tail = data[start:end], bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 2, 2, 2 * len(central))
    return data[:start] + central * 2 + bytes(tail)


def _bomb() -> bytes:
    """210 MiB of zeros in a few kilobytes of bzip2, one file."""
    header = _lying(_tar(_item("zeros"))[:512], 210 << 20)
    zeros = bz2.compress(bytes(30 << 20))
    return bz2.compress(header) + zeros * 7


def _sparse() -> bytes:
    info = _item("holes")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "holes"}
    return _tar((info, b"x"))


FILE = (_item("d/file"), b"x")
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent": (lambda: _tar((_item("../evil"), b"x")), r"`\.\./evil`"),
    "parent inside": (lambda: _tar((_item("a/../../evil"), b"x")), "without `..`"),
    "absolute": (lambda: _tar((_item("/evil"), b"x")), "relative path, found `/evil`"),
    "absolute link": (lambda: _tar(_link("l", "/etc/passwd")), "`l` is a symbolic link to the absolute path"),
    "link out": (lambda: _tar(_link("a/l", "../../x")), "`a/l` is a symbolic link to `../../x`, which leads out"),
    "link out by way of a link": (
        lambda: _tar(_directory("a/b/c"), _link("a/b/c/d", "../../.."), _link("l", "a/b/c/d/../../x")),
        "`l` is a symbolic link",
    ),
    "link out that a later link makes": (
        lambda: _tar(_link("l", "p/q/../../x"), _link("p/q", "../.")),
        "`l` is a symbolic link",
    ),
    "link out of the top": (lambda: _tar(FILE, _link("d/l", "../other")), "`d/l` is a symbolic link"),
    "through a link": (
        lambda: _tar(_link("l", "d"), _directory("d"), (_item("l/evil"), b"x")),
        "`l/evil` lies below",
    ),
    "through a file": (lambda: _tar((_item("f"), b""), (_item("f/evil"), b"x")), "`f/evil` lies below `f`"),
    "hard link out": (lambda: _tar(_hard("h", "../../etc/passwd")), "hard link `h`"),
    "hard link absolute": (lambda: _tar(_hard("h", "/etc/passwd")), "hard link `h`"),
    "hard link to nothing": (lambda: _tar(_hard("h", "later"), (_item("later"), b"")), "no earlier file"),
    "hard link to itself": (lambda: _tar(_hard("h", "h")), "no earlier file"),
    "hard link to a link": (
        lambda: _tar(_link("a/b/l", "../../x"), _hard("h", "a/b/l")),
        "`h` is a symbolic link",
    ),
    "duplicate": (lambda: _tar((_item("f"), b"1"), (_item("./f"), b"2")), "`./f` is there twice"),
    "directory then file": (lambda: _tar(_directory("d"), (_item("d"), b"")), "`d` is there twice"),
    "directory then link": (lambda: _tar(FILE, _link("d", "x")), "`d` is there twice"),
    "character device": (lambda: _tar(_item("null", tarfile.CHRTYPE)), "`null` is a character device"),
    "block device": (lambda: _tar(_item("sda", tarfile.BLKTYPE)), "`sda` is a block device"),
    "pipe": (lambda: _tar(_item("p", tarfile.FIFOTYPE)), "`p` is a named pipe"),
    "unknown type": (lambda: _tar(_item("q", b"Q")), "`q` is of the unknown type"),
    "sparse": (_sparse, "is a sparse file"),
    "old sparse": (lambda: _tar(_item("s", tarfile.GNUTYPE_SPARSE)), "`s` is a sparse file"),
    "over 8 GiB": (lambda: _lying(_tar((_item("big"), b"x")), (8 << 30) + 1), "`big` has 8589934593 bytes"),
    "lying size": (lambda: _lying(_tar((_item("big"), b"x")), 5 << 30), "truncated"),
    "negative size": (lambda: _tar(_pax("big", size="-5")), "`big` has the size -5"),
    "size in words": (lambda: _tar(_pax("big", size="many")), "`big` has a header that is no number"),
    "not UTF-8": (lambda: _renamed(_tar(_item("x")), b"caf\xe9"), r"`caf\\xe9`"),
    "NUL": (lambda: _tar(_pax("a\0b")), r"without NUL, found `a\\x00b`"),
    "long name": (lambda: _tar(_item("n" * 300)), "at most"),
    "bomb": (_bomb, "times as much comes out"),
    "truncated gzip": (lambda: gzip.compress(_honest())[:-40], "truncated"),
    "damaged gzip": (lambda: gzip.compress(_honest())[:-8] + b"\0" * 8, "damaged"),
    "truncated xz": (lambda: lzma.compress(_honest())[:-30], "truncated"),
    "truncated bzip2": (lambda: bz2.compress(_honest())[:-10], "truncated"),
    "truncated zstd": (
        lambda: zstandard.compress(os.urandom(512).join([_honest(), b""]))[:-600],
        "truncated|damaged",
    ),
    "truncated tar": (lambda: _tar((_item("f"), b"x" * 2000))[:1600], "truncated"),
    "no end": (lambda: _tar((_item("f"), b"x"))[:1024], "no end-of-archive"),
    "header damaged": (lambda: _tar(FILE)[:1024] + b"rubbish" * 200, "checksum of the header at byte 1024"),
    "huge extended header": (lambda: _lying(_tar(_pax("x")), 1 << 33), "extended header of at most"),
    "damaged pax": (lambda: _tar(_pax("name")).replace(b" path=", b" pathX", 1), "pax header is damaged"),
    "no archive": (lambda: b"<html>not found</html>" * 100, "expected a tar"),
    "empty": (lambda: b"", "expected a tar"),
    "gzip of no archive": (lambda: gzip.compress(b"text" * 500), "checksum"),
    "zip parent": (lambda: _zip(("../evil", b"x")), r"`\.\./evil`"),
    "zip absolute": (lambda: _zip(("/evil", b"x")), "`/evil`"),
    "zip link out": (lambda: _zip((_zip_item("l", stat.S_IFLNK | 0o777), b"../x")), "`l` is a symbolic link"),
    "zip device": (lambda: _zip((_zip_item("dev", stat.S_IFCHR | 0o666), b"")), "`dev` is a device"),
    "zip encrypted": (_encrypted, "`secret` is encrypted"),
    "zip overlap": (_overlapping, "`bomb` shares bytes"),
    "zip truncated": (lambda: _zip(("a", b"x" * 100))[:-30], "not a zip|zip"),
    "zip not UTF-8": (lambda: _zip(("caf_", b"")).replace(b"caf_", b"caf\x82"), r"`caf\\x82`"),
    "zip damaged": (lambda: _zip(("a", bytes(range(256)) * 9)).replace(b"\x63\x60", b"\x63\x61", 1), "`a`|CRC"),
}


def _pax(name: str, **records: str) -> tarfile.TarInfo:
    info = _item("short")
    info.pax_headers = {"path": name, **records}
    return info


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_leaves_nothing(tmp_path: Path, case: str) -> None:
    make, message = HOSTILE[case]
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "evil.archive"
    path.write_bytes(make())
    with pytest.raises(UntrustedInputError, match=message) as caught:
        unpack(path, inner / "out", strip="single")
    assert caught.value.place == "evil.archive"
    with pytest.raises(UntrustedInputError, match=message):
        read_archive(path, strip="single", scratch=inner)
    assert _names(inner) == ["evil.archive"]
    assert _names(tmp_path) == ["inner"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file"):
        unpack(tmp_path / "gone.tar", tmp_path / "out")
    assert _names(tmp_path) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 6000), value=st.integers(0, 255), compress=st.booleans())
def test_any_flipped_byte_is_read_or_refused(tmp_path: Path, position: int, value: int, compress: bool) -> None:
    data = bytearray(gzip.compress(_honest(), mtime=0) if compress else _honest())
    data[position % len(data)] = value
    path = tmp_path / "x"
    path.write_bytes(data)
    try:
        read_archive(path)
    except UntrustedInputError as error:
        assert error.place == "x"
