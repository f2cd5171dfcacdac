"""TLS as `certs.d` directories want it: containers-certs.d(5), which docker's `/etc/docker/certs.d` also follows.

`*.crt` are authorities beside those that the system trusts; `NAME.cert` with `NAME.key` is what we show to a
registry that asks who we are. Of several pairs the first by name counts.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from assembler.errors import NodeError, refused

_HINT = "see containers-certs.d(5)"


@dataclass(frozen=True, slots=True)
class Certificates:
    """What a directory holds: authorities, and the certificate and key that we show."""

    authorities: tuple[Path, ...] = ()
    own: tuple[Path, Path] | None = None


def read_certificates(directory: Path) -> Certificates:
    """List a directory. NodeError names a certificate without key, or a key without certificate.

    A directory that we may not read says nothing, as for podman.
    """
    try:
        files = {path.name: path for path in sorted(directory.iterdir())}
    except PermissionError:
        return Certificates()
    except OSError as error:
        raise NodeError(refused(error), place=str(directory)) from error
    pairs = []
    for name, path in files.items():
        other = {".cert": ".key", ".key": ".cert"}.get(path.suffix)
        if other and path.stem + other not in files:
            what = "a client certificate" if path.suffix == ".cert" else "the key of a client certificate"
            hint = f"a CA's certificate ends in `.crt`; {_HINT}" if path.suffix == ".cert" else _HINT
            raise NodeError(
                f"`{name}` is {what}, and there is no `{path.stem}{other}`", place=str(path), hint=hint
            )
        if path.suffix == ".cert":
            pairs.append((path, files[f"{path.stem}.key"]))
    return Certificates(
        authorities=tuple(path for path in files.values() if path.suffix == ".crt"),
        own=pairs[0] if pairs else None,
    )


def add_to(context: ssl.SSLContext, certificates: Certificates, *, own: bool) -> None:
    """Trust the authorities, and show our `own` certificate; NodeError names a file that is something else."""
    for path in certificates.authorities:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            fact = f"expected certificates in PEM form: {_why(error)}"
            raise NodeError(fact, place=str(path), hint=_HINT) from error
    if own and certificates.own:
        certificate, key = certificates.own
        try:
            context.load_cert_chain(
                certificate, key, password=lambda: b""
            )  # without it, OpenSSL asks the terminal
        except (OSError, ssl.SSLError, ValueError) as error:
            raise NodeError(
                f"expected a certificate and, in `{key.name}`, its key without a password: {_why(error)}",
                place=str(certificate),
                hint=_HINT,
            ) from error


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "unreadable").lower().replace("_", " ")
    return refused(error) if isinstance(error, OSError) else str(error)


def tls_hint(reason: str, host: str) -> str:
    """What to do about a TLS handshake that failed for this reason, as OpenSSL words it."""
    lowered = reason.lower().replace("_", " ")
    if "certificate required" in lowered or "alert handshake failure" in lowered or "bad certificate" in lowered:
        return f"the registry wants a client certificate: NAME.cert and NAME.key in certs.d/{host}, {_HINT}"
    return (
        f"put the registry's CA into /etc/containers/certs.d/{host}/ca.crt (or ~/.config/containers/certs.d), "
        "add it to the system, or call the registry insecure: `--insecure`, registries.conf"
    )
