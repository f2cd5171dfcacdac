"""A root file system as one tar, for the programs that make a squashfs of it: read from layers, never unpacked.

The order asks for no random access and no memory: directories and links first, parents before children; then the
layers, lowest first, each streamed once, of which the files that survive come in the order in which they lie
there; at last further names of files. So the data of a squashfs lie in the order of the layers too, whatever
program made it, and the same tree gives the same tar.

Long names are GNU's records (`L`, `K`), not pax's: mksquashfs before 4.6 cuts `/`, `./` and `../` off the
beginning of a pax `linkpath`, and a link would lead elsewhere. They also carry bytes that are no UTF-8. Extended
attributes are pax records. There are no owner names, for mksquashfs would look them up on this host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from assembler.sif.rootfs import RootFilesystem, kept_xattrs, nodes
from assembler.tree.merge import Directory, Node, contents

_BLOCK: Final = 512
_NAME: Final = 100
_LARGEST_TIME: Final = (1 << 32) - 1
_END: Final = bytes(20 * _BLOCK)
_BATCH: Final = 1 << 18
_TYPES: Final = {"file": b"0", "symlink": b"2", "directory": b"5"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the squashfs must have afterwards: `inodes` of all kinds. `newest` is the latest time in it."""

    inodes: int
    newest: int


def expected(rootfs: RootFilesystem) -> Expected:
    """What a squashfs of this tree has."""
    count, newest = 1, _time(rootfs.tree.root)
    for _, node, other in nodes(rootfs.tree):
        if other is None:
            count += 1
            newest = max(newest, _time(node))
    return Expected(inodes=count, newest=newest)


def tar(rootfs: RootFilesystem, *, root: bool, progress: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The tar, in pieces. With `root` the first entry is `./`, the attributes of the root directory.

    `progress` is told the bytes of contents so far. UntrustedInputError when a layer is not any more what it was.
    """
    if root:
        yield _entry(b"./", rootfs.tree.root)
    links: list[tuple[str, Node, str]] = []
    by_layer: dict[int, dict[Node, str]] = {}
    batch = bytearray()
    for path, node, other in nodes(rootfs.tree):
        if other is not None:
            links.append((path, node, other))
        elif node.kind == "file":
            by_layer.setdefault(node.layer, {})[node] = path
        else:
            batch += _entry(_bytes(path), node)
            if len(batch) > _BATCH:
                yield bytes(batch)
                batch.clear()
    for node, path in by_layer.pop(-1, {}).items():
        batch += _entry(_bytes(path), node) + _padded(rootfs.data[node])
    yield bytes(batch)
    yield from _layers(rootfs, by_layer, progress)
    batch.clear()
    for path, node, other in links:
        batch += _entry(_bytes(path), node, first=_bytes(other))
    yield bytes(batch) + _END


def _layers(
    rootfs: RootFilesystem, by_layer: Mapping[int, Mapping[Node, str]], progress: Callable[[int], None] | None
) -> Iterator[bytes]:
    """The files of all layers."""
    done = 0
    for number, files in sorted(by_layer.items()):
        empty = b"".join(_entry(_bytes(path), node) for node, path in files.items() if not node.size)
        if empty:
            yield empty
        wanted = [node for node in files if node.size]
        if not wanted:
            continue
        layer = rootfs.layers[number]
        with layer.open() as stream:
            for node, pieces in contents(stream, wanted, layer.name):
                head = _entry(_bytes(files[node]), node)
                for piece in pieces:
                    yield head + piece
                    head = b""
                    done += len(piece)
                    if progress:
                        progress(done)
                if node.size % _BLOCK:
                    yield bytes(-node.size % _BLOCK)


def _entry(path: bytes, node: Node, first: bytes | None = None) -> bytes:
    """Everything of an entry but its content. With `first` it is a hard link to that name."""
    kind = b"1" if first is not None else _TYPES[node.kind]
    link = first if first is not None else _bytes(node.link)
    if isinstance(node, Directory) and not path.endswith(b"/"):
        path += b"/"
    xattrs = kept_xattrs(node) if first is None else {}
    parts = [_extended(xattrs)] if xattrs else []
    parts += [_long(b"L", path)] if len(path) > _NAME else []
    parts += [_long(b"K", link)] if len(link) > _NAME else []
    size = node.size if kind == b"0" else 0
    parts.append(_block(path, kind, link, size, (node.mode & 0o7777, node.uid, node.gid), _time(node)))
    return b"".join(parts)


def _block(path: bytes, kind: bytes, link: bytes, size: int, rights: tuple[int, int, int], time: int) -> bytes:
    mode, uid, gid = rights
    numbers = _number(mode, 8) + _number(uid, 8) + _number(gid, 8) + _number(size, 12) + _number(time, 12)
    head = path[:_NAME].ljust(_NAME, b"\0") + numbers
    tail = (kind + link[:_NAME].ljust(_NAME, b"\0") + b"ustar\x0000").ljust(_BLOCK - 156, b"\0")
    return head + b"%06o\0 " % (sum(head) + 8 * 0x20 + sum(tail)) + tail


def _number(value: int, width: int) -> bytes:
    """Octal digits, or where they do not suffice GNU's base 256."""
    if value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")


def _long(kind: bytes, text: bytes) -> bytes:
    """A record of GNU tar: what follows has this name, or leads to it."""
    return _block(b"././@LongLink", kind, b"", len(text) + 1, (0o644, 0, 0), 0) + _padded(text + b"\0")


def _extended(xattrs: Mapping[str, bytes]) -> bytes:
    body = b""
    for name, value in sorted(xattrs.items()):
        rest = b" SCHILY.xattr." + _bytes(name) + b"=" + value + b"\n"
        length = len(rest)
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        body += b"%d" % length + rest
    return _block(b"././@PaxHeader", b"x", b"", len(body), (0o644, 0, 0), 0) + _padded(body)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _time(node: Node) -> int:
    """squashfs has 32 bits for a time, unsigned."""
    return min(max(node.mtime, 0), _LARGEST_TIME)
