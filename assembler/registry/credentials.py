"""Looking up credentials in the files that podman, docker and their helpers keep.

The order of files and of keys is ours (oras-py merges files in the order of a set, and knows neither the keys for
namespaces nor identity tokens); what one key of one file means, helpers included, is oras's to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assembler.errors import RegistryError
from assembler.oci.reference import Reference
from assembler.registry.authentication import Credentials
from assembler.registry.settings import credential_keys

Ask = Callable[[Mapping[str, Any], str], str | None]
"""(one parsed file, key) → base64 of `user:password`, or None."""


def find_credentials(reference: Reference, files: Sequence[Path], ask: Ask) -> Credentials | None:
    """The credentials for a repository: first file that has some, most specific key in it.

    RegistryError when a file is there and cannot be read as JSON, or a helper fails badly.
    """
    for path in files:
        config = _read(path)
        if config is None:
            continue
        for key in credential_keys(reference):
            if found := _in_file(config, key, ask, path):
                return found
    return None


def _in_file(config: Mapping[str, Any], key: str, ask: Ask, path: Path) -> Credentials | None:
    """One key of one file. Helpers are asked only for keys that can be theirs: running one takes time."""
    auths = config["auths"]
    entry = auths.get(key)
    if isinstance(entry, dict) and entry.get("identitytoken"):
        return Credentials(identity_token=str(entry["identitytoken"]))
    helped = key in config["credHelpers"] or (config["credsStore"] and _is_host(key))
    if not helped and not (isinstance(entry, dict) and entry.get("auth")):
        return None
    try:
        basic = ask({**config, "auths": dict(auths)}, key)
    except Exception as error:  # a helper's output may be anything; its text may hold a secret, so it is not shown
        fact = f"the credentials for `{key}` cannot be read: {type(error).__name__}"
        raise RegistryError(fact, place=str(path), hint="try the credential helper by hand") from None
    return Credentials.from_basic(basic) if basic else None


def _is_host(key: str) -> bool:
    return "/" not in key or key == "https://index.docker.io/v1/"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_text()
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
        "auths": value.get("auths") or {},
        "credHelpers": value.get("credHelpers") or {},
        "credsStore": value.get("credsStore"),
    }
