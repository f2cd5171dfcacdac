"""Looking up credentials in the files that podman, docker and their helpers keep.

containers-auth.json(5), docker's `config.json`, and docker's protocol for credential helpers. The lookup is ours:
oras-py merges files in the order of a set, knows neither the keys for namespaces nor identity tokens, and waits
for a helper for ever.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from assembler.errors import NodeError, RegistryError
from assembler.oci.reference import Reference
from assembler.process import exit_name, run, which
from assembler.registry.authentication import Credentials
from assembler.registry.registries_conf import AUTH_FILES
from assembler.registry.settings import credential_keys

HELPER_SECONDS = 60.0
_ANSWER_LIMIT = 1 << 20
_NOT_FOUND = ("not found", "no credentials", "no usernames")
"""What helpers say of a server that they know nothing of; docker's own library has the first two."""
_HUB_KEY = "https://index.docker.io/v1/"


def find_credentials(
    reference: Reference, files: Sequence[Path], helpers: Sequence[str] = (AUTH_FILES,)
) -> Credentials | None:
    """The credentials for a repository: first file that has some, most specific key in it.

    `helpers` are asked in order, with AUTH_FILES for the files (`credential-helpers` of registries.conf). In a
    file a helper for the registry comes first, then `auths`, then the helper for all.
    RegistryError when a file is there and cannot be read as JSON, or a helper hangs, fails or talks nonsense.
    """
    for name in helpers:
        found = (
            _in_files(reference, files)
            if name == AUTH_FILES
            else _ask_any(name, reference, "credential-helpers in registries.conf")
        )
        if found:
            return found
    return None


def _in_files(reference: Reference, files: Sequence[Path]) -> Credentials | None:
    keys = list(credential_keys(reference))
    for path in files:
        config = _read(path)
        if config is None:
            continue
        for key in keys:
            name = config["credHelpers"].get(key)
            if name and (found := _ask(str(name), key, str(path))):
                return found
        for key in keys:
            if found := _written(config["auths"].get(key)):
                return found
        if config["credsStore"] and (found := _ask_any(str(config["credsStore"]), reference, str(path))):
            return found
    return None


def _written(entry: object) -> Credentials | None:
    """What an entry of `auths` says itself."""
    if not isinstance(entry, dict):
        return None
    if token := entry.get("identitytoken"):
        return Credentials(identity_token=str(token))
    if basic := entry.get("auth"):
        return Credentials.from_basic(str(basic))
    user, password = entry.get("username"), entry.get("password")
    return _credentials(str(user), str(password)) if user and password else None


def _credentials(user: str, secret: str) -> Credentials:
    return Credentials.from_basic(base64.b64encode(f"{user}:{secret}".encode()).decode())


def _ask_any(name: str, reference: Reference, place: str) -> Credentials | None:
    """Ask a helper that is there for all registries. One that is missing or fails may still not be needed here: a
    `config.json` travels from desk to cluster, and most images are public.
    """
    for server in _servers(reference):
        if which(f"docker-credential-{name}") and (found := _ask(name, server, place, lenient=True)):
            return found
    return None


def _servers(reference: Reference) -> Iterator[str]:
    """What docker, then podman calls a registry when it talks to helpers."""
    keys = list(credential_keys(reference))
    if _HUB_KEY in keys:
        yield _HUB_KEY
    yield next(key for key in keys if "/" not in key)


def _ask(name: str, server: str, place: str, *, lenient: bool = False) -> Credentials | None:
    """One question to a helper. The server goes in by stdin, and nothing that it says is ever shown: it may be a
    secret.
    """
    program = f"docker-credential-{name}"
    hint = f"try it by hand: `echo {server} | {program} get`"
    try:
        done = run([program, "get"], input_bytes=server.encode(), check=False, seconds=HELPER_SECONDS)
    except NodeError as error:
        raise RegistryError(
            f"the credential helper for `{server}` is missing: {error.fact}",
            place=place,
            hint=f"install it, or take `{server}` out of `credHelpers` and log in: `podman login {server}`",
        ) from None
    except TimeoutError:
        fact = f"`{program}` gave no credentials for `{server}` within {HELPER_SECONDS:.0f} seconds"
        raise RegistryError(fact, place=place, hint=hint) from None
    if done.returncode:
        said = (done.stdout[:_ANSWER_LIMIT] + done.stderr[:_ANSWER_LIMIT]).lower()
        if lenient or any(text in said for text in _NOT_FOUND):
            return None
        fact = f"`{program}` {exit_name(done.returncode)}, asked for the credentials for `{server}`"
        raise RegistryError(fact, place=place, hint=hint)
    try:
        value: Any = json.loads(done.stdout[:_ANSWER_LIMIT])
        user, secret = value["Username"], value["Secret"]
    except (ValueError, KeyError, TypeError):
        fact = f"`{program}` gave no credentials for `{server}`: expected JSON with `Username` and `Secret`"
        raise RegistryError(fact, place=place, hint=hint) from None
    return _credentials(str(user), str(secret)) if secret else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise RegistryError(
            f"expected JSON: {error}", place=str(path), hint="log in again to rewrite it"
        ) from None
    if not isinstance(value, dict):
        raise RegistryError("expected a JSON object", place=str(path), hint="log in again to rewrite it")
    return {
        "auths": _object(value.get("auths")),
        "credHelpers": _object(value.get("credHelpers")),
        "credsStore": value.get("credsStore"),
    }


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
