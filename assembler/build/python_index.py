"""A Python package index, by its simple API (PEP 503, PEP 691, PEP 700): what files a project has.

Which index: what the user's uv or pip is set to, by environment or configuration file. The lock keeps project,
file name and hash but no URL, so that any mirror can serve it.
"""

from __future__ import annotations

import html.parser
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urljoin, urlsplit

from assembler.build.download import Patience, get, without_credentials
from assembler.build.index_settings import read_settings
from assembler.errors import ManifestError, RegistryError
from assembler.oci.digest import Digest

if TYPE_CHECKING:
    import requests

_ACCEPT: Final = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_SUFFIXES: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
_PAGE_LIMIT: Final = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFile:
    """A file that an index offers; hash and size when it states them."""

    name: str
    url: str
    digest: Digest | None
    size: int | None


def normalised(project: str) -> str:
    """The project's name as indexes and file names compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", project).lower()


def index_urls(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The indexes to ask, in order: extra ones first, as uv does, then the default one."""
    return read_settings(environment).urls()


def find_sdist(
    session: requests.Session,
    requirement: str,
    *,
    file_name: str | None = None,
    indexes: tuple[str, ...] | None = None,
    patience: Patience | None = None,
) -> IndexFile:
    """The source distribution of `name==version`; with `file_name`, exactly that file.

    ManifestError when no index has it, with the versions that there are; RegistryError when an index fails.
    """
    project, _, version = requirement.partition("==")
    indexes = indexes or index_urls()
    seen: list[str] = []
    for index in indexes:
        for file in project_files(session, index, project, patience=patience):
            found = sdist_version(file.name, project)
            if found is None:
                continue
            if file.name == file_name or (file_name is None and _same_version(found, version)):
                return file
            seen.append(found)
    what = f"`{file_name}`" if file_name else f"a source distribution of `{requirement}`"
    known = list(dict.fromkeys(seen))
    asked = ", ".join(without_credentials(index) for index in indexes)
    raise ManifestError(
        f"expected {what}, found {'other versions only' if known else 'none'}",
        place=asked,
        hint=f"it has {', '.join(known[-8:])}" if known else "check the name; a project may have wheels only",
    )


def sdist_version(file_name: str, project: str) -> str | None:
    """The version in the name of a source distribution of this project, or None when it is something else."""
    suffix = next((each for each in _SUFFIXES if file_name.endswith(each)), None)
    if suffix is None:
        return None
    stem = file_name.removesuffix(suffix)
    for match in re.finditer("-", stem):  # old files keep dashes in the project's name
        if normalised(stem[: match.start()]) == normalised(project):
            return stem[match.end() :]
    return None


def _same_version(found: str, wanted: str) -> bool:
    """Equal after the normalisations that file names undergo; `1.0` and `1.0.0` are the same (PEP 440)."""

    def plain(text: str) -> str:
        text = re.sub(r"[-_+]", ".", text.lower().removeprefix("v"))
        release = re.match(r"(?:\d+!)?\d+(?:\.\d+)*", text)
        head = re.sub(r"(\.0+)+$", "", release[0]) if release else ""
        return head + "|" + text[len(release[0]) if release else 0 :].lstrip(".")

    return plain(found) == plain(wanted)


def project_files(
    session: requests.Session, index: str, project: str, *, patience: Patience | None = None
) -> list[IndexFile]:
    """Every file of a project; none when the index does not know it."""
    url = f"{index}/{normalised(project)}/"
    response = get(session, url, accept=_ACCEPT, patience=patience)
    place = without_credentials(url)
    if response.status_code == 404:
        return []
    if response.status_code != 200:
        hint = (
            "credentials are taken from ~/.netrc or the index URL" if response.status_code in {401, 403} else None
        )
        raise RegistryError(f"the index answered {response.status_code} {response.reason}", place=place, hint=hint)
    if len(response.content) > _PAGE_LIMIT:
        raise RegistryError(f"expected at most {_PAGE_LIMIT} bytes", place=place)
    base = response.url
    try:
        if "json" in response.headers.get("Content-Type", ""):
            return _json_files(response.json(), base)
        return _html_files(response.text, base)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"expected a project page of the simple API, got something else: {error}", place=place
        ) from error


def _json_files(value: Any, base: str) -> list[IndexFile]:
    files = []
    for each in value["files"]:
        hexadecimal = each.get("hashes", {}).get("sha256")
        files.append(
            IndexFile(
                name=str(each["filename"]),
                url=urljoin(base, each["url"]),
                digest=Digest.from_hex(hexadecimal) if hexadecimal else None,
                size=each["size"] if isinstance(each.get("size"), int) else None,
            )
        )
    return files


class _Links(html.parser.HTMLParser):
    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "base" and href:
            self.base = urljoin(self.base, href)
        elif tag == "a" and href:
            self.found.append(href)


def _html_files(text: str, base: str) -> list[IndexFile]:
    links = _Links(base)
    links.feed(text)
    files = []
    for href in links.found:
        url, _, fragment = urljoin(links.base, href).partition("#")
        match = re.search(r"(?:^|&)sha256=([0-9a-f]{64})(?:&|$)", fragment)
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        files.append(IndexFile(name=name, url=url, digest=Digest.from_hex(match[1]) if match else None, size=None))
    return files
