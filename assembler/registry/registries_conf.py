"""What `registries.conf` says, version 2: containers-registries.conf(5) and containers-registries.conf.d(5).

Which files count, how they are laid over each other, and which `[[registry]]` table means a reference. Reading
TOML is `registries_parse`, imported where there is something to read: `peek` stands on this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from assembler.oci.reference import DOCKER_HUB, Reference

ETC = Path("/etc")
AUTH_FILES = "containers-auth.json"
"""The entry of `credential-helpers` that means the files of containers-auth.json(5)."""

PullFrom = Literal["all", "digest-only", "tag-only"]
ShortNameMode = Literal["enforcing", "permissive", "disabled"]


@dataclass(frozen=True, slots=True)
class Mirror:
    """A `[[registry.mirror]]` table: another place that may have what is below the prefix."""

    location: str
    insecure: bool = False
    pull_from: PullFrom = "all"

    def serves(self, reference: Reference, *, blob: bool) -> bool:
        """May this mirror be asked? A blob is always asked for by its digest, whatever named its image."""
        if self.pull_from == "digest-only":
            return blob or reference.digest is not None
        return self.pull_from == "all" or reference.digest is None


@dataclass(frozen=True, slots=True)
class RegistryTable:
    """A `[[registry]]` table. `location` replaces the prefix; None where what was written is where it is."""

    prefix: str
    location: str | None = None
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Alias:
    """What a short name stands for; an empty `name` takes the alias of an earlier file back."""

    name: str
    file: Path


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """One file, or several laid over each other. None where nothing is said."""

    tables: Mapping[str, RegistryTable] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    search: tuple[str, ...] | None = None
    search_file: Path | None = None
    short_name_mode: ShortNameMode | None = None
    credential_helpers: tuple[str, ...] | None = None

    def under(self, later: RegistriesConf) -> RegistriesConf:
        """This file with a later one over it: tables of the same prefix and lists are replaced whole."""
        search = later if later.search is not None else self
        return RegistriesConf(
            tables={**self.tables, **later.tables},
            aliases={**self.aliases, **later.aliases},
            search=search.search,
            search_file=search.search_file,
            short_name_mode=later.short_name_mode or self.short_name_mode,
            credential_helpers=self.credential_helpers
            if later.credential_helpers is None
            else later.credential_helpers,
        )

    def find(self, reference: Reference) -> RegistryTable | None:
        """The table that means this reference: of those whose prefix fits the one with the longest."""
        name = canonical(reference)
        fitting = (table for table in self.tables.values() if tail(name, table.prefix) is not None)
        return max(fitting, key=lambda table: len(table.prefix), default=None)


def canonical(reference: Reference) -> str:
    """The whole reference with docker.io under the name that configuration files have for it."""
    text = Reference.__str__(reference)
    return DOCKER_HUB + text.removeprefix("index.docker.io") if reference.registry == "index.docker.io" else text


def tail(name: str, prefix: str) -> str | None:
    """What follows a prefix in a full reference; None when the reference is not below it.

    A prefix ends at a `/`, below a registry also at a `:` or `@`. (A host is not taken for the same host with a
    port, which containers' own code does by accident and announces to change.)

    >>> tail("quay.io/team/app:1", "quay.io/team"), tail("quay.io/teams/app", "quay.io/team")
    ('/app:1', None)
    >>> tail("eu.example.com:5000/app", "*.example.com")
    ':5000/app'
    """
    if prefix.startswith("*."):
        host, slash, rest = name.partition("/")
        bare, colon, port = host.partition(":")
        return f"{colon}{port}{slash}{rest}" if bare.endswith(prefix[1:]) else None
    if not name.startswith(prefix):
        return None
    rest = name[len(prefix) :]
    return rest if not rest or rest[0] == "/" or ("/" in prefix and rest[0] in ":@") else None


def config_directory(environment: Mapping[str, str]) -> Path:
    """The user's `containers` directory."""
    home = Path(environment.get("HOME") or "~").expanduser()
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "containers"


def registries_files(environment: Mapping[str, str], etc: Path = ETC) -> Iterator[Path]:
    """The files in the order in which they are read; each is laid over those before it.

    One main file: `CONTAINERS_REGISTRIES_CONF`, else the user's, else the system's. Then the drop-ins, the
    system's and the user's; of a user who has a main file only the user's.
    """
    system, user = etc / "containers", config_directory(environment)
    named = environment.get("CONTAINERS_REGISTRIES_CONF")
    main = user / "registries.conf"
    users_own = not named and main.exists()
    if named:
        yield Path(named)
    else:
        yield main if users_own else system / "registries.conf"
    for directory in (user,) if users_own else (system, user):
        drop_ins = directory / "registries.conf.d"
        yield from sorted(path for path in _entries(drop_ins) if path.suffix == ".conf")


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def read_registries(environment: Mapping[str, str], etc: Path = ETC) -> RegistriesConf:
    """All files laid over each other. NodeError names the file, and the key, that cannot be understood."""
    found = RegistriesConf()
    for path in registries_files(environment, etc):
        text = _text(path)
        if any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
            from assembler.registry.registries_parse import parse_registries

            found = found.under(parse_registries(path, text))
    return found


def mentions(environment: Mapping[str, str], reference: Reference, etc: Path = ETC) -> bool:
    """Could a `[[registry]]` table mean this reference? Looks at text alone, and says yes rather too often."""
    hosts = (reference.registry, DOCKER_HUB) if "docker.io" in reference.registry else (reference.registry,)
    for path in registries_files(environment, etc):
        for line in _text(path).splitlines():
            if line.lstrip().startswith("#") or not ("location" in line or "prefix" in line):
                continue
            if "*." in line or any(host in line for host in hosts):
                return True
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
