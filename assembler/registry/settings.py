"""Where a registry is and whose credentials count there, as the field's own configuration files say.

- `registries.conf` (containers-registries.conf(5)): where a reference is asked for, what comes before it, what is
  insecure or blocked. `Settings.home` and `Settings.mirrors` turn a reference into places; nothing else does.
- `certs.d` (containers-certs.d(5)): directories with certificates, `certificates` reads them.
- `auth.json` (containers-auth.json(5)) and docker's `config.json`: which files hold credentials, in which order.

What the user wrote stays the name of a thing, in the lock and in everything that is printed.

Unlike podman's, our pushes honour `location`: a reference is one place, whoever reads or writes there; they never
go to a mirror. Standard library only and quick to import, because `peek` stands on it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from assembler.errors import NodeError
from assembler.oci.reference import DOCKER_HUB, Reference
from assembler.registry.registries_conf import (
    AUTH_FILES,
    ETC,
    RegistriesConf,
    RegistryTable,
    canonical,
    config_directory,
    read_registries,
    tail,
)

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

    @property
    def name(self) -> str:
        """The host as configuration files call it."""
        return DOCKER_HUB if self.host == _HUB_HOST else self.host


@dataclass(frozen=True, slots=True)
class Located(Reference):
    """A reference as the registry that is asked knows it. `written` is the name that the user knows it by."""

    endpoint: Endpoint = field(kw_only=True)
    written: str = field(kw_only=True)
    is_mirror: bool = field(kw_only=True, default=False)

    def __str__(self) -> str:
        own = Reference.__str__(self)
        return (
            own if self.written == self.name else f"{self.written}{own.removeprefix(self.name)} (at {self.name})"
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration files say. `insecure` names registries, `registry/namespace` or `*.domain`, beside
    those that `registries` calls so; `certificate_roots` are `certs.d` directories, the first that knows a host
    counts.
    """

    insecure: frozenset[str] = frozenset()
    credential_files: tuple[Path, ...] = field(default=())
    registries: RegistriesConf = field(default_factory=RegistriesConf)
    certificate_roots: tuple[Path, ...] = ()

    def home(self, reference: Reference) -> Located:
        """The registry itself: where pushes go, and pulls that no mirror serves.

        NodeError names the file that blocks it, or whose `location` makes no reference.
        """
        if isinstance(reference, Located):
            return reference
        table = self.registries.find(reference)
        _refuse_blocked(table, reference)
        if table is None or table.location is None:
            return self._located(reference, reference, insecure=table is not None and table.insecure)
        found = _moved(reference, table, table.location)
        _refuse_blocked(self.registries.find(found), reference)
        return self._located(reference, found, insecure=table.insecure)

    def mirrors(self, reference: Reference, *, blob: bool = False) -> tuple[Located, ...]:
        """Where to ask before `home`, in order, for the image that this names or for a `blob` of it.

        A registry that is blocked may have mirrors: then they are all there is.
        """
        table = None if isinstance(reference, Located) else self.registries.find(reference)
        found = []
        for mirror in table.mirrors if table else ():
            if table and mirror.serves(reference, blob=blob):
                moved = _moved(reference, table, mirror.location)
                other = self.registries.find(moved)
                if other is None or not other.blocked:
                    found.append(self._located(reference, moved, insecure=mirror.insecure, is_mirror=True))
        return tuple(found)

    def neighbours(self, target: Reference, others: Iterable[Reference | None]) -> tuple[str, ...]:
        """The repositories of those others that lie in the target's registry, as that knows them, but its own."""
        home = self.home(target)
        near: dict[str, None] = {}
        for other in filter(None, others):
            with contextlib.suppress(NodeError):  # blocked: it came from a mirror
                place = self.home(other)
                if place.endpoint == home.endpoint and place.repository != home.repository:
                    near[place.repository] = None
        return tuple(near)

    def is_plain(self, reference: Reference) -> bool:
        """Is it asked for just where its name says, by rules that nothing but `insecure` changes?"""
        table = self.registries.find(reference)
        plain = table is None or not (table.location or table.mirrors or table.blocked)
        return plain and self.certificates(self.home(reference).endpoint) is None

    def certificates(self, endpoint: Endpoint) -> Path | None:
        """The directory with the certificates for a host, or None."""
        places = (root / endpoint.name for root in self.certificate_roots)
        return next((place for place in places if place.is_dir()), None)

    @property
    def credential_helpers(self) -> tuple[str, ...]:
        """Where credentials are looked for, in order: AUTH_FILES for the files, else a helper's name."""
        return self.registries.credential_helpers or (AUTH_FILES,)

    def _located(
        self, reference: Reference, found: Reference, *, insecure: bool, is_mirror: bool = False
    ) -> Located:
        if found.registry in _HUB_NAMES:
            endpoint = Endpoint(_HUB_HOST)
        else:
            named = any(tail(canonical(found), prefix) is not None for prefix in self.insecure)
            insecure = insecure or named or is_loopback(found.registry)
            endpoint = Endpoint(found.registry, "insecure" if insecure else "verified")
        return Located(
            registry=found.registry,
            repository=found.repository,
            tag=found.tag,
            digest=found.digest,
            endpoint=endpoint,
            written=reference.name,
            is_mirror=is_mirror,
        )


def read_settings(environment: Mapping[str, str] | None = None, *, etc: Path = ETC) -> Settings:
    """The settings of this user on this machine. A file that is missing says nothing.

    NodeError names a `registries.conf` that cannot be understood.
    """
    environment = os.environ if environment is None else environment
    return Settings(
        credential_files=credential_files(environment),
        registries=read_registries(environment, etc),
        certificate_roots=certificate_roots(environment, etc),
    )


def certificate_roots(environment: Mapping[str, str], etc: Path = ETC) -> tuple[Path, ...]:
    """The `certs.d` directories: the user's, the system's, docker's."""
    return (config_directory(environment) / "certs.d", etc / "containers/certs.d", etc / "docker/certs.d")


def credential_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Files that may hold credentials, the first that has some wins.

    `REGISTRY_AUTH_FILE` stands alone when it is set, as for podman, buildah and skopeo.
    """
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return (Path(named),)
    home = Path(environment.get("HOME") or "~").expanduser()
    runtime = environment.get("XDG_RUNTIME_DIR")
    user = environment.get("_CONTAINERS_ROOTLESS_UID") or os.getuid()  # also in a user namespace
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
    return (
        Path(runtime or f"/run/containers/{user}", "containers/auth.json" if runtime else "auth.json"),
        config_directory(environment) / "auth.json",
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
        yield from (f"https://{reference.registry}{end}" for end in ("", "/", "/v1/", "/v2/"))


def is_loopback(host: str) -> bool:
    """Is this `localhost`, 127.0.0.0/8 or ::1, with or without a port?"""
    name = host.rpartition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0]
    return name in ("localhost", "::1") or name.endswith(".localhost") or name.startswith("127.")


def _refuse_blocked(table: RegistryTable | None, reference: Reference) -> None:
    if table and table.blocked:
        raise NodeError(
            f"the registry is blocked: `{table.prefix}` in {table.file} has `blocked = true`",
            place=str(reference),
            hint="name another image, or ask whoever keeps that file",
        )


def _moved(reference: Reference, table: RegistryTable, location: str) -> Reference:
    """The reference with the table's prefix replaced by a location."""
    text = f"{location}{tail(canonical(reference), table.prefix) or ''}"
    try:
        found = Reference.parse(text)
    except ValueError:
        found = None
    if found is None or not text.startswith(f"{found.registry}/"):
        raise NodeError(
            f"`{table.prefix}`: the location `{location}` makes `{text}` of it, which is no image of a registry",
            place=str(table.file),
            hint="a location is HOST[:PORT][/NAMESPACE], see containers-registries.conf(5)",
        )
    return found
