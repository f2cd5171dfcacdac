"""Certificates for registries that speak TLS: an authority of the test's own, made by openssl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from support.registry import output_of

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """Somebody who vouches for others."""

    directory: Path

    @property
    def certificate(self) -> Path:
        """What has to be trusted."""
        return self.directory / "ca.crt"

    @classmethod
    def create(cls, directory: Path) -> Authority:
        """A new one, with its files in this directory."""
        directory.mkdir(parents=True, exist_ok=True)
        new = cls(directory)
        where = ("-keyout", str(directory / "ca.key"), "-out", str(new.certificate))
        output_of(["openssl", "req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={directory.name}", *where])
        return new

    def issue(self, name: str, *addresses: str) -> Pair:
        """A certificate for a server at these addresses, or for a client."""
        pair = Pair(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        request = self.directory / f"{name}.csr"
        names = ",".join(f"IP:{address}" for address in addresses) or f"DNS:{name}"
        made = ("-keyout", str(pair.key), "-out", str(request))
        subject = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={names}")
        output_of(["openssl", "req", "-new", *_KEY, *subject, *made])
        by = ("-CA", str(self.certificate), "-CAkey", str(self.directory / "ca.key"), "-CAcreateserial")
        signed = ("-copy_extensions", "copy", "-days", "2", "-out", str(pair.certificate))
        output_of(["openssl", "x509", "-req", "-in", str(request), *by, *signed])
        return pair
