"""Ignore patterns with the meaning that they have in a .gitignore file (git's gitignore(5)).

Patterns apply in order and the last one that matches decides: `*`, `?`, `[…]`, `**`, `/anchored`, `directory/`,
`!negated`, `# comment`. What lies in an ignored directory cannot be taken back, as in git. `.git` is ignored
first, so that `!.git` keeps it. Only the standard library is imported: the check whether anything changed runs
through here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DEFAULT: Final = (".git",)
_MAGIC = re.compile(r"[*?\[\\]")
_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    anchored: bool
    negated: bool
    directories_only: bool


class Ignore:
    """Compiled patterns. `candidate` is a cheap test that rules most paths out, `ignored` is the exact answer."""

    __slots__ = ("_literals", "_names", "_paths", "_rules")

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        rules, literals, names, paths = [], set(), [], []
        for text in (*DEFAULT, *patterns):
            negated, directories_only, anchored, body = _parse(text)
            if not body:
                continue
            source = _translate(body)
            if anchored:
                paths.append(source)
            elif _MAGIC.search(body):
                names.append(source)
            else:
                literals.add(body)
            rules.append(_Rule(re.compile(source, re.DOTALL), anchored, negated, directories_only))
        self._rules = tuple(reversed(rules))
        self._literals = frozenset(literals)
        self._names = _either(names)
        self._paths = _either(paths)

    def candidate(self, path: str, name: str) -> bool:
        """Does any pattern speak of this path? False is final; True has to be asked again with `ignored`."""
        return (
            name in self._literals
            or self._names.fullmatch(name) is not None
            or self._paths.fullmatch(path) is not None
        )

    def ignored(self, path: str, name: str, is_directory: bool) -> bool:
        """Is this path, whose parents are all kept, left out? `path` is relative to the root of the tree."""
        for rule in self._rules:
            if rule.directories_only and not is_directory:
                continue
            if rule.pattern.fullmatch(path if rule.anchored else name):
                return not rule.negated
        return False

    @property
    def literals(self) -> frozenset[str] | None:
        """The names, when the patterns are plain names only, so that a walk may look no further; else None."""
        plain = self._names is _NOTHING and self._paths is _NOTHING
        return self._literals if plain else None


def _either(sources: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{source})" for source in sources), re.DOTALL) if sources else _NOTHING


def _parse(text: str) -> tuple[bool, bool, bool, str]:
    """Split a pattern into: negated, directories only, anchored, and what is left. Empty when it says nothing."""
    body = text.rstrip("\n")
    while body.endswith(" ") and not body.endswith("\\ "):
        body = body[:-1]
    if body.startswith("#"):
        return False, False, False, ""
    negated = body.startswith("!")
    body = body.removeprefix("!")
    directories_only = body.endswith("/")
    body = body.rstrip("/")
    anchored = "/" in body
    return negated, directories_only, anchored, body.removeprefix("/")


def _translate(body: str) -> str:
    """The regular expression of a pattern. A `[` without its `]` stands for itself."""
    parts = []
    index = 0
    while index < len(body):
        character = body[index]
        if body.startswith("**/", index) and (index == 0 or body[index - 1] == "/"):
            parts.append("(?:[^/]+/)*")
            index += 3
            continue
        if body[index:] == "**" and (index == 0 or body[index - 1] == "/"):
            parts.append(".+")
            break
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "\\" and index + 1 < len(body):
            index += 1
            parts.append(re.escape(body[index]))
        elif character == "[" and (end := _class_end(body, index)):
            parts.append(_class(body[index + 1 : end]))
            index = end
        else:
            parts.append(re.escape(character))
        index += 1
    return "".join(parts)


def _class_end(body: str, start: int) -> int:
    """Where the `]` of the class at `start` is, or 0. A `]` directly after `[` or `[!` is a member."""
    first = start + 2 if body[start + 1 : start + 2] in {"!", "^"} else start + 1
    return body.find("]", first + 1) if first < len(body) and body.find("]", first + 1) > 0 else 0


def _class(members: str) -> str:
    negated = members[:1] in {"!", "^"}
    if negated:
        members = members[1:]
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", members)
    try:
        re.compile(f"[{escaped}]")
    except re.error:  # `[z-a]`: a range that holds nothing
        return "(?!)"
    return f"(?!/)[{'^' if negated else ''}{escaped}]"
