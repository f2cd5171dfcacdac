"""Where a registry is and whose credentials count there, as the field's own configuration files say.

- `registries.conf` (containers-registries.conf(5)): which registries are insecure. Mirrors belong here, too:
  `Settings.endpoint` is the one place that turns a registry's name into a host.
- `auth.json` (containers-auth.json(5)) and docker's `config.json`: which files hold credentials, in which order.

Standard library only and quick to import, because `peek` stands on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from assembler.errors import NodeError
from assembler.oci.reference import DOCKER_HUB, Reference

_HUB_HOST = "registry-1.docker.io"
_HUB_NAMES = (DOCKER_HUB, "index.docker.io", _HUB_HOST)
_HUB_KEYS = (DOCKER_HUB, "https://index.docker.io/v1/", "index.docker.io", _HUB_HOST)

Security = Literal["verified", "insecure"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host (with its port) that speaks the distribution API.

    An `insecure` one may speak plain HTTP or show a certificate that nobody vouches for; which of the two is
    found out by whoever connects.
    """

    host: str
    security: Security = "verified"

    @property
    def loopback(self) -> bool:
        """Is this host the machine itself? No proxy stands between then."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration files say. `insecure` holds registries, `registry/namespace` or `*.domain`."""

    insecure: frozenset[str] = frozenset()
    credential_files: tuple[Path, ...] = field(default=())

    def endpoint(self, reference: Reference) -> Endpoint:
        """The host to ask for this reference. Mirrors will come before it."""
        if reference.registry in _HUB_NAMES:
            return Endpoint(_HUB_HOST)
        insecure = is_loopback(reference.registry) or any(_covers(prefix, reference) for prefix in self.insecure)
        return Endpoint(reference.registry, "insecure" if insecure else "verified")


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this user on this machine. A file that is missing says nothing.

    NodeError names a `registries.conf` that is no TOML.
    """
    environment = os.environ if environment is None else environment
    insecure: set[str] = set()
    for path in _registries_files(environment):
        insecure |= _insecure_of(path)
    return Settings(frozenset(insecure), credential_files(environment))


def credential_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Files that may hold credentials, the first that has some wins.

    `REGISTRY_AUTH_FILE` stands alone when it is set, as for podman, buildah and skopeo.
    """
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return (Path(named),)
    home = Path(environment.get("HOME") or "~").expanduser()
    runtime = environment.get("XDG_RUNTIME_DIR")
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
    return (
        Path(runtime, "containers/auth.json") if runtime else Path(f"/run/containers/{os.getuid()}/auth.json"),
        config / "containers/auth.json",
        docker / "config.json",
    )


def credential_keys(reference: Reference) -> Iterator[str]:
    """The keys under which credentials for a repository may be filed, most specific first."""
    names = reference.repository.split("/")
    for count in range(len(names), 0, -1):
        yield "/".join((reference.registry, *names[:count]))
    if reference.registry in _HUB_NAMES:
        yield from _HUB_KEYS
    else:
        yield reference.registry
        yield from (f"https://{reference.registry}{tail}" for tail in ("", "/", "/v1/", "/v2/"))


def is_loopback(host: str) -> bool:
    """Is this `localhost`, 127.0.0.0/8 or ::1, with or without a port?"""
    name = host.rpartition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0]
    return name in ("localhost", "::1") or name.endswith(".localhost") or name.startswith("127.")


def _registries_files(environment: Mapping[str, str]) -> Iterator[Path]:
    if named := environment.get("CONTAINERS_REGISTRIES_CONF"):
        yield Path(named)
        return
    home = Path(environment.get("HOME") or "~").expanduser()
    config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    for directory in (config / "containers", Path("/etc/containers")):
        main = directory / "registries.conf"
        if main.exists():  # the user's own file replaces the system's
            yield main
            break
    for directory in (Path("/etc/containers"), config / "containers"):
        yield from sorted((directory / "registries.conf.d").glob("*.conf"))


def _insecure_of(path: Path) -> set[str]:
    try:
        text = path.read_text()
    except OSError:
        return set()
    if "insecure" not in text:
        return set()
    import tomllib

    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NodeError(
            f"expected TOML: {error}", place=str(path), hint="see containers-registries.conf(5)"
        ) from error
    entries = value.get("registry")
    return {
        str(entry.get("prefix") or entry.get("location"))
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and entry.get("insecure") is True
    }


def _covers(prefix: str, reference: Reference) -> bool:
    """Does an entry of `registries.conf` mean this reference? Its prefix ends at a `/`, `:` or `@`, or all."""
    if prefix.startswith("*."):
        domain, slash, rest = prefix[1:].partition("/")
        host = reference.registry.partition(":")[0]
        return host.endswith(domain) and (not slash or f"{reference.repository}/".startswith(f"{rest}/"))
    return f"{reference.name}/".startswith(f"{prefix}/") or f"{reference}".startswith((f"{prefix}:", f"{prefix}@"))
