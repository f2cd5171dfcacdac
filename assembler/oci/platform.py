"""Platforms: `os/architecture[/variant]`, named as Go names them (image-spec image-index.md)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_GO_NAME = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_DEFAULT_VARIANT = {"arm64": "v8"}
_PART = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """What an image runs on. `variant` is None when it says nothing."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read `linux/amd64` or `linux/arm64/v8`; ValueError otherwise."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(_PART.fullmatch(part) for part in parts):
            raise ValueError(f"expected os/architecture such as `linux/amd64`, got `{text}`")
        return cls(*parts)

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Platform:
        """Read the `platform` of a descriptor, or the same fields of an image config."""
        variant = value.get("variant")
        return cls(str(value.get("os", "")), str(value.get("architecture", "")), str(variant) if variant else None)

    @classmethod
    def host(cls) -> Platform:
        """The platform of this machine."""
        uname = os.uname()
        return cls(uname.sysname.lower(), _GO_NAME.get(uname.machine, uname.machine))

    def matches(self, other: Platform) -> bool:
        """Do both mean the same machines? A missing variant is the architecture's usual one."""

        def usual(platform: Platform) -> str | None:
            return platform.variant or _DEFAULT_VARIANT.get(platform.architecture)

        return (self.os, self.architecture, usual(self)) == (other.os, other.architecture, usual(other))

    def to_json(self) -> dict[str, str]:
        """The fields as the specification spells them."""
        fields = {"architecture": self.architecture, "os": self.os}
        return {**fields, "variant": self.variant} if self.variant else fields

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))
