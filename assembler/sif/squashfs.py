"""A squashfs out of a tar on standard input: tar2sqfs or mksquashfs, whichever is there and does it right.

tar2sqfs (squashfs-tools-ng) comes first: it needs 10 MB whatever the image is, and takes the root directory's
attributes from the tar. mksquashfs reads tars since 4.5; up to 4.7.5 it may misread a hard link that others
follow, which is why further names come last in the tar, and why the number of inodes is checked in any case. In
4.5 it makes the root directory the caller's, whatever it is told. Left alone it takes a quarter of the host's
memory.

Equal tars give equal bytes, whatever the number of processors: both programs promise that, and tests hold it.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from assembler.errors import NodeError, StepError
from assembler.process import feed, run, which
from assembler.sif.archive import Expected
from assembler.sif.settings import SifSettings
from assembler.tree.merge import Directory

_LEVELS: Final = {"gzip": 4, "zstd": 6}
"""gzip 4 is a twentieth larger than mksquashfs's own 9, and takes a fifth of the time."""
_READS_TARS: Final = (4, 5)
_HEEDS_ROOT: Final = (4, 6)
_MEMORY: Final = "256M"
_FULL: Final = 1 << 20
_MAGIC: Final = b"hsqs"
_HINT: Final = "install the package `squashfs-tools-ng`, or `squashfs-tools` of version 4.6 or later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program that makes a squashfs of a tar.

    With `places` it writes behind bytes that it leaves alone; `heeds_root` says that the root directory becomes
    what it should.
    """

    name: Literal["tar2sqfs", "mksquashfs"]
    places: bool
    heeds_root: bool

    def argv(self, target: Path, offset: int, settings: SifSettings, root: Directory) -> list[str]:
        """The command that writes `target`."""
        level = _LEVELS.get(settings.compressor)
        if self.name == "tar2sqfs":
            extra = ["-X", f"level={level}"] if level else []
            return ["tar2sqfs", "--quiet", "--force", "--no-skip", "-c", settings.compressor, *extra, str(target)]
        owners = ["-root-uid", str(root.uid), "-root-gid", str(root.gid), "-root-mode", f"{root.mode & 0o7777:o}"]
        return [
            *("mksquashfs", "-", str(target), "-tar", "-noappend", "-quiet", "-no-progress", "-exit-on-error"),
            *("-offset", str(offset), "-mem", _MEMORY, "-comp", settings.compressor),
            *(["-Xcompression-level", str(level)] if level else []),
            *owners,
        ]

    def environment(self, expected: Expected, settings: SifSettings) -> dict[str, str]:
        """Variables that fix the time of the file system, and for mksquashfs that of its root directory.

        mksquashfs puts no time after it, so for that program it is the newest there is.
        """
        epoch = settings.epoch if self.name == "tar2sqfs" else max(expected.newest, settings.epoch)
        return {"SOURCE_DATE_EPOCH": str(epoch)}


def find_tool() -> Tool:
    """The program of this host; NodeError names the package to install when there is none."""
    if which("tar2sqfs"):
        return Tool(name="tar2sqfs", places=False, heeds_root=True)
    if which("mksquashfs"):
        said = run(["mksquashfs", "-version"], check=False).stdout
        match = re.search(r"version (\d+)\.(\d+)", said)
        version = (int(match[1]), int(match[2])) if match else (0, 0)
        if version >= _READS_TARS:
            return Tool(name="mksquashfs", places=True, heeds_root=version >= _HEEDS_ROOT or os.geteuid() == 0)
        found = f"`mksquashfs` is of version {version[0]}.{version[1]}, which reads no tar"
        raise NodeError(f"nothing here makes a squashfs of a tar; {found}", hint=_HINT)
    raise NodeError("nothing here makes a squashfs: neither `tar2sqfs` nor `mksquashfs` is on PATH", hint=_HINT)


def write(
    tool: Tool,
    archive: Iterator[bytes],
    target: Path,
    *,
    offset: int,
    expected: Expected,
    root: Directory,
    settings: SifSettings,
) -> int:
    """Write the squashfs of this tar to `offset` of the file `target`; its size in bytes.

    StepError when the program fails, or what it wrote has not as many inodes as expected. No other space is taken.
    """
    argv = tool.argv(target, offset if tool.places else 0, settings, root)
    try:
        feed(argv, archive, env=tool.environment(expected, settings))
    except StepError as error:
        # The programs call a full disk an input or output error.
        if shutil.disk_usage(target.parent).free < _FULL:
            fact, hint = "no space is left where the file is written", "write it to another file system"
            raise NodeError(fact, place=str(target.parent), hint=hint, detail=error.detail) from error
        raise
    start = offset if tool.places else 0
    size = target.stat().st_size - start
    _check(tool, target, start, expected)
    if not tool.places:
        _shift(target, size, offset)
    return size


def _check(tool: Tool, target: Path, start: int, expected: Expected) -> None:
    with target.open("rb") as file:
        file.seek(start)
        magic, inodes = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
    if magic != _MAGIC or inodes != expected.inodes:
        fact = f"expected a squashfs with {expected.inodes} inodes, `{tool.name}` wrote {inodes}"
        raise StepError(fact, place=str(target), hint=_HINT)


def _shift(target: Path, size: int, offset: int) -> None:
    """Move the first `size` bytes of a file `offset` bytes up, in place, from the end."""
    chunk = 4 << 20
    with target.open("r+b") as file:
        descriptor = file.fileno()
        end = size
        while end and offset:
            begin = max(0, end - chunk)
            data = os.pread(descriptor, end - begin, begin)
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], begin + offset + written)
            end = begin
