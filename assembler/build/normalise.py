"""What a root holds besides what was asked for: traces of the clock, the host and the container engine.

`normalise` takes them out of the entries of a whole root or of a difference, so that the same packages give the
same layer in every container. The table says what goes and why; nothing else is touched, except the headers of
Python's compiled files, which name a time that the packer does not keep.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from assembler.tree.entry import Content, Entry, Slice, ZipMember

Action = Literal["below", "files", "drop", "empty"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to paths that match `pattern` (`*` is any part of a name), and why.

    below  everything below the directory goes, the directory stays as it is
    files  everything below it goes but directories, which packages own
    drop   the path goes
    empty  a file there becomes an empty one
    """

    action: Action
    pattern: str
    why: str


RULES: Final = (
    Rule("below", "dev", "made by the container engine"),
    Rule("below", "proc", "the kernel's"),
    Rule("below", "sys", "the kernel's"),
    Rule("below", "run", "state of running programs; a new container begins with none"),
    Rule("below", "tmp", "nobody's for longer than a run"),
    Rule("below", "var/tmp", "nobody's for longer than a run"),
    Rule("files", "var/log", "says when and how, never what"),
    Rule("files", "var/lib/apt/lists", "what archives offered at one moment"),
    Rule("drop", "var/lib/apt/lists/auxfiles", "made by apt when it looks there"),
    Rule("files", "var/cache/apt", "downloads, and indexes of the lists"),
    Rule("files", "var/cache/man", "made anew by man-db; holds times"),
    Rule("files", "var/cache/fontconfig", "made anew by fontconfig; holds times of directories"),
    Rule("drop", "var/cache/ldconfig/aux-cache", "holds inode numbers and times"),
    Rule("drop", "var/cache/debconf/*-old", "backup of the state before"),
    Rule("drop", "var/lib/dpkg/*-old", "backup of the state before"),
    Rule("drop", "etc/passwd-", "backup of the state before"),
    Rule("drop", "etc/group-", "backup of the state before"),
    Rule("drop", "etc/shadow-", "backup of the state before"),
    Rule("drop", "etc/gshadow-", "backup of the state before"),
    Rule("drop", "etc/subuid-", "backup of the state before"),
    Rule("drop", "etc/subgid-", "backup of the state before"),
    Rule("drop", "usr/share/info/dir.old", "backup of the state before"),
    Rule("drop", "var/lib/dpkg/lock*", "an empty lock file"),
    Rule("drop", "var/lib/dpkg/triggers/Lock", "an empty lock file"),
    Rule("drop", "etc/resolv.conf", "the host's, or a place for it made by the container engine"),
    Rule("drop", "etc/hosts", "the host's, or a place for it made by the container engine"),
    Rule("drop", "etc/hostname", "the host's, or a place for it made by the container engine"),
    Rule("drop", ".dockerenv", "made by the container engine"),
    Rule("drop", "var/lib/dbus/machine-id", "random; D-Bus reads /etc/machine-id"),
    Rule("drop", "var/lib/systemd/random-seed", "random, and secret"),
    Rule("empty", "etc/machine-id", "random; empty asks for a new one (machine-id(5), systemd)"),
)
KEPT: Final = frozenset({"run/lock"})
"""Exceptions: directories that a link of every Debian root (/var/lock) leads to."""


def _expression(action: Action) -> re.Pattern[str]:
    patterns = [re.escape(rule.pattern).replace(r"\*", "[^/]*") for rule in RULES if rule.action == action]
    tail = "/.+" if action in {"below", "files"} else ""
    return re.compile(f"(?:{'|'.join(patterns)}){tail}", re.DOTALL)


_BELOW: Final = _expression("below")
_FILES: Final = _expression("files")
_DROP: Final = _expression("drop")
_EMPTY: Final = _expression("empty")

_PYC: Final = re.compile(r"(?P<directory>.*/)?(?:__pycache__/(?P<module>[^/.]+)\.[^/]+|(?P<legacy>[^/.]+))\.pyc")
_PYC_HEADER: Final = struct.Struct("<4sII")  # magic number, flags, time of the source (PEP 552)


def is_dropped(path: str, *, directory: bool) -> bool:
    """Does no layer of ours hold this path? Whatever lies below a dropped directory is dropped too."""
    if directory and path in KEPT:
        return False
    if _BELOW.fullmatch(path) or _DROP.fullmatch(path):
        return True
    return not directory and _FILES.fullmatch(path) is not None


def normalise(entries: Iterable[Entry], *, epoch: int = 0) -> tuple[Entry, ...]:
    """The entries without what the table takes out.

    A hard link whose target goes becomes a file itself. Compiled Python files whose sources are in `entries` are
    made to name `epoch`, the time that the packer will give those sources (a layer over other sources leaves the
    time as it is: the base keeps theirs). Hash-based ones need nothing. Reads the heads of such files, so their
    contents must be there.
    """
    before = tuple(entries)
    kept = [e for e in before if not is_dropped(e.path, directory=e.kind == "directory")]
    files = {entry.path for entry in kept if entry.kind in {"file", "hardlink"}}
    kept = _relinked(before, kept, files)
    result = []
    for entry in kept:
        if entry.kind == "file" and _EMPTY.fullmatch(entry.path):
            result.append(replace(entry, mode=0o444, size=0, content=b""))
        elif entry.kind == "file" and entry.path.endswith(".pyc"):
            result.append(_stamped(entry, files, epoch))
        else:
            result.append(entry)
    return tuple(result)


def _relinked(before: Sequence[Entry], kept: Sequence[Entry], files: set[str]) -> list[Entry]:
    """The kept entries, where the first remaining name of a file carries the content that a dropped one had."""
    lost = {entry.link for entry in kept if entry.kind == "hardlink" and entry.link not in files}
    if not lost:
        return list(kept)
    targets = {entry.path: entry for entry in before if entry.path in lost}
    leaders: dict[str, str] = {}
    result = []
    for entry in kept:
        if entry.kind != "hardlink" or entry.link not in targets:
            result.append(entry)
        elif entry.link in leaders:
            result.append(replace(entry, link=leaders[entry.link]))
        else:
            leaders[entry.link] = entry.path
            result.append(replace(targets[entry.link], path=entry.path))
    return result


def _stamped(entry: Entry, files: set[str], epoch: int) -> Entry:
    """A compiled file whose header names the epoch as the time of its source."""
    match = _PYC.fullmatch(entry.path)
    source = f"{match['directory'] or ''}{match['module'] or match['legacy']}.py" if match else ""
    if source not in files or entry.content is None or entry.size < _PYC_HEADER.size:
        return entry
    magic, flags, time = _PYC_HEADER.unpack(_read(entry.content, _PYC_HEADER.size))
    wanted = epoch & 0xFFFFFFFF
    if magic[2:] != b"\r\n" or flags or time == wanted:
        return entry
    data = _PYC_HEADER.pack(magic, flags, wanted) + _read(entry.content, entry.size)[_PYC_HEADER.size :]
    return replace(entry, content=data, size=len(data))


def _read(content: Content, amount: int) -> bytes:
    """The first bytes of a content."""
    if isinstance(content, bytes):
        return content[:amount]
    if isinstance(content, ZipMember):
        raise TypeError("a difference has no zip members")
    path, offset = (content.path, content.offset) if isinstance(content, Slice) else (content, 0)
    with Path(path).open("rb") as file:
        file.seek(offset)
        return file.read(amount)
