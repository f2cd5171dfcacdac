"""Which paths of a tree a pattern names, and what they are called then.

Used twice, and so here: for what a `copy` layer ships, and for the digest that goes into its key.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

_GLOB = frozenset("*?[")


def chosen_names(paths: Iterable[str], pattern: str | None) -> dict[str, str]:
    """Path → new name of what `pattern` names: everything, one path, what is below a directory, a glob's matches.

    New names are relative to what was named: a directory's content loses the directory, a match of a glob keeps
    its own name. `*` does not cross a slash. A path that is both a file and a pattern is the file.

    >>> chosen_names(["a", "a/x", "b.so", "b.so.1"], "a")
    {'a/x': 'x'}
    >>> chosen_names(["lib", "lib/b.so", "lib/b.so.1", "lib/c"], "lib/*.so*")
    {'lib/b.so': 'b.so', 'lib/b.so.1': 'b.so.1'}
    """
    wanted = (pattern or "").strip("/")
    every = list(paths)
    if wanted in ("", "."):
        return {path: path for path in every}
    below = {path: path[len(wanted) + 1 :] for path in every if path.startswith(wanted + "/")}
    if below:
        return below
    if wanted in every:
        return {wanted: wanted.rpartition("/")[2]}
    if not _GLOB & set(wanted):
        return {}
    depth = wanted.count("/")
    names = {}
    for path in every:
        parts = path.split("/")
        if len(parts) > depth and _matches(parts[: depth + 1], wanted.split("/")):
            names[path] = "/".join(parts[depth:])
    return names


def _matches(parts: list[str], patterns: list[str]) -> bool:
    return all(fnmatch.fnmatchcase(part, pattern) for part, pattern in zip(parts, patterns, strict=True))
