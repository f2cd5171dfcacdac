"""Layers as tars, written member by member, for tests that merge them or lie in them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Put:
    """One member: a file with this content unless it says otherwise."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    pax: Mapping[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755) -> Put:
    """A directory."""
    return Put(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Put:
    """A symbolic link."""
    return Put(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str, target: str) -> Put:
    """A hard link."""
    return Put(name, kind=tarfile.LNKTYPE, link=target)


def whiteout(path: str) -> Put:
    """A whiteout of a path."""
    parent, slash, name = path.rpartition("/")
    return Put(f"{parent}{slash}.wh.{name}")


def opaque(path: str) -> Put:
    """A marker that hides everything below a directory."""
    return Put(f"{path}/.wh..wh..opq" if path else ".wh..wh..opq")


def layer_tar(*members: Put) -> bytes:
    """The uncompressed tar of a layer, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for put in members:
            info = tarfile.TarInfo(put.name)
            info.type, info.linkname, info.mode = put.kind, put.link, put.mode
            info.uid, info.gid, info.size = put.uid, put.gid, len(put.content)
            info.pax_headers = dict(put.pax)
            tar.addfile(info, io.BytesIO(put.content))
    return buffer.getvalue()
