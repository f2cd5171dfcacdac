"""What an image name without a registry means on this host.

Only for names that somebody types (`--base`, `inspect`). A manifest means the same on every host: there a name
without a registry is docker's, `docker.io/library/NAME`, whatever `registries.conf` says; so is a target of
`--push`. What a short name stood for is what counts from then on: the full name is in the plan, the lock and the
output.

The order is podman's: the aliases that podman has recorded, `[aliases]`, then `unqualified-search-registries`, and
docker's rule where none are set. We never ask on a terminal, and never try one registry after the other, as
`short-name-mode` would have it: who answers first could be anybody. Several registries are an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from assembler.errors import RequestError
from assembler.oci.reference import Reference
from assembler.registry.registries_conf import ETC, Alias, read_registries


def is_short(text: str) -> bool:
    """Is this a name without a registry? Its first component has no dot and no port, and is not `localhost`."""
    first, slash, _ = text.partition("@")[0].partition("/")
    return not slash or not (any(mark in first for mark in ".:[") or first == "localhost")


def full_name(
    text: str, environment: Mapping[str, str] | None = None, *, etc: Path = ETC, recorded: Path | None = None
) -> str:
    """The reference that a text means here: full names as they are, short ones with their registry.

    `recorded` is podman's own file of aliases, found by `recorded_aliases`.
    Raises ValueError for what is no reference, RequestError when several registries could be meant, NodeError for
    a configuration file that cannot be read.
    """
    parsed = Reference.parse(text)
    if not is_short(text):
        return text
    environment = os.environ if environment is None else environment
    name = _name(text)
    rest = text[len(name) :]
    conf = read_registries(environment, etc)
    alias = _aliases(recorded or recorded_aliases(environment, os.geteuid())).get(name) or conf.aliases.get(name)
    if alias and alias.name:
        return f"{alias.name}{rest}"
    if not conf.search:
        return str(parsed)
    if len(conf.search) > 1:
        raise RequestError(
            "the name has no registry, and more than one could be meant: "
            + ", ".join(f"`{registry}/{name}`" for registry in conf.search),
            place=text,
            hint=f"write the full name; {conf.search_file} has the list (`unqualified-search-registries`)",
        )
    return str(Reference.parse(f"{conf.search[0]}/{name}{rest}"))


def _name(text: str) -> str:
    """A short name without tag and digest."""
    name = text.partition("@")[0]
    head, colon, last = name.rpartition(":")
    return head if colon and "/" not in last else name


def recorded_aliases(environment: Mapping[str, str], user: int) -> Path:
    """Where podman writes down what somebody chose; it wins over `[aliases]`. Root's is the system's."""
    if user == 0:
        directory = Path("/var/cache")
    else:
        home = Path(environment.get("HOME") or "~").expanduser()
        directory = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    return directory / "containers/short-name-aliases.conf"


def _aliases(path: Path) -> Mapping[str, Alias]:
    try:
        text = path.read_text()
    except OSError:
        return {}
    from assembler.registry.registries_parse import parse_registries

    return parse_registries(path, text).aliases
