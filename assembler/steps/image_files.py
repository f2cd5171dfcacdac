"""Files out of another image: its layers are merged as streams, and only what a `copy` names is kept.

No container runs, nothing is unpacked, and no right is needed. The image is pinned by the lock as a base is; its
layers come through the store.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from assembler.errors import ManifestError
from assembler.errors import placed as placed_errors
from assembler.manifest.models import Copy
from assembler.oci.bases import LYING_HINT, LyingConfigError
from assembler.oci.digest import Digest
from assembler.oci.image import Image
from assembler.steps.bases import BaseHandle, base_handle
from assembler.steps.layers import placed
from assembler.steps.materialise import fetch_layers
from assembler.tree.decompress import Stream
from assembler.tree.entry import Entry, Slice
from assembler.tree.merge import Directory, MergedTree, Node, contents
from assembler.tree.selection import chosen_names

if TYPE_CHECKING:
    from assembler.manifest.loaded import BoundLayer
    from assembler.steps.assembly import Assembly
    from assembler.steps.session import Session

_KEPT_XATTRS = ("security.capability", "user.")
_PATTERN = frozenset("*?[")


def image_handles(assembly: Assembly) -> Mapping[int, BaseHandle]:
    """The images that layers copy out of, by the number of the layer; equal ones are looked up once."""
    found: dict[int, BaseHandle] = {}
    same: dict[tuple[Path, str], BaseHandle] = {}
    for index, layer in enumerate(assembly.loaded.layers):
        image = layer.entry.copy_.image if layer.entry.copy_ else None
        if image is not None:
            key = (layer.scope.directory, image.model_dump_json())
            if key not in same:
                with placed_errors(layer.place):
                    same[key] = base_handle(assembly, f"copy {image.label}", image, layer.scope.directory)
            found[index] = same[key]
    return found


def copied_out(session: Session, handle: BaseHandle, layer: BoundLayer, copy: Copy) -> tuple[Entry, ...]:
    """The entries of a layer that copies out of an image; contents are in this run's scratch space.

    A path that is a link is followed, inside the image, to what is copied; links below it stay links, as they do
    where a pattern names them. ManifestError when nothing is there, UntrustedInputError for layers that lie,
    LyingConfigError for those that are not what the image's config promises.
    """
    image = handle.image()
    fetch_layers(session, image)
    tree = MergedTree()
    for item in image.layers:
        place, plain = f"{handle.fact.name}: layer {item.descriptor.digest}", hashlib.sha256()
        with Stream(session.store.blob_path(item.descriptor.digest), plain) as stream:
            tree.add_layer(stream, place)
            stream.drain()
            found = item.descriptor.digest if stream.format == "plain" else Digest.from_hex(plain.hexdigest())
        if found != item.diff_id:
            fact = f"the config promises a tar with the diff ID {item.diff_id}, the layer has {found}"
            raise LyingConfigError(fact, place=place, hint=LYING_HINT)
    wanted, is_directory = _chosen(tree, str(copy.path))
    if not wanted:
        raise ManifestError(f"`{copy.path}` matches nothing in `{handle.fact.name}`", place=layer.place)
    if all(node.kind == "special" for node in wanted.values()):
        raise ManifestError(f"`{copy.path}` is a device or a pipe in `{handle.fact.name}`", place=layer.place)
    files = {node for node in wanted.values() if node.kind == "file" and node.size}
    kept = _Contents(session, image, handle.fact.name, files)
    return placed(_entries(wanted, kept), copy, layer.place, is_directory=is_directory)


def _chosen(tree: MergedTree, path: str) -> tuple[dict[str, Node], bool]:
    """New name → node of what a path or pattern stands for, and whether that is a directory's content."""
    wanted = posixpath.normpath(path.strip("/") or ".")
    found = tree.find(wanted)
    if isinstance(found, Directory):
        return dict(tree.walk(found)), True
    if found is not None:
        return {posixpath.basename(wanted): found}, False
    parts = wanted.split("/")
    plain = next((number for number, part in enumerate(parts) if _PATTERN & set(part)), None)
    top = None if plain is None else tree.find("/".join(parts[:plain]))
    if not isinstance(top, Directory):
        return {}, False
    below = dict(tree.walk(top))
    names = chosen_names(below, "/".join(parts[plain:]))
    return {new: below[old] for old, new in names.items()}, False


class _Contents:
    """Where the contents of some files of an image are: in a layer that is no more than a tar, else in a spool."""

    def __init__(self, session: Session, image: Image, name: str, wanted: Iterable[Node]) -> None:
        self._places: dict[Node, Slice] = {}
        by_layer: dict[int, list[Node]] = {}
        for node in wanted:
            by_layer.setdefault(node.layer, []).append(node)
        if not by_layer:
            return
        descriptor, spool = tempfile.mkstemp(dir=session.run.scratch("copy"), prefix="contents-")
        with os.fdopen(descriptor, "wb") as file:
            for number, nodes in sorted(by_layer.items()):
                path = session.store.blob_path(image.layers[number].descriptor.digest)
                with Stream(path) as stream:
                    if stream.format == "plain":
                        self._places |= {node: Slice(path, node.offset, node.size) for node in nodes}
                    else:
                        self._spool(stream, nodes, name, file, Path(spool))

    def _spool(self, stream: Stream, nodes: Iterable[Node], name: str, file: IO[bytes], path: Path) -> None:
        for node, pieces in contents(stream, nodes, name):
            start = file.tell()
            for piece in pieces:
                file.write(piece)
            self._places[node] = Slice(path, start, node.size)

    def of(self, node: Node) -> Slice | bytes:
        """The content of a file."""
        return self._places.get(node, b"")


def _entries(wanted: Mapping[str, Node], kept: _Contents) -> list[Entry]:
    """Entries under their new names; further names of one file are hard links. Devices and pipes are left out."""
    first: dict[Node, str] = {}
    entries = []
    for path, node in sorted(wanted.items()):
        xattrs = {name: value for name, value in node.xattrs.items() if name.startswith(_KEPT_XATTRS)}
        if node.kind == "symlink":
            entries.append(Entry(path=path, kind="symlink", mode=0o777, link=node.link))
        elif node.kind == "directory":
            entries.append(Entry(path=path, kind="directory", mode=node.mode, xattrs=xattrs))
        elif node.kind == "file" and first.setdefault(node, path) != path:
            entries.append(Entry(path=path, kind="hardlink", link=first[node]))
        elif node.kind == "file":
            content = kept.of(node)
            entries.append(
                Entry(path=path, kind="file", mode=node.mode, size=node.size, content=content, xattrs=xattrs)
            )
    return entries
