"""Debian packages as the lock knows them: what apt said about them, and their files by hash.

A package in a lock is name, version, architecture, size, SHA-256 and the address that apt would have taken it
from. The hash is what counts: any address that yields these bytes will do. Archives drop superseded versions, so
the lock also remembers which state of which archive it saw, by which the archives' own histories
(snapshot.debian.org, snapshot.ubuntu.com) find a package for ever.
"""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from assembler.errors import LockError, StepError
from assembler.events import Emit
from assembler.oci.digest import Digest
from assembler.oci.layout import Store

if TYPE_CHECKING:
    from assembler.build.download import Patience

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION: Final = re.compile(r"[0-9][A-Za-z0-9.+:~-]*")
_ARCHITECTURE: Final = re.compile(r"[a-z0-9][a-z0-9-]*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SNAPSHOT: Final = re.compile(r"(debian|debian-security|ubuntu)/(\d{8}T\d{6}Z)")
_URL: Final = re.compile(r"(?:https?|file|copy):[^\s'\"]+")
_URI_LINE: Final = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+)(?: (?P<hash>\S*))?")
_FILE: Final = re.compile(r"(?P<name>[^_/]+)_(?P<version>[^_/]+)_(?P<architecture>[^_/]+)\.deb")
_LOCAL: Final = frozenset({"file", "copy"})
_SIZE_LIMIT: Final = 16 << 30
_THREADS: Final = 6

_HISTORY: Final = {
    "debian": "http://snapshot.debian.org/archive/debian/{stamp}/",
    "debian-security": "http://snapshot.debian.org/archive/debian-security/{stamp}/",
    "ubuntu": "https://snapshot.ubuntu.com/ubuntu/{stamp}/",
}
_ARCHIVES: Final = {
    ("Debian", "Debian"): "debian",
    ("Debian", "Debian-Security"): "debian-security",
    ("Ubuntu", "Ubuntu"): "ubuntu",
}
_STAMP: Final = "%Y%m%dT%H%M%SZ"
_SNAPSHOT_DELAY: Final = datetime.timedelta(hours=12)
"""A history takes a picture every six hours or so: the one that shows an archive's state is taken after it."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Package:
    """One .deb. `version` has its epoch, `size` is in bytes, `sha256` hexadecimal.

    `snapshot` is the archive and the time of the state in which apt saw the package, such as
    `debian-security/20250906T101112Z`, or empty for an archive without a public history.
    """

    name: str
    version: str
    architecture: str
    sha256: str
    size: int
    url: str
    snapshot: str = ""

    def __post_init__(self) -> None:
        for value, pattern, what in (
            (self.name, _NAME, "a package name"),
            (self.version, _VERSION, "a package version"),
            (self.architecture, _ARCHITECTURE, "an architecture"),
            (self.sha256, _SHA256, "the 64 hexadecimal digits of a SHA-256"),
            (self.url, _URL, "an http, https, file or copy URL"),
        ):
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise ValueError(f"expected {what}, got `{value!s:.200}`")
        if self.snapshot and not _SNAPSHOT.fullmatch(self.snapshot):
            raise ValueError(f"expected a snapshot such as `debian/20250906T101112Z`, got `{self.snapshot:.200}`")
        if not isinstance(self.size, int) or isinstance(self.size, bool) or not 0 < self.size <= _SIZE_LIMIT:
            raise ValueError(f"expected a size of 1 to {_SIZE_LIMIT} bytes, got `{self.size}`")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Package:
        """Read an entry of the lock; LockError when it is not one."""
        try:
            return cls(**value)
        except (TypeError, ValueError) as error:
            name = value.get("name") if isinstance(value, Mapping) else value
            raise LockError(
                f"the package `{name!s:.80}` of the lock is damaged: {error}", hint="`assemble lock --update`"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The fields for the lock, in the order that reads well."""
        fields: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "architecture": self.architecture,
            "sha256": self.sha256,
            "size": self.size,
            "url": self.url,
        }
        return {**fields, "snapshot": self.snapshot} if self.snapshot else fields

    @property
    def digest(self) -> Digest:
        """Under which the store has the file."""
        return Digest.from_hex(self.sha256)

    @property
    def label(self) -> str:
        """`name=version`, as apt takes it and people read it."""
        return f"{self.name}={self.version}"

    @property
    def filename(self) -> str:
        """The name of the file as apt gives it: the colon of an epoch is escaped."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"

    def addresses(self, mirrors: Sequence[str] = ()) -> Iterator[str]:
        """Where the file is, or once was: the recorded address, the mirrors, the history of its archive."""
        yield self.url
        _, pool, path = self.url.partition("/pool/")
        if not pool:
            return
        for mirror in mirrors:
            address = f"{mirror.rstrip('/')}/pool/{path}"
            if address != self.url:
                yield address
        if match := _SNAPSHOT.fullmatch(self.snapshot):
            archive, stamp = match.groups()
            seen = datetime.datetime.strptime(stamp, _STAMP).replace(tzinfo=datetime.UTC)
            for moment in (seen + _SNAPSHOT_DELAY, seen):
                yield _HISTORY[archive].format(stamp=moment.strftime(_STAMP)) + "pool/" + path


def parse_uris(text: str) -> tuple[Package, ...]:
    """Read what `apt-get -o Acquire::ForceHash=SHA256 --print-uris` printed, one line a file.

    Lines that do not begin with a quote are apt's remarks. StepError for a line that is not understood or names
    no SHA-256, as the sources of an archive without one would.
    """
    found: dict[Package, None] = {}
    for line in text.splitlines():
        if not line.startswith("'"):
            continue
        match = _URI_LINE.fullmatch(line.rstrip())
        name = _FILE.fullmatch(match["file"]) if match else None
        if not match or not name:
            raise StepError(f"`apt-get --print-uris` gave a line that is no package: `{line:.300}`")
        kind, _, digits = (match["hash"] or "").partition(":")
        if kind != "SHA256":
            raise StepError(
                f"apt knows no SHA-256 of `{match['file']:.200}`, got `{match['hash'] or 'nothing'!s:.100}`",
                hint="its archive is too old or not signed; take the package from another one",
            )
        try:
            package = Package(
                name=name["name"],
                version=unquote(name["version"]),
                architecture=name["architecture"],
                sha256=digits,
                size=int(match["size"]),
                url=_without_user(match["uri"]),
            )
        except ValueError as error:
            raise StepError(f"apt names a package that cannot be: {error}", place=f"{line:.300}") from error
        found[package] = None
    return tuple(sorted(found))


def _without_user(uri: str) -> str:
    """The URI without user and password: they belong into apt's auth.conf and ~/.netrc, never into a lock."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def with_snapshots(packages: Sequence[Package], lists: Path) -> tuple[Package, ...]:
    """The packages with their `snapshot`, read from the Release files of apt's lists directory."""
    states = _archive_states(lists)
    return tuple(replace(package, snapshot=states.get(_list_prefix(package.url), "")) for package in packages)


def _list_prefix(url: str) -> str:
    """How apt begins the names of the lists of the archive that a package address lies in."""
    base, pool, _ = url.partition("/pool/")
    return base.partition("://")[2].replace("_", "%5f").replace("/", "_") if pool else ""


def _archive_states(lists: Path) -> dict[str, str]:
    """List prefix → the newest state seen, for archives that have a history."""
    states: dict[str, str] = {}
    for path in sorted([*lists.glob("*_dists_*_InRelease"), *lists.glob("*_dists_*_Release")]):
        fields: dict[str, str] = {}
        with path.open(errors="replace") as file:
            for _, line in zip(range(40), file, strict=False):
                key, colon, value = line.partition(":")
                if colon and not key.startswith((" ", "-")):
                    fields.setdefault(key, value.strip())
        archive = _ARCHIVES.get((fields.get("Origin", ""), fields.get("Label", "")))
        try:
            date = email.utils.parsedate_to_datetime(fields.get("Date", ""))
        except ValueError:
            continue
        if archive:
            state = f"{archive}/{date.astimezone(datetime.UTC).strftime(_STAMP)}"
            prefix = path.name.partition("_dists_")[0]
            states[prefix] = max(state, states.get(prefix, ""))
    return states


def fetch(
    packages: Sequence[Package],
    store: Store,
    emit: Emit,
    *,
    mirrors: Sequence[str] = (),
    offline: bool = False,
    step: str = "",
    threads: int = _THREADS,
    patience: Patience | None = None,
) -> dict[Package, Path]:
    """The files of the packages, in the store: those that it has not are downloaded, several at a time.

    `mirrors` are base addresses (above `pool/`) to try after a package's own. Progress goes to `step` when it is
    named. Nobody is asked anything when the store has them all. The files are named by hash and must not be
    changed.

    LockError names every package that is gone from everywhere, or that is missing with `offline`; RegistryError
    when the archives cannot be reached.
    """
    paths = {package: store.blob_path(package.digest) for package in packages}
    missing = [package for package in paths if not store.has(package.digest)]
    if missing and offline:
        raise LockError(
            f"{_count(missing)} not in the store, and `--offline` forbids to fetch",
            detail=[package.label for package in missing],
        )
    if missing:
        from assembler.build.fetching import Fetching, Item

        items = [
            Item(
                label=package.label,
                digest=package.digest,
                size=package.size,
                addresses=partial(package.addresses, mirrors),
            )
            for package in sorted(missing, key=lambda package: -package.size)
        ]
        with Fetching(
            items, store, emit, noun="package", step=step, threads=threads, patience=patience
        ) as fetching:
            fetching.all()
    return paths


def _count(packages: Sequence[Package]) -> str:
    return "1 package is" if len(packages) == 1 else f"{len(packages)} packages are"
