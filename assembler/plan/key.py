"""Content keys: the digest of everything that can change what a step yields, and of nothing else.

Job counts, verbosity, cache places, mirrors and credentials stay out. `KEY_VERSION` is raised whenever the same
description would give other bytes; it is the only thing that must be remembered when the packer or a toolchain
changes its ways.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from assembler.oci.digest import canonical_json

KEY_VERSION: Final = 1


def key_of(kind: str, facts: Mapping[str, Any]) -> str:
    """The key, 64 hexadecimal digits, of a step of this kind with these JSON facts.

    >>> key_of("pack", {"a": 1, "b": 2}) == key_of("pack", {"b": 2, "a": 1})
    True
    >>> key_of("pack", {}) == key_of("run", {})
    False
    """
    return hashlib.sha256(canonical_json({"version": KEY_VERSION, "kind": kind, "facts": facts})).hexdigest()


def subset(facts: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of the facts, and only where they say something: an option left out is no fact."""
    return {name: facts[name] for name in names if facts.get(name) not in (None, (), [], {}, "")}
