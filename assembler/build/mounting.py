"""What is bound into a container for a command: directories of the host, and its certificates for HTTPS.

buildah makes the places that it mounts on in the container's own file system and leaves them there. `Places` takes
them away again, so that a mount shows neither in a committed image nor in a layer.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.errors import NodeError

CERTIFICATES: Final = "/etc/ssl/assemble-ca.crt"
"""Where the host's CA bundle is in a container while a command with network runs."""

CERTIFICATE_VARIABLES: Final = (
    "SSL_CERT_FILE",
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)

_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, Red Hat
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/var/lib/ca-certificates/ca-bundle.pem",  # SUSE
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A file or directory of the host, seen in the container at the absolute path `target`.

    Secrets come in this way too: what is in a file is on no command line, and in no layer.
    """

    source: Path
    target: str
    read_only: bool = True

    @property
    def option(self) -> str:
        """The value of buildah's `--volume`."""
        source = self.source.resolve()
        for text in (str(source), self.target):
            if ":" in text:
                raise NodeError("buildah cannot mount a path with a colon in it", place=text)
        return f"{source}:{self.target}:{'ro' if self.read_only else 'rw'}"


def host_certificates() -> Path | None:
    """The host's CA bundle: the one that its environment names, or that of the distribution."""
    for place in (os.environ.get("SSL_CERT_FILE"), *_BUNDLES):
        if place and Path(place).is_file():
            return Path(place)
    return None


class Places:
    """The parts of mount targets that a root file system does not have, to be removed from it after the mounts.

    Every step goes through directory descriptors without following links, since a command in the container may
    have put a link to somewhere else in the way.
    """

    def __init__(self, root: Path, targets: Sequence[str]) -> None:
        self._root = root
        missing = {made for target in targets for made in self._missing(_parts(target))}
        self._missing_paths = sorted(missing, key=len, reverse=True)

    def _missing(self, parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for count in range(1, len(parts) + 1):
            if _status(self._root, parts[:count]) is None:
                yield parts[:count]

    def remove(self) -> None:
        """Remove what was missing and is there now, as far as it is still empty."""
        for parts in self._missing_paths:
            status = _status(self._root, parts)
            if status is None:
                continue
            with contextlib.suppress(OSError), _directory(self._root, parts[:-1]) as parent:
                if stat.S_ISDIR(status.st_mode):
                    os.rmdir(parts[-1], dir_fd=parent)
                elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
                    os.unlink(parts[-1], dir_fd=parent)


def _parts(target: str) -> tuple[str, ...]:
    return tuple(part for part in target.split("/") if part not in ("", "."))


@contextlib.contextmanager
def _directory(root: Path, parts: Sequence[str]) -> Iterator[int]:
    """A directory below `root`, reached without following a link; OSError where that is not possible."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            below = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _status(root: Path, parts: Sequence[str]) -> os.stat_result | None:
    """What is at a path below `root`; None when nothing is. A link on the way hides the rest: it is not ours."""
    try:
        with _directory(root, parts[:-1]) as parent:
            return os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return root.stat()
