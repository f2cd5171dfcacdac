"""Wheels as the lock knows them: what uv resolved, and the file of each by hash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from assembler.errors import LockError
from assembler.oci.digest import Digest

_NAME: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_VERSION: Final = re.compile(r"[0-9][A-Za-z0-9.!+_-]*")
_FILE_NAME: Final = re.compile(r"[^/\\\0\s]+\.whl")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SIZE_LIMIT: Final = 64 << 30


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LockedWheel:
    """One wheel file.

    `name` is the project's name as indexes compare it (PEP 503), `version` as the file's metadata has it. `url`
    says where the file came from, without credentials; it is empty when it came out of a compile step or a
    directory. `sha256` has 64 hexadecimal digits, `size` is in bytes. `requested` says that a requirement names
    the project itself (its REQUESTED file), `direct` is the content of `direct_url.json` where one is due
    (PEP 610).
    """

    name: str
    version: str
    filename: str
    url: str
    sha256: str
    size: int
    requested: bool = False
    direct: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for value, pattern, what in (
            (self.name, _NAME, "a normalised project name"),
            (self.version, _VERSION, "a version"),
            (self.filename, _FILE_NAME, "the name of a wheel"),
            (self.sha256, _SHA256, "the 64 hexadecimal digits of a SHA-256"),
        ):
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise ValueError(f"expected {what}, got `{value!s:.200}`")
        if not isinstance(self.url, str) or "\0" in self.url:
            raise ValueError("expected a URL or nothing")
        if not isinstance(self.size, int) or isinstance(self.size, bool) or not 0 < self.size <= _SIZE_LIMIT:
            raise ValueError(f"expected a size of 1 to {_SIZE_LIMIT} bytes, got `{self.size}`")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LockedWheel:
        """Read an entry of the lock; LockError when it is not one."""
        try:
            return cls(**value)
        except (TypeError, ValueError) as error:
            name = value.get("name") if isinstance(value, Mapping) else value
            raise LockError(
                f"the wheel `{name!s:.80}` of the lock is damaged: {error}", hint="`assemble lock --update`"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The fields for the lock, in the order that reads well; those that say nothing are left out."""
        fields: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "filename": self.filename,
            "url": self.url,
            "sha256": self.sha256,
            "size": self.size,
        }
        if self.requested:
            fields["requested"] = True
        return {**fields, "direct": dict(self.direct)} if self.direct is not None else fields

    @property
    def digest(self) -> Digest:
        """Under which the store has the file."""
        return Digest.from_hex(self.sha256)

    @property
    def label(self) -> str:
        """`name==version`, for people."""
        return f"{self.name}=={self.version}"
