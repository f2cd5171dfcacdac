"""Everything that is wrong, collected, so that a user mends a manifest in one go and not error by error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from assembler.errors import InvalidManifestError, ManifestError
from assembler.manifest.source import Document, Mark, Steps


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that `name` was probably meant to be."""
    near = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return near[0] if near else None


def did_you_mean(name: str, options: Iterable[str]) -> str | None:
    """The hint for a name that does not exist: the nearest that does, if one is near."""
    near = nearest(name, options)
    return f"did you mean `{near}`?" if near else None


def alternatives(name: str, options: Iterable[str], *, title: str, none: str | None = None) -> str | None:
    """`did_you_mean`, or else all that exist under `title`, or `none` when nothing exists."""
    known = list(options)
    near = did_you_mean(name, known)
    if near:
        return near
    return f"{title}: {', '.join(f'`{option}`' for option in known)}" if known else none


class Problems:
    """Errors in the order of the files and, in a file, of the lines; each is kept once."""

    def __init__(self) -> None:
        self._order: dict[str, int] = {}
        self._found: dict[tuple[str | None, str], tuple[int, Mark, ManifestError]] = {}
        self._blamed: set[tuple[str, Steps]] = set()

    def open(self, name: str) -> None:
        """Errors of the file `name` come after those of all files opened before."""
        self._order.setdefault(name, len(self._order))

    def add(
        self,
        document: Document,
        steps: Iterable[str | int],
        fact: str,
        *,
        hint: str | None = None,
        of_key: bool = False,
    ) -> None:
        """Something is wrong with the value (or key) at `steps`."""
        steps = tuple(steps)
        mark = document.mark(steps, of_key=of_key)
        self._blamed.add((document.name, document.locate(steps)))
        error = ManifestError(fact, place=document.place(steps, of_key=of_key), hint=hint)
        self.add_error(error, name=document.name, mark=mark)

    def add_error(self, error: ManifestError, *, name: str = "", mark: Mark | None = None) -> None:
        """Take an error as it is: of the command line, or of a file that cannot be read."""
        order = self._order.get(name, -1)
        self._found.setdefault((error.place, error.fact), (order, mark or Mark(0, 0), error))

    def blame(self, document: Document, steps: Iterable[str | int]) -> None:
        """Keep quiet about this value from now on: its error is known, or lies elsewhere."""
        self._blamed.add((document.name, document.locate(steps)))

    def is_blamed(self, document: Document, steps: Iterable[str | int]) -> bool:
        """Has this very value been found wrong already?"""
        return (document.name, document.locate(steps)) in self._blamed

    def raise_any(self) -> None:
        """Raise InvalidManifestError with all errors, in order, if there is one."""
        if self._found:
            found = sorted(self._found.values(), key=lambda item: item[:2])
            raise InvalidManifestError([error for _, _, error in found])
