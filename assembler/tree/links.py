"""Where paths lead in a tree that is known by its symbolic links alone: nothing on disk is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_HOPS: Final = 40
"""Links that Linux follows on one path before it gives up."""


def follow(links: Mapping[str, str], path: str, *, rooted: bool) -> str | None:
    """Where `path` leads when links (path → target, as stored) are followed the way the kernel does.

    In a `rooted` tree, which is a whole root file system, an absolute target begins at its top and `..` stays
    there; otherwise both lead out. None when the path leads out of the tree, or in a circle; the empty path is
    the top.

    >>> follow({"lib64": "usr/lib", "usr/lib/a.so": "a.so.1"}, "lib64/a.so", rooted=False)
    'usr/lib/a.so.1'
    >>> follow({"etc/up": "../.."}, "etc/up/x", rooted=False)
    >>> follow({"etc/up": "../.."}, "etc/up/x", rooted=True)
    'x'
    """
    at: list[str] = []
    ahead = path.split("/")[::-1]
    hops = 0
    while ahead:
        part = ahead.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            if at:
                at.pop()
            elif not rooted:
                return None
            continue
        at.append(part)
        target = links.get("/".join(at))
        if target is None:
            continue
        hops += 1
        at.pop()
        if hops > _HOPS or (target.startswith("/") and not rooted):
            return None
        if target.startswith("/"):
            at.clear()
        ahead.extend(target.split("/")[::-1])
    return "/".join(at)


def follow_parent(links: Mapping[str, str], path: str, *, rooted: bool) -> str | None:
    """As `follow`, but the last part of the path is not followed itself: where the name stands."""
    parent, _, name = path.rpartition("/")
    reached = follow(links, parent, rooted=rooted)
    return None if reached is None else f"{reached}/{name}" if reached else name
