"""One `registries.conf` from TOML into a value: every key that we honour is checked, others are left alone.

Version 1 (`[registries.search]`, `[registries.insecure]`, `[registries.block]`), which podman still converts, has
been deprecated since 2019 and is refused: it cannot say what the newer keys mean together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

from assembler.errors import NodeError
from assembler.oci.reference import Reference
from assembler.registry.registries_conf import (
    Alias,
    Mirror,
    PullFrom,
    RegistriesConf,
    RegistryTable,
    ShortNameMode,
)

_HINT = "see containers-registries.conf(5)"
_NONE: Mapping[str, Any] = {}


def parse_registries(path: Path, text: str) -> RegistriesConf:
    """Read one file; NodeError names it and the key."""
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NodeError(f"expected TOML: {error}", place=str(path), hint=_HINT) from error
    file = _File(path)
    _refuse_version_1(file, value)
    tables: dict[str, RegistryTable] = {}
    for number, entry in enumerate(file.tables(value, "registry"), start=1):
        table = _table(file, entry, f"registry {number}")
        tables.setdefault(table.prefix, table)  # of one file the first counts
    search = file.texts(value, "unqualified-search-registries")
    return RegistriesConf(
        tables=tables,
        aliases={name: _alias(file, name, full) for name, full in file.mapping(value, "aliases").items()},
        search=None if search is None else tuple(each.rstrip("/") for each in search),
        search_file=path,
        short_name_mode=file.choice(value, "short-name-mode", get_args(ShortNameMode)),
        credential_helpers=file.texts(value, "credential-helpers"),
    )


@dataclass(frozen=True, slots=True)
class _File:
    """Reads values of known types; whatever else is there is an error that names file and key."""

    path: Path

    def wrong(self, key: str, expected: str, got: object) -> NoReturn:
        raise NodeError(f"`{key}`: expected {expected}, got `{got}`", place=str(self.path), hint=_HINT)

    def mapping(self, value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        found = value.get(key, _NONE)
        return found if isinstance(found, dict | type(_NONE)) else self.wrong(key, "a table", found)

    def tables(self, value: Mapping[str, Any], key: str, at: str = "") -> list[Mapping[str, Any]]:
        found = value.get(key, [])
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            self.wrong(f"{at}{key}", f"`[[{at and 'registry.'}{key}]]` tables", found)
        return found

    def texts(self, value: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
        found = value.get(key)
        if found is None:
            return None
        if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
            self.wrong(key, "an array of strings", found)
        return tuple(found)

    def flag(self, value: Mapping[str, Any], key: str, at: str) -> bool:
        found = value.get(key, False)
        return found if isinstance(found, bool) else self.wrong(f"{at}: {key}", "true or false", found)

    def choice(self, value: Mapping[str, Any], key: str, choices: tuple[str, ...], at: str = "") -> Any:
        found = value.get(key) or None
        if found is not None and found not in choices:
            self.wrong(f"{at}{key}", " or ".join(f"`{choice}`" for choice in choices), found)
        return found

    def location(self, value: Mapping[str, Any], key: str, at: str) -> str:
        """A host with perhaps a namespace; empty when it is not there."""
        found = value.get(key, "")
        if not isinstance(found, str) or "://" in found:
            self.wrong(f"{at}: {key}", "HOST[:PORT][/NAMESPACE] without a scheme", found)
        return found.rstrip("/")


def _refuse_version_1(file: _File, value: Mapping[str, Any]) -> None:
    """A file of version 1 that says anything. Distributions once shipped some with empty lists."""
    old = value.get("registries")
    parts = old.values() if isinstance(old, dict) else ()
    if any(isinstance(part, dict) and part.get("registries") for part in parts):
        raise NodeError(
            "expected version 2 of registries.conf, got version 1 (`[registries.search]` and the like)",
            place=str(file.path),
            hint="write `unqualified-search-registries = […]` and `[[registry]]` tables with `location`, "
            "`insecure` and `blocked` instead: containers-registries.conf(5)",
        )


def _table(file: _File, entry: Mapping[str, Any], at: str) -> RegistryTable:
    location, prefix = file.location(entry, "location", at), file.location(entry, "prefix", at)
    if not location and not prefix:
        file.wrong(at, "`location` or `prefix`", "neither")
    if prefix.startswith("*.") and any(mark in prefix for mark in "/:@"):
        file.wrong(f"{at}: prefix", "`*.` and a domain alone", prefix)
    if "pull-from-mirror" in entry:
        file.wrong(f"{at}: pull-from-mirror", "it in a `[[registry.mirror]]` table", entry["pull-from-mirror"])
    by_digest = file.flag(entry, "mirror-by-digest-only", at)
    return RegistryTable(
        prefix=prefix or location,
        location=location if location and prefix and location != prefix else None,
        insecure=file.flag(entry, "insecure", at),
        blocked=file.flag(entry, "blocked", at),
        mirrors=tuple(
            _mirror(file, mirror, f"{at}, mirror {number}", by_digest)
            for number, mirror in enumerate(file.tables(entry, "mirror", f"{at}: "), start=1)
        ),
        file=file.path,
    )


def _mirror(file: _File, entry: Mapping[str, Any], at: str, by_digest: bool) -> Mirror:
    location = file.location(entry, "location", at)
    if not location:
        file.wrong(at, "`location`", "none")
    pull_from: PullFrom | None = file.choice(entry, "pull-from-mirror", get_args(PullFrom), f"{at}: ")
    if pull_from and by_digest:
        file.wrong(f"{at}: pull-from-mirror", "either this or the registry's `mirror-by-digest-only`", "both")
    return Mirror(
        location=location,
        insecure=file.flag(entry, "insecure", at),
        pull_from=pull_from or ("digest-only" if by_digest else "all"),
    )


def _alias(file: _File, name: str, full: object) -> Alias:
    if full == "":
        return Alias("", file.path)
    try:
        reference = Reference.parse(full) if isinstance(full, str) else None
    except ValueError:
        reference = None
    if (
        reference is None
        or reference.tag
        or reference.digest
        or not f"{full}".startswith(f"{reference.registry}/")
    ):
        file.wrong(f"aliases: {name}", "REGISTRY/REPOSITORY without tag or digest", full)
    return Alias(reference.name, file.path)
