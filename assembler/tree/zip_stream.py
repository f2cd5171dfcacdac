"""Members of a zip archive (PKWARE APPNOTE 6.3.x), in the same terms as those of a tar.

Names are UTF-8 by their flag, or by what they are (macOS writes UTF-8 without the flag). Members that share bytes
with others, are encrypted, or grow beyond the limits are refused.
"""

from __future__ import annotations

import contextlib
import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

from assembler.tree.decompress import StreamError, check_growth
from assembler.tree.tar_stream import CHUNK, Member, TarError, shown

_LOCAL_HEADER: Final = 30
_LINK_LIMIT: Final = 4096
_UTF8_FLAG: Final = 0x800
_ENCRYPTED_FLAG: Final = 0x1
_UNIX: Final = (3, 19)


@contextlib.contextmanager
def zip_members(path: Path) -> Iterator[Iterator[tuple[Member, Callable[[], Iterator[bytes]]]]]:
    """The members of a zip file, each with a way to its content.

    Raises TarError, StreamError or `zipfile.BadZipFile` when the archive is damaged or refused.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (ValueError, OverflowError, NotImplementedError) as error:
        raise StreamError(f"the zip archive is damaged: {error}") from error
    with archive:
        _check_layout(archive, path.stat().st_size)
        yield _members(archive)


def _check_layout(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse members that overlap (a bomb made of one stream under many names), and a lying total."""
    end = 0
    total = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise StreamError(f"`{shown(_name(info))}` shares bytes with another entry")
        end = info.header_offset + _LOCAL_HEADER + len(_name(info)) + info.compress_size
        total += info.file_size
    check_growth(total, size)


def _name(info: zipfile.ZipInfo) -> bytes:
    """The stored bytes of a name. `zipfile` decodes by flag as UTF-8 or code page 437, and cuts at a NUL."""
    encoding = "utf-8" if info.flag_bits & _UTF8_FLAG else "cp437"
    return info.orig_filename.encode(encoding)


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[Member, Callable[[], Iterator[bytes]]]]:
    for info in archive.infolist():
        name = _name(info)
        if info.flag_bits & _ENCRYPTED_FLAG:
            raise TarError(f"`{shown(name)}` is encrypted")
        mode = info.external_attr >> 16 if info.create_system in _UNIX else 0
        content = partial(_content, archive, info)
        kind: Literal["file", "directory", "symlink"] = "file"
        link = b""
        if name.endswith(b"/") or stat.S_ISDIR(mode):
            kind = "directory"
        elif stat.S_ISLNK(mode):
            if info.file_size > _LINK_LIMIT:
                raise TarError(f"`{shown(name)}` is a symbolic link with a target of {info.file_size} bytes")
            kind, link = "symlink", b"".join(content())
        elif stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
            raise TarError(f"`{shown(name)}` is a device, a pipe or a socket")
        member = Member(
            name=name,
            kind=kind,
            executable=bool(mode & 0o100),
            size=info.file_size if kind == "file" else 0,
            link=link,
            offset=0,
        )
        yield member, content


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of a member, never more than its stated size; its checksum is verified at the end."""
    name = shown(_name(info))
    count = 0
    try:
        with archive.open(info) as file:
            while data := file.read(CHUNK):
                count += len(data)
                yield data
    except (zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError) as error:
        raise StreamError(f"`{name}` cannot be decompressed: {error}") from error
    if count != info.file_size:
        raise StreamError(f"`{name}` has {count} bytes; {info.file_size} were stated")
