"""The root file system of an image as a tree in memory: merged layers, and what a runtime wants beside them.

Times are the layers' own: they are part of the image, hence as deterministic as it, and Python takes its compiled
files only beside sources of the very time that was compiled in. Devices and pipes are left out: nobody without
privileges can have them, and both Apptainer and enroot bring a /dev of the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from assembler.errors import UntrustedInputError
from assembler.oci.digest import Digest
from assembler.oci.image import ImageConfig
from assembler.tree.decompress import Stream, StreamError
from assembler.tree.merge import Directory, MergedTree, Node

_PART_OF_PLAIN: Final = 3
_LARGEST_XATTR: Final = 0xFFFF
_LONGEST_XATTR: Final = 255
_LARGEST_OWNER: Final = 0xFFFF_FFFE
_KEPT_XATTRS: Final = ("security.capability", "user.")


class LayerInput(Protocol):
    """A layer that can be read again. `size` is that of its blob in bytes, `name` is for people."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    def open(self) -> AbstractContextManager[Stream]:
        """The layer from its beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """An image wherever it lies: `identity` is the digest of its config there; layers are lowest first."""

    config: ImageConfig
    identity: Digest
    layers: Sequence[LayerInput]


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A path that a runtime wants: a file, a symbolic link, or with neither a directory.

    A file replaces what is there unless `keep`; a link stays away from what is no link, a directory from whatever
    is there.
    """

    path: str
    mode: int = 0o755
    data: bytes | None = None
    link: str = ""
    keep: bool = False


@dataclass(slots=True, kw_only=True)
class RootFilesystem:
    """The tree; `data` has the contents of added files, `specials` counts devices and pipes that were left out.

    `content_bytes` are those of all files, `packed_bytes` about those that they have in the layers, compressed.
    """

    tree: MergedTree
    layers: Sequence[LayerInput]
    data: dict[Node, bytes] = field(default_factory=dict)
    specials: int = 0
    content_bytes: int = 0
    packed_bytes: int = 0


def merged(layers: Sequence[LayerInput]) -> RootFilesystem:
    """Read the layers once, lowest first. UntrustedInputError, naming layer and entry, for one that must not be.

    A source that is verified at its end is read to its end, whatever the tar in it says.
    """
    tree = MergedTree()
    plain_bytes: list[tuple[int, bool]] = []
    for layer in layers:
        with layer.open() as stream:
            tree.add_layer(stream, layer.name)
            try:
                stream.drain()
            except StreamError as error:
                raise UntrustedInputError(str(error), place=layer.name) from error
            plain_bytes.append((stream.total, stream.format == "plain"))
    found = RootFilesystem(tree=tree, layers=layers)
    found.specials = _without_specials(tree)
    _check(tree)
    by_layer = [0] * len(layers)
    for node in {node for _, node in tree.walk() if node.kind == "file"}:
        by_layer[node.layer] += node.size
    found.content_bytes = sum(by_layer)
    for layer, content, (total, is_plain) in zip(layers, by_layer, plain_bytes, strict=True):
        packed = layer.size // _PART_OF_PLAIN if is_plain else layer.size
        found.packed_bytes += packed * min(content, total) // max(total, 1)
    return found


def add(rootfs: RootFilesystem, wanted: Sequence[Added], epoch: int) -> None:
    """Put these paths into the tree, owned by root. Parents that are links are followed, inside the tree."""
    for item in wanted:
        *above, name = item.path.split("/")
        parent = _directory(rootfs.tree, above, epoch)
        if parent is None:
            continue  # something else is in the way; a runtime does without
        there = parent.children.get(name)
        if item.data is not None:
            _add_file(rootfs, parent, name, item, epoch)
        elif item.link:
            if there is None or there.kind == "symlink":
                parent.children[name] = Node("symlink", -1, mode=0o777, mtime=epoch, link=item.link)
        elif there is None or (there.kind == "symlink" and rootfs.tree.find(item.path) is None):
            made = parent.children[name] = Directory(-1)
            made.mode, made.mtime = item.mode, epoch


def fix_permissions(tree: MergedTree) -> None:
    """Owners may do everything with directories, and read and write files."""
    tree.root.mode |= 0o700
    for _, node in tree.walk():
        if node.kind == "directory":
            node.mode |= 0o700
        elif node.kind == "file":
            node.mode |= 0o600


def give_to_root(tree: MergedTree) -> None:
    """Everything belongs to root."""
    for node in (tree.root, *(node for _, node in tree.walk())):
        node.uid = node.gid = 0


def nodes(tree: MergedTree) -> Iterator[tuple[str, Node, str | None]]:
    """Path and node of everything, parents first; for further names of a node also its first name."""
    first: dict[Node, str] = {}
    for path, node in tree.walk():
        name = path if isinstance(node, Directory) else first.setdefault(node, path)
        yield path, node, None if name == path else name


def _add_file(rootfs: RootFilesystem, parent: Directory, name: str, item: Added, epoch: int) -> None:
    if item.keep:
        target = rootfs.tree.find(item.path)
        if target is not None and not isinstance(target, Directory):
            return
    if isinstance(parent.children.get(name), Directory) and item.keep:
        return
    data = item.data or b""
    node = Node("file", -1, mode=item.mode, mtime=epoch, size=len(data))
    parent.children[name] = node
    rootfs.data[node] = data


def _directory(tree: MergedTree, parts: Sequence[str], epoch: int) -> Directory | None:
    """The directory at these parts, made where nothing is."""
    here: Node = tree.root
    for depth, part in enumerate(parts, 1):
        if not isinstance(here, Directory):
            return None
        found = here.children.get(part)
        if found is None:
            found = here.children[part] = Directory(-1)
            found.mtime = epoch
        elif found.kind == "symlink":
            found = tree.find("/".join(parts[:depth]))
        if found is None:
            return None
        here = found
    return here if isinstance(here, Directory) else None


def _without_specials(tree: MergedTree) -> int:
    """Take devices and pipes out of the tree; how many there were."""
    count = 0
    waiting = [tree.root]
    while waiting:
        directory = waiting.pop()
        for name, node in list(directory.children.items()):
            if node.kind == "special":
                del directory.children[name]
                count += 1
            elif isinstance(node, Directory):
                waiting.append(node)
    return count


def _check(tree: MergedTree) -> None:
    """UntrustedInputError for what no file system takes."""
    for path, node in tree.walk():
        if max(node.uid, node.gid) > _LARGEST_OWNER:
            raise UntrustedInputError(f"`{path!a}` belongs to {node.uid}:{node.gid}, which nobody can be")
        for name, value in node.xattrs.items():
            if name.startswith(_KEPT_XATTRS) and (len(value) > _LARGEST_XATTR or len(name) > _LONGEST_XATTR):
                fact = f"`{path!a}` has an extended attribute that no file system takes: {name[:80]!a}"
                raise UntrustedInputError(fact)


def kept_xattrs(node: Node) -> Mapping[str, bytes]:
    """What a file keeps of its extended attributes: capabilities and the user's own, as layers of ours do.

    Labels of another host's SELinux mean nothing here, and squashfs has no access control lists.
    """
    if node.kind == "symlink":
        return {}
    return {name: value for name, value in node.xattrs.items() if name.startswith(_KEPT_XATTRS)}
