"""Layers merged: the one tree that an image's layers stand for, without unpacking a byte of it.

Each layer is read once as a stream of headers, lowest first, and applied to a tree in memory as the image
specification's layer.md says: whiteouts and opaque directories hide what lower layers have, never what their own
layer has; a directory meets a directory by taking over its attributes; anything else replaces what was there. As
the engines do, a parent of a path that is a symbolic link is followed, always inside the tree. A hard link is a
second name of the same node, whatever becomes of the first.

A node says in which layer, and where in its uncompressed tar, its content is; `contents` reads what is wanted in
one more pass over the layers that have some of it. Layers are hostile: paths and links cannot leave the tree,
since nothing but the tree is ever asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from assembler.errors import UntrustedInputError
from assembler.tree.decompress import StreamError
from assembler.tree.tar_stream import CHUNK, ByteStream, Member, TarError, TarReader, shown

_ENTRIES_LIMIT: Final = 4_000_000
_PATH_LIMIT: Final = 4095
_NAME_LIMIT: Final = 255
_HOPS: Final = 40
_WHITEOUT: Final = ".wh."
_META: Final = ".wh..wh."
_OPAQUE: Final = ".wh..wh..opq"
_NO_XATTRS: Final[Mapping[str, bytes]] = {}


@dataclass(slots=True, eq=False)
class Node:
    """A file, link or directory of the merged tree; two paths with the same node are hard links of each other.

    `special` is a device or a pipe. `layer` counts from 0 at the bottom; `offset` is where the content of a file
    begins in that layer's uncompressed tar. `uid`, `gid`, `mode` and `mtime` are as stored, `link` is a symlink's
    target.
    """

    kind: Literal["file", "directory", "symlink", "special"]
    layer: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    offset: int = 0
    link: str = ""
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: _NO_XATTRS)


class Directory(Node):
    """A directory; `layer` is the last one that had something to say about it, or about what is in it.

    `own` are the children which that layer has put there itself: its whiteouts do not hide them.
    """

    __slots__ = ("children", "own")

    def __init__(self, layer: int) -> None:
        super().__init__("directory", layer, mode=0o755)
        self.children: dict[str, Node] = {}
        self.own: set[str] = set()


class _RefusedError(ValueError):
    """An entry must not be; the message names it."""


class MergedTree:
    """The tree of some layers. Add them lowest first."""

    def __init__(self) -> None:
        self.root = Directory(-1)
        self.layers = 0
        self._entries = 0
        self._last: tuple[list[str], Directory] | None = None
        """The parent of the last entry of this layer: the next one's is the same, mostly."""

    def add_layer(self, stream: ByteStream, name: str) -> None:
        """Apply the layer whose uncompressed tar comes out of `stream`; `name` is what errors call it.

        UntrustedInputError, naming layer and entry, when it is damaged or cannot be applied.
        """
        number = self.layers
        self.layers += 1
        self._last = None
        with _blaming(name):
            for member in TarReader(stream, layer=True):
                self._entries += 1
                if self._entries > _ENTRIES_LIMIT:
                    raise _RefusedError(f"expected at most {_ENTRIES_LIMIT} entries, found more")
                self._apply(member, number)

    def find(self, path: str) -> Node | None:
        """What is at a path of the root file system, all links followed; None when nothing is."""
        with contextlib.suppress(_RefusedError):
            return self._follow(path.split("/"), f"`{path}`", follow_last=True)
        return None

    def walk(self, top: Directory | None = None) -> Iterator[tuple[str, Node]]:
        """Path and node of everything below `top` (the root if None), parents first, siblings sorted by name."""
        waiting: list[tuple[str, Node]] = [("", top or self.root)]
        while waiting:
            path, node = waiting.pop()
            if path:
                yield path, node
            if isinstance(node, Directory):
                prefix = f"{path}/" if path else ""
                waiting += [(prefix + name, node.children[name]) for name in sorted(node.children, reverse=True)]

    # one entry

    def _apply(self, member: Member, number: int) -> None:
        what = f"`{shown(member.name)}`"
        parts = _parts(member.name, what)
        if not parts:
            if member.kind == "directory":
                _take_over(self.root, member, number)
            return
        *above, name = parts
        if name.startswith(_WHITEOUT):
            self._hide(above, name, number, what)
            return
        parent = self._directory(above, number, what)
        there = parent.children.get(name)
        if there is not None and there.kind != "file":
            self._last = None  # something that paths lead through may be replaced
        if member.kind == "directory":
            if not isinstance(there, Directory):
                there = parent.children[name] = Directory(number)
            _take_over(there, member, number)
        elif member.kind == "hardlink":
            parent.children[name] = self._linked(member, what)
        else:
            parent.children[name] = _node(member, number, what)
        parent.own.add(name)

    def _hide(self, above: list[str], name: str, number: int, what: str) -> None:
        """A whiteout, or an opaque marker, of layer `number`."""
        self._last = None
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in {"", ".", ".."}:
            raise _RefusedError(f"{what} is a whiteout of nothing")
        try:
            parent = self._follow(above, what, follow_last=True)
        except _RefusedError:
            parent = None
        if not isinstance(parent, Directory):
            return  # it hides what is not there
        if name == _OPAQUE:
            _clear(parent, number)
        elif not name.startswith(_META):  # others of these are aufs's own
            if parent.layer == number and hidden in parent.own:
                _clear(parent.children[hidden], number)
            else:
                parent.children.pop(hidden, None)

    def _linked(self, member: Member, what: str) -> Node:
        link = f"{what} is a hard link to `{shown(member.link)}`"
        node = self._follow(_parts(member.link, f"the target of {what}"), what, follow_last=False)
        if node is None or isinstance(node, Directory):
            raise _RefusedError(f"{link}, which is {'a directory' if node else 'not there'}")
        return node

    def _directory(self, parts: list[str], number: int, what: str) -> Directory:
        """The directory at these parts, made where it is missing; links are followed."""
        if self._last and self._last[0] == parts:
            return self._last[1]
        node = self._follow(parts, what, follow_last=True, make=number)
        if not isinstance(node, Directory):
            raise _RefusedError(f"{what} lies below a path that is no directory")
        self._last = parts, node
        return node

    def _follow(self, parts: list[str], what: str, *, follow_last: bool, make: int | None = None) -> Node | None:
        """What is at these parts, as the kernel finds it in a root; None when something of it is not there.

        With `make`, missing directories are made, and all on the way count as that layer's.
        """
        way: list[Node] = [self.root]
        ahead = parts[::-1]
        hops = 0
        if make is not None:
            _own(self.root, make)
        while ahead:
            part = ahead.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                del way[max(1, len(way) - 1) :]
                continue
            here = way[-1]
            if not isinstance(here, Directory):
                return None
            found = here.children.get(part)
            if found is None:
                if make is None:
                    return None
                found = here.children[part] = Directory(make)
            if found.kind == "symlink" and (follow_last or ahead):
                hops += 1
                if hops > _HOPS:
                    raise _RefusedError(f"{what} leads through too many symbolic links")
                if found.link.startswith("/"):
                    del way[1:]
                ahead.extend(found.link.split("/")[::-1])
                continue
            if make is not None and isinstance(found, Directory):
                here.own.add(part)
                _own(found, make)
            way.append(found)
        return way[-1]


def contents(stream: ByteStream, wanted: Iterable[Node], name: str) -> Iterator[tuple[Node, Iterator[bytes]]]:
    """The contents of these files of one layer, whose uncompressed tar comes out of `stream`, in its order.

    Each has to be read to its end before the next is asked for. UntrustedInputError when the layer ends before.
    """
    position = 0
    for node in sorted(set(wanted), key=lambda node: node.offset):
        with _blaming(name):
            stream.skip(node.offset - position)
        yield node, _pieces(stream, node.size, name)
        position = node.offset + node.size


def _pieces(stream: ByteStream, size: int, name: str) -> Iterator[bytes]:
    while size:
        with _blaming(name):
            data = stream.read(min(size, CHUNK))
        if not data:
            raise UntrustedInputError("the layer is truncated", place=name)
        size -= len(data)
        yield data


@contextlib.contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except (_RefusedError, TarError, StreamError) as error:
        raise UntrustedInputError(str(error), place=name) from error


def _parts(raw: bytes, what: str) -> list[str]:
    """A stored path as its parts. Absolute ones begin at the root of the image, as engines take them.

    Names that are no UTF-8 are kept as they are (surrogates); only who ships such a name has to refuse it.
    """
    if len(raw) > _PATH_LIMIT or b"\0" in raw:
        raise _RefusedError(f"expected a path of at most {_PATH_LIMIT} bytes without NUL, found {what:.300}")
    parts = [part for part in raw.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise _RefusedError(f"expected a path without `..`, found {what}")
    if any(len(part) > _NAME_LIMIT for part in parts):
        raise _RefusedError(f"expected names of at most {_NAME_LIMIT} bytes, found {what:.300}")
    return [part.decode(errors="surrogateescape") for part in parts]


def _node(member: Member, number: int, what: str) -> Node:
    if member.special:
        return Node("special", number, mode=member.mode, uid=member.uid, gid=member.gid, mtime=member.mtime)
    if member.kind == "symlink" and (not member.link or len(member.link) > _PATH_LIMIT or b"\0" in member.link):
        raise _RefusedError(f"{what} is a symbolic link to nothing that can be a path")
    return Node(
        "symlink" if member.kind == "symlink" else "file",
        number,
        mode=member.mode,
        uid=member.uid,
        gid=member.gid,
        mtime=member.mtime,
        size=member.size,
        offset=member.offset,
        link=member.link.decode(errors="surrogateescape") if member.kind == "symlink" else "",
        xattrs=member.xattrs or _NO_XATTRS,
    )


def _take_over(directory: Directory, member: Member, number: int) -> None:
    """The directory gets what the member says about it."""
    _own(directory, number)
    directory.mode, directory.uid, directory.gid = member.mode, member.uid, member.gid
    directory.mtime = member.mtime
    directory.xattrs = member.xattrs or _NO_XATTRS


def _own(directory: Directory, number: int) -> None:
    """Layer `number` has something to say about the directory, or about what is in it."""
    if directory.layer != number:
        directory.layer = number
        directory.own = set()


def _clear(top: Node, number: int) -> None:
    """Take away what is below `top` but of lower layers than `number`."""
    waiting = [top]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Directory):
            continue
        if node.layer != number:
            node.children.clear()
            continue
        for name in [name for name in node.children if name not in node.own]:
            del node.children[name]
        waiting += node.children.values()
