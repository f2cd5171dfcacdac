"""Headers that every reader of tar reads alike."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from assembler.errors import UntrustedInputError
from assembler.pack import ustar
from assembler.tree.entry import Entry, Slice

EPOCH = 1_700_000_000


def read(entry: Entry) -> tarfile.TarInfo:
    """The entry as Python's reader sees its header."""
    data = ustar.header(entry, EPOCH)
    assert len(data) % ustar.BLOCK == 0
    # Only headers: a content of 8 GiB is not made for a test.
    member = tarfile.TarFile(fileobj=io.BytesIO(data + ustar.END)).next()
    assert member is not None
    return member


def is_plain(entry: Entry) -> bool:
    return len(ustar.header(entry, EPOCH)) == ustar.BLOCK


def test_a_plain_file_is_one_block_without_names_and_clock() -> None:
    data = ustar.header(Entry(path="opt/x", kind="file", mode=0o755, size=5, content=b"12345"), EPOCH)
    assert len(data) == 512
    assert data[257:265] == b"ustar\x0000"
    assert data[265:345] == bytes(80), "owner names and device numbers"
    member = tarfile.TarInfo.frombuf(data, "utf-8", "strict")
    assert (member.name, member.mode, member.size, member.mtime) == ("opt/x", 0o755, 5, EPOCH)
    assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")


@pytest.mark.parametrize(
    ("entry", "kind", "name"),
    [
        (Entry(path="d", kind="directory"), tarfile.DIRTYPE, "d"),
        (Entry(path="l", kind="symlink", link="../x"), tarfile.SYMTYPE, "l"),
        (Entry(path="h", kind="hardlink", link="a/b"), tarfile.LNKTYPE, "h"),
        (Entry(path="d/gone", kind="whiteout"), tarfile.REGTYPE, "d/.wh.gone"),
        (Entry(path="d", kind="opaque"), tarfile.REGTYPE, "d/.wh..wh..opq"),
    ],
)
def test_kinds(entry: Entry, kind: bytes, name: str) -> None:
    member = read(entry)
    assert (member.type, member.name, member.size, member.linkname) == (kind, name, 0, entry.link)


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("n" * 100, True),
        ("n" * 101, False),
        ("p" * 155 + "/" + "n" * 100, True),
        ("p" * 156 + "/" + "n" * 100, False),
        ("p" * 155 + "/" + "n" * 101, False),
        ("a/" * 127 + "n", True),
        ("é", False),
    ],
)
def test_extended_headers_only_where_ustar_cannot_say_it(path: str, plain: bool) -> None:
    entry = Entry(path=path, kind="file", content=b"")
    assert is_plain(entry) == plain
    assert read(entry).name == path


def test_the_slash_of_a_directory_counts() -> None:
    for length in (98, 99, 100, 101):
        for path in ("d" * length, "p" * 120 + "/" + "d" * length):
            assert read(Entry(path=path, kind="directory")).name == path


@pytest.mark.parametrize(("size", "plain"), [(8**11 - 1, True), (8**11, False), (20 << 30, False)])
def test_sizes_from_8_gib_on_are_extended(tmp_path: Path, size: int, plain: bool) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(size)
    entry = Entry(path="big", kind="file", size=size, content=Slice(sparse, 0, size))
    assert is_plain(entry) == plain
    assert read(entry).size == size


def test_large_owners_are_extended() -> None:
    small = Entry(path="x", kind="file", uid=8**7 - 1, gid=8**7 - 1, content=b"")
    assert is_plain(small)
    large = Entry(path="x", kind="file", uid=8**7, gid=4_000_000_000, content=b"")
    assert not is_plain(large)
    for entry in (small, large):
        assert (read(entry).uid, read(entry).gid) == (entry.uid, entry.gid)


def test_extended_attributes_keep_every_byte_in_one_order() -> None:
    capability = bytes(range(256))
    attributes = {"user.b": b"1\n2", "security.capability": capability}
    entry = Entry(path="x", kind="file", content=b"", xattrs=attributes)
    other = Entry(path="x", kind="file", content=b"", xattrs=dict(reversed(attributes.items())))
    data = ustar.header(entry, EPOCH)
    assert data == ustar.header(other, EPOCH)
    assert b" SCHILY.xattr.security.capability=" + capability + b"\n" in data
    assert data.index(b"security") < data.index(b"user.b")


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(UntrustedInputError, match="not UTF-8"):
        ustar.header(Entry(path="\udcff", kind="file", content=b""), EPOCH)


_PATHS = (
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=120),
        min_size=1,
        max_size=6,
    )
    .map("/".join)
    .filter(lambda path: path == path.strip("/"))
)


@given(_PATHS, st.integers(0, 0o7777), st.integers(0, 2**32), st.integers(0, 2**40))
@example("x" * 65, 0, 0, 0)
def test_what_is_written_is_what_is_read(path: str, mode: int, owner: int, size: int) -> None:
    """Names, modes, owners and sizes of any value come back from `tarfile`."""
    member = read(Entry(path=path, kind="file", mode=mode, uid=owner, gid=owner, size=size, content=b""))
    assert (member.name, member.mode, member.uid, member.gid, member.size) == (path, mode, owner, owner, size)


@given(_PATHS, _PATHS)
def test_links_of_any_length_come_back(path: str, link: str) -> None:
    """A symlink's target is kept as it is stored."""
    member = read(Entry(path=path, kind="symlink", link=link))
    assert (member.name, member.linkname) == (path, link)


@given(st.integers(1, 1200))
def test_the_length_of_a_record_counts_itself(length: int) -> None:
    """Lengths where the count gains a digit are right too."""
    path = "n" * 101 + "/" + "é" * length
    assert read(Entry(path=path, kind="file", content=b"")).name == path
