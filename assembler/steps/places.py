"""Where in the manifest something is that failed elsewhere, for the errors of those who do not know it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from assembler.errors import placed
from assembler.manifest.loaded import Scope


def source_errors(scope: Scope, name: str) -> AbstractContextManager[None]:
    """Errors of the block say whose source they are about, and how to take another."""
    label = f"{scope.name}.{name}" if scope.name else name
    place = f"{scope.digest_place}: sources.{name}"
    return placed(place, f"that is the source `{label}`, see {place}; `--source {label}=PATH` takes another")
