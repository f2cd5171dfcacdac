"""What is in a SIF or a squashfs, read by programs that are not ours, and images to make them of."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.layers import Put, layer_tar
from support.needs import need

from assembler.oci.digest import Digest
from assembler.oci.image import ImageConfig
from assembler.oci.platform import Platform
from assembler.process import run, spawned
from assembler.sif.rootfs import ImageInput
from assembler.tree.decompress import Stream


@dataclass(frozen=True)
class Entry:
    """One path: everything that a file system says about it. `content` is a link's target for links."""

    kind: str
    mode: int
    owner: tuple[int, int]
    content: bytes | str = b""
    mtime: int = 0
    xattrs: tuple[tuple[str, str], ...] = ()


def squashfs_of(sif: Path, target: Path) -> Path:
    """The file system of a SIF, taken out by Sylabs' own `siftool`."""
    listed = run([need("siftool"), "list", str(sif)]).stdout
    numbers = re.findall(r"^(\d+) .*\(Squashfs/\*System/", listed, re.MULTILINE)
    assert len(numbers) == 1, listed
    with target.open("wb") as file, spawned(["siftool", "dump", numbers[0], str(sif)], stdout=file) as child:
        assert child.wait() == 0
    return target


def entries(squashfs: Path) -> dict[str, Entry]:
    """Every path of a squashfs, as squashfs-tools-ng reads it; `.` is the root."""
    need("sqfs2tar")
    with spawned(["sqfs2tar", "--root-becomes", ".", str(squashfs)]) as child:
        assert child.stdout is not None
        data = child.stdout.read()
        assert child.wait() == 0
    return tar_entries(data)


def tar_entries(data: bytes) -> dict[str, Entry]:
    """Every path of a tar, hard links resolved."""
    found: dict[str, Entry] = {}
    kinds = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink"}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            name = member.name.rstrip("/") or "."
            name = name.removeprefix("./")
            if member.islnk():
                found[name] = found[member.linkname.removeprefix("./")]
                continue
            file = tar.extractfile(member) if member.isreg() else None
            prefix = "SCHILY.xattr."
            xattrs = {
                key.removeprefix(prefix): v for key, v in member.pax_headers.items() if key.startswith(prefix)
            }
            found[name] = Entry(
                kind=kinds.get(member.type, "special"),
                mode=0o777 if member.issym() else member.mode & 0o7777,
                owner=(member.uid, member.gid),
                content=member.linkname if member.issym() else file.read() if file else b"",
                mtime=int(member.mtime),
                xattrs=tuple(sorted(xattrs.items())),
            )
    return found


def inode_numbers(squashfs: Path, *paths: str) -> list[int]:
    """How many names lead to each of these files: equal numbers are what a tar lists as links."""
    with spawned(["sqfs2tar", str(squashfs)]) as child:
        assert child.stdout is not None
        data = child.stdout.read()
        assert child.wait() == 0
    first: dict[str, int] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for number, member in enumerate(tar):
            first[member.name] = first[member.linkname] if member.islnk() else number
    return [first[path] for path in paths]


@dataclass(frozen=True)
class FileLayer:
    """A layer of a file on disk."""

    path: Path

    @property
    def name(self) -> str:
        """The file's."""
        return self.path.name

    @property
    def size(self) -> int:
        """Of the blob."""
        return self.path.stat().st_size

    @contextlib.contextmanager
    def open(self) -> Iterator[Stream]:
        """From the beginning."""
        with Stream(self.path) as stream:
            yield stream


def image_input(
    directory: Path,
    *layers: Sequence[Put],
    config: Mapping[str, Any] | None = None,
    platform: Platform | None = None,
) -> ImageInput:
    """An image of these layers, lowest first, whose blobs lie in `directory`."""
    directory.mkdir(exist_ok=True)
    files = []
    for number, members in enumerate(layers):
        path = directory / f"layer-{number}"
        path.write_bytes(layer_tar(*members))
        files.append(FileLayer(path))
    known = ImageConfig(platform=platform or Platform("linux", "amd64"), config=config or {})
    return ImageInput(config=known, identity=Digest.of(known.to_bytes()), layers=files)


@dataclass(frozen=True)
class SifObject:
    """A descriptor of a SIF, read with nothing but the specification's offsets."""

    kind: int
    offset: int
    size: int
    name: str
    data: bytes


def objects(sif: Path) -> list[SifObject]:
    """All used descriptors, in order."""
    data = sif.read_bytes()
    assert data[32:42] == b"SIF_MAGIC\0"
    total, start = struct.unpack_from("<qq", data, 88)
    found = []
    for number in range(total):
        at = start + number * 585
        if data[at + 4]:
            kind = struct.unpack_from("<i", data, at)[0]
            offset, size = struct.unpack_from("<qq", data, at + 17)
            name = data[at + 73 : at + 201].rstrip(b"\0").decode()
            found.append(SifObject(kind, offset, size, name, data[offset : offset + size]))
    return found
