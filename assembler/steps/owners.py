"""Whose the files of an image are, by the headers of its layers: for storage that gives all of them to one id."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING

from assembler.oci.image import Image
from assembler.plan.key import key_of
from assembler.steps.materialise import layer_paths
from assembler.tree.decompress import Stream
from assembler.tree.merge import Directory, MergedTree

if TYPE_CHECKING:
    from assembler.steps.session import Session


def owners_of(session: Session, image: Image) -> Mapping[str, tuple[int, int]]:
    """Path → user and group of all that is not root's, and of what is in directories that hand their group on.

    All layers are read for it, once: the answer is kept in the store. UntrustedInputError for layers that lie.
    """
    key = key_of("owners", {"layers": [str(layer.descriptor.digest) for layer in image.layers]})
    record = session.store.record(key)
    if record is None:
        tree = MergedTree()
        for layer, path in zip(image.layers, layer_paths(session, image), strict=True):
            with Stream(path) as stream:
                tree.add_layer(stream, f"layer {layer.descriptor.digest}")
        record = {"owners": {path: list(owner) for path, owner in _owners(tree).items()}}
        session.store.put_record(key, record)
    return {path: (uid, gid) for path, (uid, gid) in record["owners"].items()}


def _owners(tree: MergedTree) -> dict[str, tuple[int, int]]:
    found = {}
    handed_on: set[str] = set()
    for path, node in tree.walk():
        is_below = path.rpartition("/")[0] in handed_on
        if node.kind != "special" and ((node.uid, node.gid) != (0, 0) or is_below):
            found[path] = (node.uid, node.gid)
        if isinstance(node, Directory) and node.gid and node.mode & stat.S_ISGID:
            handed_on.add(path)
    return found
