"""Layers: the entries that each kind of layer entry stands for, and the blobs that they become."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from assembler.errors import ManifestError, UntrustedInputError, refused
from assembler.manifest.loaded import LoadedManifest
from assembler.manifest.models import Copy, FileEntry
from assembler.oci.digest import Digest
from assembler.tree.builder import TreeBuilder
from assembler.tree.entry import Entry
from assembler.tree.selection import chosen_names


def file_entries(items: Sequence[FileEntry], directory: Path, name: str) -> tuple[Entry, ...]:
    """The tree of a `files` layer; `directory` is where the files that it takes in are looked for."""
    tree = TreeBuilder(name)
    try:
        for item in items:
            tree.add(_file_entry(item, directory), f"files {item.path}")
        return tree.entries()
    except UntrustedInputError as error:  # nobody is hostile here: it is the manifest that contradicts itself
        raise ManifestError(error.fact, place=name) from error


def taken_files(loaded: LoadedManifest) -> dict[tuple[str, str], str]:
    """(scope name, path as written) → digest of the host files that `files` layers take in."""
    found = {}
    for layer in loaded.layers:
        for item in layer.entry.files:
            if item.from_file:
                path = layer.scope.directory / item.from_file
                try:
                    found[layer.scope.name, item.from_file] = str(Digest.of(path.read_bytes()))
                except OSError as error:
                    fact = f"`{item.from_file}` cannot be read: {refused(error)}"
                    raise ManifestError(fact, place=layer.place) from error
    return found


def _file_entry(item: FileEntry, directory: Path) -> Entry:
    path, uid, gid = item.path.strip("/"), item.user, item.group
    if item.link is not None:
        return Entry(path=path, kind="symlink", mode=0o777, uid=uid, gid=gid, link=item.link)
    if item.directory:
        return Entry(path=path, kind="directory", mode=_or(item.mode, 0o755), uid=uid, gid=gid)
    data = (directory / item.from_file).read_bytes() if item.from_file else (item.content or "").encode()
    return Entry(
        path=path,
        kind="file",
        mode=_or(item.mode, 0o644),
        uid=uid,
        gid=gid,
        size=len(data),
        content=data,
    )


def _or(mode: int | None, default: int) -> int:
    return default if mode is None else mode


def copied(entries: Sequence[Entry], copy: Copy, place: str) -> tuple[Entry, ...]:
    """Put what a `copy` chooses of a tree (an artifact, a source) where it wants it; see `placed`."""
    wanted = (copy.path or "").strip("/")
    is_directory = any(
        entry.path.startswith(f"{wanted}/") or (entry.path == wanted and entry.kind == "directory")
        for entry in entries
    )
    return placed(select(entries, copy.path, place), copy, place, is_directory=is_directory)


def placed(chosen: Sequence[Entry], copy: Copy, place: str, *, is_directory: bool) -> tuple[Entry, ...]:
    """Put these entries where a `copy` wants them. `is_directory` says that they are the content of a directory.

    `to` with a trailing slash, a directory, or more than one file, means "into this directory"; otherwise a single
    file gets this very name. A directory's content is copied, not the directory, as in a Dockerfile.
    """
    target = copy.to.strip("/")
    is_file = len(chosen) == 1 and chosen[0].kind in ("file", "symlink") and not is_directory
    single = is_file and not copy.to.endswith("/")
    prefix = f"{target}/" if target else ""
    tree = TreeBuilder(place)
    for entry in chosen:
        # There may be very many: `replace` would take as long as all the rest.
        moved = Entry(
            path=target if single else prefix + entry.path,
            kind=entry.kind,
            mode=entry.mode if copy.mode is None or entry.kind != "file" else copy.mode,
            uid=copy.user,
            gid=copy.group,
            size=entry.size,
            link=prefix + entry.link if entry.kind == "hardlink" else entry.link,
            content=entry.content,
            xattrs=entry.xattrs,
        )
        tree.add(moved, place)
    return tree.entries()


def select(entries: Sequence[Entry], path: str | None, place: str) -> tuple[Entry, ...]:
    """The part of a tree that `path` names: all of it, one file, a directory's content, or what a glob matches.

    Paths come out relative to what was named. Raises ManifestError when nothing matches.
    """
    by_path = {entry.path: entry for entry in entries}
    names = chosen_names(by_path, path)
    exact = by_path.get((path or "").strip("/"))
    if not names and path and (exact is None or exact.kind != "directory"):
        raise ManifestError(f"`{path}` matches nothing in the source", place=place)
    if exact is not None and exact.kind == "directory" and names == {exact.path: posixpath.basename(exact.path)}:
        return ()  # an empty directory has no content to copy
    return _moved(by_path, names)


def _moved(by_path: Mapping[str, Entry], names: Mapping[str, str]) -> tuple[Entry, ...]:
    """The entries under new names. A hard link whose first name stays behind becomes the file itself."""
    result: dict[str, Entry] = {}
    instead: dict[str, str] = {}
    for old, new in names.items():
        entry = by_path[old]
        if entry.kind == "hardlink":
            first = names.get(entry.link) or instead.get(entry.link)
            if first is None:
                instead[entry.link] = new
                entry = by_path[entry.link]
            else:
                entry = replace(entry, link=first)
        result.setdefault(new, entry if entry.path == new else replace(entry, path=new))
    return tuple(result.values())
