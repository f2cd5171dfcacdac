"""Which Python indexes this host's user has chosen: uv's and pip's own settings, by environment and files.

uv reads its own settings and none of pip's; people set either. What uv is silent about is therefore told to it
from pip's, in the environment of its process, because URLs may hold credentials and command lines are public.
Nothing of this is written into a lock.
"""

from __future__ import annotations

import configparser
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

DEFAULT_INDEX: Final = "https://pypi.org/simple"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """Where wheels come from. URLs may hold credentials: they are for requests, not for messages or locks.

    `default` is empty when nobody set one. `find_links` are directories and pages of links. `certificates` is a
    CA bundle, `trusted` are hosts whose certificates are not checked.
    """

    default: str = ""
    extra: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    certificates: str = ""
    trusted: tuple[str, ...] = ()

    def urls(self) -> tuple[str, ...]:
        """The indexes to ask, in order: extra ones first, as uv does, then the default one."""
        if self.no_index:
            return ()
        return tuple(dict.fromkeys(url.rstrip("/") for url in (*self.extra, self.default or DEFAULT_INDEX)))

    def local_directories(self) -> tuple[Path, ...]:
        """Those of `find_links` that are directories of this host."""
        places = (urlsplit(link).path if link.startswith("file:") else link for link in self.find_links)
        return tuple(Path(place).expanduser() for place in places if "://" not in place)

    def with_credentials(self, url: str) -> str:
        """`url` with user and password of an index on the same host, where one is set; else as it is."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or "@" in parts.netloc:
            return url
        for index in (*self.extra, self.default, *self.find_links):
            found = urlsplit(index)
            user, at, host = found.netloc.rpartition("@")
            if at and (found.scheme, host) == (parts.scheme, parts.netloc):
                return urlunsplit(parts._replace(netloc=f"{user}@{host}"))
        return url


def read_settings(environment: Mapping[str, str] | None = None) -> IndexSettings:
    """What uv is set to, and where it is silent, what pip is set to."""
    env = os.environ if environment is None else environment
    uv, pip = uv_settings(env), pip_settings(env)
    return IndexSettings(
        default=uv.default or pip.default,
        extra=tuple(dict.fromkeys((*uv.extra, *pip.extra))),
        find_links=uv.find_links or pip.find_links,
        no_index=uv.no_index or pip.no_index,
        certificates=uv.certificates or pip.certificates,
        trusted=uv.trusted or pip.trusted,
    )


def uv_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that tell uv what only pip is set to."""
    env = os.environ if environment is None else environment
    uv, pip = uv_settings(env), pip_settings(env)
    told: dict[str, str] = {}
    if pip.default and not uv.default:
        told["UV_DEFAULT_INDEX"] = pip.default
    if pip.extra and not uv.extra:
        told["UV_INDEX"] = " ".join(pip.extra)
    links = [link for link in pip.find_links if "://" in link or Path(link).expanduser().is_dir()]
    if links and not uv.find_links:
        told["UV_FIND_LINKS"] = ",".join(links)
    if pip.no_index and not uv.no_index:
        told["UV_NO_INDEX"] = "1"
    if pip.trusted and not uv.trusted:
        told["UV_INSECURE_HOST"] = " ".join(pip.trusted)
    if pip.certificates and not uv.certificates:
        told["SSL_CERT_FILE"] = pip.certificates
    return told


def uv_settings(env: Mapping[str, str]) -> IndexSettings:
    """What uv itself reads from the environment and from its own files of user and system."""
    files = list(_uv_files(env))
    default = next((_named(env[name]) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL") if env.get(name)), "")
    extra = [text for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL") for text in env.get(name, "").split()]
    links = [text.strip() for text in env.get("UV_FIND_LINKS", "").split(",") if text.strip()]
    for value in files:
        pip: dict[str, Any] = value.get("pip") or {}
        indexes = [each for each in value.get("index", []) if isinstance(each, dict) and "url" in each]
        default = (
            default
            or next((_with_login(each, env) for each in indexes if each.get("default")), "")
            or str(value.get("index-url") or pip.get("index-url") or "")
        )
        extra += [_with_login(each, env) for each in indexes if not (each.get("default") or each.get("explicit"))]
        extra += [*value.get("extra-index-url", []), *pip.get("extra-index-url", [])]
        links = links or [*value.get("find-links", []), *pip.get("find-links", [])]
    return IndexSettings(
        default=default,
        extra=tuple(dict.fromkeys(_with_login_of(text, env) for text in extra)),
        find_links=tuple(links),
        no_index=env.get("UV_NO_INDEX", "").lower() in _TRUE or any(value.get("no-index") for value in files),
        certificates=env.get("SSL_CERT_FILE", ""),
        trusted=tuple(env.get("UV_INSECURE_HOST", "").split()),
    )


def _named(text: str) -> str:
    """uv writes `name=URL`; the name is for credentials and for pinning."""
    name, equals, url = text.strip().partition("=")
    return url if equals and "/" not in name and ":" not in name else text.strip()


def _with_login_of(text: str, env: Mapping[str, str]) -> str:
    url = _named(text)
    return url if url == text else _with_login({"name": text.partition("=")[0], "url": url}, env)


def _with_login(index: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """The URL of a named index with the user and password that uv takes from the environment for it."""
    url = str(index["url"])
    name = "".join(c if c.isalnum() else "_" for c in str(index.get("name") or "")).upper()
    user, password = env.get(f"UV_INDEX_{name}_USERNAME", ""), env.get(f"UV_INDEX_{name}_PASSWORD", "")
    parts = urlsplit(url)
    if not name or not (user or password) or "@" in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{parts.netloc}"))


def _uv_files(env: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    config = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "/")) / ".config")
    chosen = env.get("UV_CONFIG_FILE")
    for path in [Path(chosen)] if chosen else [config / "uv/uv.toml", Path("/etc/uv/uv.toml")]:
        try:
            yield tomllib.loads(path.read_text())
        except (OSError, ValueError):
            continue


def pip_settings(env: Mapping[str, str]) -> IndexSettings:
    """What pip reads from the environment and from its files, the strongest first."""
    values: dict[str, str] = {}
    for name in ("index-url", "extra-index-url", "find-links", "no-index", "cert", "trusted-host"):
        values[name] = env.get("PIP_" + name.upper().replace("-", "_"), "").strip()
    for parser in _pip_files(env):
        for section in ("download", "install", "global"):
            for name, value in values.items():
                values[name] = value or parser.get(section, name, fallback="").strip()
    return IndexSettings(
        default=values["index-url"],
        extra=tuple(values["extra-index-url"].split()),
        find_links=tuple(values["find-links"].split()),
        no_index=values["no-index"].lower() in _TRUE,
        certificates=values["cert"],
        trusted=tuple(values["trusted-host"].split()),
    )


def _pip_files(env: Mapping[str, str]) -> Iterator[configparser.RawConfigParser]:
    home = Path(env.get("HOME", "/"))
    config = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    chosen = env.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return
    paths = [Path(sys.prefix) / "pip.conf", config / "pip/pip.conf", home / ".pip/pip.conf"]
    paths += [Path(each) / "pip/pip.conf" for each in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")]
    for path in [*([Path(chosen)] if chosen else []), *paths, Path("/etc/pip.conf")]:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.read_text())
        except (OSError, ValueError, configparser.Error):
            continue
        yield parser
