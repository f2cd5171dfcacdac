"""The lock: what tags, versions and commits meant when somebody last asked.

One YAML file beside the manifest, `NAME.lock.yaml`, made for reviews: grouped by kind, sorted by name and key,
one value a line, so that equal locks are equal bytes and a changed version is a changed line. Requests and
answers are JSON values; texts that another type could be taken for are quoted, so that they come back exact.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

from assembler.errors import LockError, ManifestError
from assembler.manifest.source import Document, Steps, Tree, parse_document, show_value
from assembler.oci.digest import canonical_json

Kind = Literal["base", "source", "packages", "wheels"]
Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"

VERSION = 1
SIZE_LIMIT_BYTES = 64 << 20
KINDS: tuple[Kind, ...] = get_args(Kind)
_RENEW = "`assemble lock --update` writes it anew"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# Texts that mean themselves in every YAML version: a letter first, then nothing that YAML gives a meaning to.
_PLAIN = re.compile(r"(?:[A-Za-z_/][A-Za-z0-9_./+~=@-]*(?::[A-Za-z0-9_./+~=@-]+)*)")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
# Everything that YAML does not count as printable, which JSON leaves as it is.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class LockEntry:
    """What was asked for and what it meant. Kind and name identify an entry."""

    kind: Kind
    name: str
    request: Mapping[str, Json]
    answer: Mapping[str, Json]

    @property
    def identity(self) -> tuple[Kind, str]:
        """Kind and name."""
        return self.kind, self.name


@dataclass(frozen=True, slots=True)
class Lock:
    """Entries, sorted by kind and name, one for each. Changing gives a new lock."""

    entries: tuple[LockEntry, ...] = ()

    def answer(self, kind: Kind, name: str, request: Mapping[str, Json]) -> Mapping[str, Json] | None:
        """The answer to exactly this request; None when it is missing or something else was asked for."""
        entry = self.entry(kind, name)
        if entry is None or canonical_json(_plain_json(entry.request)) != canonical_json(_plain_json(request)):
            return None
        return entry.answer

    def entry(self, kind: Kind, name: str) -> LockEntry | None:
        """The entry, whatever it was asked for."""
        return next((entry for entry in self.entries if entry.identity == (kind, name)), None)

    def with_entry(self, entry: LockEntry) -> Lock:
        """The lock with this entry in the place of the one of the same kind and name."""
        others = [each for each in self.entries if each.identity != entry.identity]
        return Lock(tuple(sorted([*others, entry], key=_order)))

    def keeping(self, entries: Iterable[LockEntry | tuple[Kind, str]]) -> Lock:
        """The lock without what nobody asks for any more: only entries of these kinds and names stay."""
        kept = {each.identity if isinstance(each, LockEntry) else each for each in entries}
        return Lock(tuple(entry for entry in self.entries if entry.identity in kept))

    def __bool__(self) -> bool:
        return bool(self.entries)


def _order(entry: LockEntry) -> tuple[int, str]:
    return KINDS.index(entry.kind), entry.name


def lock_path(manifest: Path) -> Path:
    """Where the lock of a manifest lies: `tgi.lock.yaml` beside `tgi.yaml`."""
    return manifest.with_name(f"{manifest.stem}.lock.yaml")


def read_lock(path: Path) -> Lock:
    """The lock in the file, empty when there is no file; LockError when it is damaged or of another version."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Lock()
    except OSError as error:
        raise LockError((error.strerror or str(error)).lower(), place=str(path)) from error
    return parse_lock(data, str(path))


def parse_lock(data: bytes, name: str) -> Lock:
    """The lock in `data`; LockError, with its place, when it is none."""
    try:
        document = parse_document(data, name, limit_bytes=SIZE_LIMIT_BYTES)
    except ManifestError as error:
        raise LockError(error.fact, place=error.place, hint=_RENEW) from error
    if document.tree.get("lock") != str(VERSION):
        found = show_value(document.tree.get("lock"))
        fact = f"expected lock version `{VERSION}`, got {found}"
        raise LockError(
            fact, place=document.place(("lock",)), hint="it was written by another version of assemble"
        )
    entries: list[LockEntry] = []
    for kind, group in document.tree.items():
        if kind == "lock":
            continue
        if kind not in KINDS:
            raise LockError(f"unknown kind `{kind}`", place=document.place((kind,), of_key=True), hint=_RENEW)
        for entry_name, value in _mapping(document, (kind,), group).items():
            parts = _mapping(document, (kind, entry_name), value)
            if set(parts) != {"request", "answer"}:
                fact = "expected `request` and `answer`"
                raise LockError(fact, place=document.place((kind, entry_name)), hint=_RENEW)
            request, answer = (
                _typed(document, (kind, entry_name, part), parts[part]) for part in ("request", "answer")
            )
            for part, found_value in (("request", request), ("answer", answer)):
                _mapping(document, (kind, entry_name, part), found_value)
            entries.append(
                LockEntry(
                    kind=kind,
                    name=entry_name,
                    request=cast("Mapping[str, Json]", request),
                    answer=cast("Mapping[str, Json]", answer),
                )
            )
    return Lock(tuple(sorted(entries, key=_order)))


def render_lock(lock: Lock) -> str:
    """The text of the lock file; equal locks give equal texts."""
    lines = ["# Written by `assemble lock`; `assemble lock --update` renews it.", f"lock: {VERSION}"]
    for kind in KINDS:
        group = {
            entry.name: {"request": entry.request, "answer": entry.answer}
            for entry in lock.entries
            if entry.kind == kind
        }
        if group:
            lines.append(f"{kind}:")
            for name, parts in group.items():
                lines.append(f"  {_scalar(name)}:")
                for part in ("request", "answer"):
                    lines += _lines(f"    {part}:", parts[part], 6)
    return "\n".join(lines) + "\n"


def write_lock(path: Path, lock: Lock) -> None:
    """Replace the file, all or nothing; a file that says the same already is not touched. LockError on failure."""
    data = render_lock(lock).encode()
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if target.is_file() and target.read_bytes() == data:
            return
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = (error.strerror or str(error)).lower()
        raise LockError(f"the lock cannot be written: {reason}", place=str(path)) from error


def _mapping(document: Document, steps: Steps, value: object) -> Mapping[str, Tree]:
    if not isinstance(value, dict):
        fact = f"expected a mapping, got {show_value(value)}"
        raise LockError(fact, place=document.place(steps), hint=_RENEW)
    return value


def _typed(document: Document, steps: Steps, value: Tree) -> Json:
    """The JSON value of a tree: plain numbers, `true` and `false` are what they look like, the rest is text."""
    if isinstance(value, dict):
        return {key: _typed(document, (*steps, key), each) for key, each in value.items()}
    if isinstance(value, list):
        return [_typed(document, (*steps, index), each) for index, each in enumerate(value)]
    if value is None or steps in document.quoted:
        return value
    if value in {"true", "false"}:
        return value == "true"
    if _NUMBER.fullmatch(value):
        number: int | float = json.loads(value)
        return number
    return value


def _plain_json(value: Json) -> Json:
    """The value with lists for tuples and dictionaries for mappings, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain_json(each) for key, each in value.items()}
    return [_plain_json(each) for each in value] if isinstance(value, list | tuple) else value


def _lines(head: str, value: Json, indent: int) -> Iterator[str]:
    """`head` with the value after or below it."""
    space = " " * indent
    if value is None or isinstance(value, str | int | float):
        yield f"{head} {_scalar(value)}"
    elif isinstance(value, Mapping) and value:
        yield head
        for key in sorted(value):
            yield from _lines(f"{space}{_scalar(key)}:", value[key], indent + 2)
    elif value:
        yield head
        for each in value:
            # The first line of a mapping or list below stands on the line of the dash.
            inner = list(_lines("", each, indent + 2))
            first, *rest = inner[1:] if len(inner) > 1 else inner
            yield f"{space}- {first.strip()}"
            yield from rest
    else:
        yield f"{head} {'{}' if isinstance(value, Mapping) else '[]'}"


def _scalar(value: str | int | float | bool | None) -> str:
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS and len(value) < 1000:
            return value
        return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))
    return json.dumps(value, allow_nan=False)
