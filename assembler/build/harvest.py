"""Harvest: what a compile step made, out of its build directory, into one tar in the store.

The tar is uncompressed and deterministic; the first component of its paths is the artifact. Layers take slices of
it as it lies there, so nothing is ever unpacked. A build directory is as hostile as the source that was compiled
in it: no link is followed, nothing outside is read.
"""

from __future__ import annotations

import difflib
import fnmatch
import io
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.errors import StepError, UntrustedInputError
from assembler.oci.digest import Digest, DigestingWriter
from assembler.oci.layout import Store
from assembler.tree.builder import fault_of
from assembler.tree.entry import Entry, Slice
from assembler.tree.links import follow, follow_parent

_GLOB: Final = frozenset("*?[")
_MOST_FILES: Final = 500_000
_SHOWN: Final = 5
_TYPES: Final[Mapping[bytes, str]] = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "directory"}


@dataclass(frozen=True, slots=True)
class ArtifactBundle:
    """The artifacts of one compile step: a plain tar in the store, its size in bytes, its number of files."""

    digest: Digest
    size: int
    files: int


@dataclass(frozen=True, slots=True)
class Found:
    """A file, link or directory that belongs to an artifact: its path there, and where it is on the host."""

    path: str
    source: Path
    status: os.stat_result

    @property
    def is_file(self) -> bool:
        """Is it a regular file?"""
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        """Is it a symbolic link?"""
        return stat.S_ISLNK(self.status.st_mode)


Harvest = Mapping[str, tuple[Found, ...]]
"""Artifact → what it consists of, sorted by path."""


def find(
    root: Path, artifacts: Mapping[str, Sequence[str]], step: str, *, called: str = "the build directory"
) -> Harvest:
    """What the patterns of each artifact match below `root`, which errors call `called`.

    A pattern is a path (a directory stands for what is in it) or has `*`, `?`, `[…]` and `**` as parts. What it
    matches is in the artifact under its own name, without the directories it was in; what `**` stands for stays.
    Links on the way to it are followed; those among what it matches stay links. StepError names a pattern that
    matches nothing, or a link that leads out of its artifact.
    """
    listing = _Listing(root, called)
    found = {name: _artifact(listing, name, patterns, step) for name, patterns in sorted(artifacts.items())}
    for name, items in found.items():
        _check_links(items, root, f"{step}: artifact {name}")
    return found


class _Listing:
    """Everything below a directory, by path. Links are listed, not followed."""

    def __init__(self, root: Path, called: str) -> None:
        self.root = root
        self.called = called
        self.items: dict[str, os.stat_result] = {}
        self.links: dict[str, str] = {}
        waiting = [""]
        while waiting:
            directory = waiting.pop()
            try:
                entries = list(os.scandir(root / directory))
            except OSError:
                continue
            for entry in entries:
                path = f"{directory}/{entry.name}" if directory else entry.name
                status = entry.stat(follow_symlinks=False)
                self.items[path] = status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)
                elif stat.S_ISLNK(status.st_mode):
                    self.links[path] = os.readlink(entry.path)  # noqa: PTH115  (the text, as it is)
            if len(self.items) > _MOST_FILES:
                raise UntrustedInputError(f"more than {_MOST_FILES} files", place=str(root))

    def below(self, directory: str) -> Iterator[str]:
        """The paths below a directory."""
        prefix = f"{directory}/"
        return (path for path in self.items if path.startswith(prefix))

    def is_directory(self, path: str) -> bool:
        """Is there a directory of this path?"""
        return path in self.items and stat.S_ISDIR(self.items[path].st_mode)


def _artifact(listing: _Listing, name: str, patterns: Sequence[str], step: str) -> tuple[Found, ...]:
    place = f"{step}: artifact {name}"
    names: dict[str, str] = {}
    for pattern in patterns:
        matched = _matched(listing, pattern)
        if not matched:
            raise _nothing(listing, pattern, place)
        for path, own in matched.items():
            if names.setdefault(own, path) != path:
                raise StepError(
                    f"both `{names[own]}` and `{path}` would be `{own}`",
                    place=place,
                    hint="make two artifacts of them",
                )
    items = []
    for own, path in sorted(names.items()):
        status = listing.items[path]
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise StepError(f"`{path}` is neither a file nor a directory nor a link", place=place)
        if fault := fault_of(Entry(path=own, kind="file", content=b"")):
            raise UntrustedInputError(fault, place=place)
        items.append(Found(own, listing.root / path, status))
    return tuple(items)


def _matched(listing: _Listing, pattern: str) -> dict[str, str]:
    """Path → name in the artifact, for everything that a pattern stands for."""
    wanted = posixpath.normpath(pattern.strip("/"))
    if wanted == ".":
        return {path: path for path in listing.items}
    if not _GLOB & set(wanted):
        path = follow_parent(listing.links, wanted, rooted=False) or wanted
        place = follow(listing.links, path, rooted=False)
        if place is not None and listing.is_directory(place):
            return {inner: inner[len(place) + 1 :] for inner in listing.below(place)}
        return {path: posixpath.basename(path)} if path in listing.items else {}
    parts = wanted.split("/")
    plain = next(number for number, part in enumerate(parts) if _GLOB & set(part))
    if plain:
        directory = "/".join(parts[:plain])
        parts[:plain] = (follow(listing.links, directory, rooted=False) or directory).split("/")
    depth = parts.index("**") if "**" in parts else len(parts) - 1
    names = {}
    for path in listing.items:
        # `a/**` matches `a` too, which has no name of its own in the artifact.
        if path.count("/") >= depth and _matches(path.split("/"), parts):
            names[path] = "/".join(path.split("/")[depth:])
            if parts[-1] != "**" and listing.is_directory(path):
                names.update({inner: "/".join(inner.split("/")[depth:]) for inner in listing.below(path)})
    return names


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Component by component; `**` stands for any number of them."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[count:], pattern[1:]) for count in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _nothing(listing: _Listing, pattern: str, place: str) -> StepError:
    """The error for a pattern without a match, with what looks like it."""
    last = posixpath.basename(pattern.rstrip("/"))
    files = [path for path, status in listing.items.items() if not stat.S_ISDIR(status.st_mode)]
    near = [path for path in files if fnmatch.fnmatchcase(posixpath.basename(path), last)]
    if not near:
        by_name = {posixpath.basename(path): path for path in files}
        near = [by_name[name] for name in difflib.get_close_matches(last, by_name, n=_SHOWN, cutoff=0.6)]
    shown = sorted(near, key=lambda path: (path.count("/"), path))[:_SHOWN]
    hint = f"did you mean {', '.join(f'`{path}`' for path in shown)}?" if shown else None
    return StepError(f"`{pattern}` matches nothing in {listing.called}", place=place, hint=hint)


def _check_links(items: Sequence[Found], root: Path, place: str) -> None:
    """Every link has to lead to something in its own artifact."""
    paths = {item.path for item in items}
    paths |= {parent for path in paths for parent in _parents(path)} | {""}
    links = {item.path: os.readlink(item.source) for item in items if item.is_link}  # noqa: PTH115
    for item in items:
        target = links.get(item.path)
        if target is None or follow(links, item.path, rooted=False) in paths:
            continue
        if target.startswith("/"):
            raise StepError(
                f"the link `{item.path}` is absolute: `{target}`",
                place=place,
                hint="an artifact is moved to where a layer wants it; make the link relative",
            )
        beside = posixpath.dirname(item.source.relative_to(root).as_posix())
        wanted = posixpath.normpath(posixpath.join(beside, target))
        raise StepError(
            f"the link `{item.path}` leads out of the artifact, to `{target}`",
            place=place,
            hint=None if wanted.startswith("..") else f"harvest its target too: add `{wanted}` to the artifact",
        )


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


# the tar


def write_bundle(harvest: Harvest, store: Store) -> ArtifactBundle:
    """Write a harvest into the store. Equal files under equal names give equal bytes."""
    files = 0
    with store.writer() as blob:
        sink = DigestingWriter(blob)
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
            for name, items in sorted(harvest.items()):
                first: dict[tuple[int, int], str] = {}
                for item in items:
                    _write(tar, name, item, first)
                    files += not stat.S_ISDIR(item.status.st_mode)
        blob.commit(sink.digest)
    return ArtifactBundle(sink.digest, sink.size, files)


def _write(tar: tarfile.TarFile, name: str, item: Found, first: dict[tuple[int, int], str]) -> None:
    member = tarfile.TarInfo(f"{name}/{item.path}")
    status = item.status
    if stat.S_ISDIR(status.st_mode):
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(member)
    elif item.is_link:
        member.type, member.mode = tarfile.SYMTYPE, 0o777
        member.linkname = os.readlink(item.source)  # noqa: PTH115
        tar.addfile(member)
    elif (status.st_dev, status.st_ino) in first:
        member.type, member.mode = tarfile.LNKTYPE, 0o644
        member.linkname = first[status.st_dev, status.st_ino]
        tar.addfile(member)
    else:
        first[status.st_dev, status.st_ino] = member.name
        member.mode = 0o755 if status.st_mode & 0o111 else 0o644
        descriptor = os.open(item.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with io.FileIO(descriptor, "r") as file:
            member.size = os.fstat(descriptor).st_size
            tar.addfile(member, file)


def bundle_entries(store: Store, digest: Digest, artifact: str) -> tuple[Entry, ...]:
    """The entries of an artifact, with contents that are slices of the bundle; StepError when it has none such."""
    path = store.blob_path(digest)
    prefix = f"{artifact}/"
    entries = []
    with tarfile.open(path, mode="r:") as tar:
        for member in tar:
            if not member.name.startswith(prefix):
                continue
            own = member.name[len(prefix) :]
            if member.issym():
                entries.append(Entry(path=own, kind="symlink", mode=0o777, link=member.linkname))
            elif member.islnk():
                entries.append(Entry(path=own, kind="hardlink", link=member.linkname[len(prefix) :]))
            elif member.isdir():
                entries.append(Entry(path=own, kind="directory", mode=member.mode))
            else:
                content = Slice(path, member.offset_data, member.size)
                entries.append(Entry(path=own, kind="file", mode=member.mode, size=member.size, content=content))
    if not entries:
        raise StepError(f"the compile step left no artifact `{artifact}`")
    return tuple(entries)
