"""References: `registry/repository:tag@digest`.

Grammar of the distribution specification ("pull", name and reference), with docker's two customs: no registry
means docker.io, and one component there means `library/`. What `registries.conf` makes of names without a registry
is no part of it, so that a manifest means the same on every host: see `assembler.registry.short_names`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from assembler.oci.digest import Digest

DOCKER_HUB = "docker.io"
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A parsed reference. Without tag and digest it names a repository."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference; ValueError says which part is wrong."""
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        head, colon, last = rest.rpartition(":")
        tag = last if colon and "/" not in last else None
        name = head if tag is not None else rest
        first, slash, remainder = name.partition("/")
        if slash and (any(mark in first for mark in ".:[") or first == "localhost"):
            registry, repository = first, remainder
        else:
            registry, repository = DOCKER_HUB, name
        if registry == DOCKER_HUB and repository and "/" not in repository:
            repository = f"library/{repository}"
        if not _REGISTRY.fullmatch(registry):
            raise ValueError(f"`{registry}` in `{text}` is no registry host")
        if not _NAME.fullmatch(repository) or len(repository) > 255:
            raise ValueError(f"`{repository}` in `{text}` is no repository name (lower case, digits, `._-/`)")
        if tag is not None and not _TAG.fullmatch(tag):
            raise ValueError(f"`{tag}` in `{text}` is no tag")
        return cls(registry, repository, tag, digest)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    def at(self, digest: Digest) -> Reference:
        """The same repository, by digest alone."""
        return replace(self, tag=None, digest=digest)

    def tagged(self, tag: str) -> Reference:
        """The same repository, by tag alone."""
        return replace(self, tag=tag, digest=None)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")
