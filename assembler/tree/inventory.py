"""What an archive has claimed so far, and whether the next claim is harmless.

Paths are checked one by one as they come, so that nothing is written before it is known to stay inside. Where a
symbolic link leads can depend on links that come later, so links are judged at the end, by following each of
them through the claimed tree the way the kernel would; counting `..` in its text alone is not enough.
"""

from __future__ import annotations

from typing import Final

from assembler.tree.entry import Entry, Kind
from assembler.tree.tar_stream import Member, shown

MEMBER_LIMIT: Final = 8 << 30
_ENTRIES_LIMIT: Final = 2_000_000
_PATH_LIMIT: Final = 2048  # the kernel takes 4095, and the directory that it goes to has a name as well
_NAME_LIMIT: Final = 255
_HOPS: Final = 40  # Linux follows as many links before it gives up


class RefusedError(ValueError):
    """An entry must not be; the message names it."""


class Inventory:
    """The entries that were admitted. `strip` leading components are dropped from each path."""

    __slots__ = ("_kinds", "_links", "_strip", "_tops", "directories")

    def __init__(self, strip: int = 0) -> None:
        self._strip = strip
        self._kinds: dict[str, Kind] = {}
        self._links: dict[str, str] = {}
        self._tops: set[str] = set()
        self.directories: set[str] = set()
        """Every directory, listed or implied by a path below it."""

    def admit(self, member: Member) -> Entry | None:
        """The entry that the member stands for, or None when nothing of its path is left. RefusedError if bad."""
        name = shown(member.name)
        path = self._path(member.name, f"`{name}`")
        if path is None:
            return None
        if member.size > MEMBER_LIMIT:
            raise RefusedError(f"`{name}` has {member.size} bytes; expected at most {MEMBER_LIMIT >> 30} GiB")
        if len(self._kinds) >= _ENTRIES_LIMIT:
            raise RefusedError(f"expected at most {_ENTRIES_LIMIT} entries, found more: `{name}`")
        kind: Kind = member.kind
        link = ""
        if kind == "hardlink":
            target = self._path(member.link, f"the target `{shown(member.link)}` of the hard link `{name}`")
            if target is None or self._kinds.get(target) not in {"file", "symlink"}:
                raise RefusedError(f"`{name}` is a hard link to `{shown(member.link)}`, which is no earlier file")
            link = target
            if self._kinds[target] == "symlink":  # the same link at another place, judged from there
                kind, link = "symlink", self._links[target]
        elif kind == "symlink":
            link = self._link_text(member, name)
        self._claim(path, kind, name)
        if kind == "symlink":
            self._links[path] = link
        mode = {"directory": 0o755, "symlink": 0o777}.get(kind, 0o755 if member.executable else 0o644)
        return Entry(
            path=path, kind=kind, mode=mode, size=member.size, link=link, content=b"" if kind == "file" else None
        )

    def finish(self, *, single: bool) -> str:
        """Judge the links, and return the one top directory when `single` is asked for and there is one.

        Links must then stay below that directory, since it becomes the root.
        """
        tops = list(self._tops)
        top = tops[0] if single and len(tops) == 1 and tops[0] in self.directories else ""
        for path, target in self._links.items():
            if self._leads_out(path, target, 1 if top else 0):
                raise RefusedError(f"`{path}` is a symbolic link to `{target}`, which leads out of the archive")
        return top

    def _path(self, raw: bytes, what: str) -> str | None:
        """The checked relative path of a stored name; None when stripping or `.` leaves nothing of it."""
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise RefusedError(f"expected a name in UTF-8, found {what}") from None
        if "\0" in text:
            raise RefusedError(f"expected a name without NUL, found {what}")
        if text.startswith("/"):
            raise RefusedError(f"expected a relative path, found {what}")
        parts = [part for part in text.split("/") if part not in {"", "."}]
        if ".." in parts:
            raise RefusedError(f"expected a path without `..`, found {what}")
        if len(raw) > _PATH_LIMIT or any(len(part.encode()) > _NAME_LIMIT for part in parts):
            raise RefusedError(
                f"expected a path of at most {_PATH_LIMIT} bytes, {_NAME_LIMIT} a name, found {what}"
            )
        return "/".join(parts[self._strip :]) or None

    def _link_text(self, member: Member, name: str) -> str:
        try:
            text = member.link.decode()
        except UnicodeDecodeError:
            raise RefusedError(f"expected the target of `{name}` in UTF-8, found `{shown(member.link)}`") from None
        if not text or "\0" in text or len(member.link) > _PATH_LIMIT:
            raise RefusedError(f"`{name}` is a symbolic link to nothing that can be a path")
        if text.startswith("/"):
            raise RefusedError(f"`{name}` is a symbolic link to the absolute path `{shown(member.link)}`")
        return text

    def _claim(self, path: str, kind: Kind, name: str) -> None:
        """Take the path; refuse what is there already, and what lies below something that is no directory."""
        parts = path.split("/")
        self._tops.add(parts[0])
        for count in range(len(parts) - 1, 0, -1):
            parent = "/".join(parts[:count])
            if parent in self.directories:
                break
            found = self._kinds.get(parent)
            if found:
                what = "symbolic link" if found == "symlink" else "file"
                raise RefusedError(f"`{name}` lies below `{parent}`, which is a {what} of the same archive")
            self.directories.add(parent)
        if kind == "directory":
            if path in self._kinds and self._kinds[path] != "directory":
                raise RefusedError(f"`{name}` is there twice, as a directory and as something else")
            self.directories.add(path)
        elif path in self._kinds or path in self.directories:
            raise RefusedError(f"`{name}` is there twice")
        self._kinds[path] = kind

    def _leads_out(self, path: str, target: str, depth: int) -> bool:
        """Follow a link through the claimed tree; `depth` components of its path belong to the root."""
        at = path.split("/")[:-1]
        ahead = target.split("/")[::-1]
        hops = 0
        while ahead:
            part = ahead.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                if len(at) <= depth:
                    return True
                at.pop()
                continue
            at.append(part)
            further = self._links.get("/".join(at))
            if further is not None:
                hops += 1
                if hops > _HOPS:
                    return False
                at.pop()
                ahead.extend(further.split("/")[::-1])
        return False
