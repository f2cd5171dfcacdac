"""Where the cache is: an OCI layout, and beside it containers, sources, logs and run directories."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """`$ASSEMBLE_CACHE`, else `assemble` below the user's cache directory (XDG base directory specification)."""
    named = os.environ.get("ASSEMBLE_CACHE")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "assemble"
