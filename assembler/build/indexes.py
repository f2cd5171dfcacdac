"""Where a step's commands fetch from: the user's own settings of pip and cargo, as far as they say just that.

The files are written anew for the container. What else the user's settings hold, compiler flags above all, is left
out: it would change what is built, and is in no key.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from assembler.build.index_settings import DEFAULT_INDEX, read_settings
from assembler.build.mounting import Mount

PIP: Final = "/etc/pip.conf"
CARGO: Final = "/.cargo/config.toml"
"""Above every directory that cargo is started in, so that a project's own settings win."""

_CARGO_TABLES: Final = ("source", "registry", "registries", "net", "http")


def index_settings(scratch: Path, environment: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
    """Settings files for the container, written into `scratch`; none where the user has nothing to say."""
    env = os.environ if environment is None else environment
    texts = {PIP: _pip(env), CARGO: _cargo(env)}
    mounts = []
    for target, text in texts.items():
        if text:
            path = scratch / target.strip("/").replace("/", "-")
            path.touch(mode=0o600)  # a URL may have a password in it
            path.write_text(text)
            mounts.append(Mount(source=path, target=target))
    return tuple(mounts)


def _pip(env: Mapping[str, str]) -> str:
    settings = read_settings(env)
    if not settings.default and not settings.extra:
        return ""
    lines = ["[global]", f"index-url = {settings.default or DEFAULT_INDEX}"]
    if settings.extra:
        lines.append("extra-index-url = " + "\n    ".join(settings.extra))
    return "\n".join([*lines, ""])


def _cargo(env: Mapping[str, str]) -> str:
    home = Path(env.get("CARGO_HOME") or Path(env.get("HOME", "/")) / ".cargo")
    for path in (home / "config.toml", home / "config"):
        try:
            found = tomllib.loads(path.read_text())
        except (OSError, ValueError):
            continue
        kept = {name: found[name] for name in _CARGO_TABLES if isinstance(found.get(name), dict)}
        kept.get("http", {}).pop("cainfo", None)  # a path of the host; its certificates are there anyway
        return "".join(_tables(kept, ()))
    return ""


def _tables(table: Mapping[str, Any], name: tuple[str, ...]) -> Iterator[str]:
    """TOML of a table of scalars, lists of scalars and tables; strings, numbers and lists are as in JSON."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    if name and plain:
        yield f"[{'.'.join(json.dumps(part) for part in name)}]\n"
    for key, value in plain.items():
        if isinstance(value, str | int | float | list):
            yield f"{json.dumps(key)} = {json.dumps(value)}\n"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _tables(value, (*name, key))
