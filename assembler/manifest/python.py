"""`wheels` layers: what Python packages the user asks for, where they go and for which Python."""

from __future__ import annotations

import posixpath
import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from assembler.manifest.fields import (
    AbsolutePath,
    Flag,
    Model,
    Requirement,
    Size,
    Text,
    size_bytes,
    wrong,
)
from assembler.manifest.steps import Word

_PROJECT: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_PYTHON: Final = re.compile(r"3\.[0-9]{1,2}(?:\.[0-9]{1,3})?")
_GLIBC: Final = re.compile(r"2\.[0-9]{1,3}")
_PYLOCK: Final = re.compile(r"pylock(?:\.[^.]+)?\.toml")
_SITE: Final = ("site-packages", "dist-packages")


def _python(text: str) -> str:
    if not _PYTHON.fullmatch(text):
        raise wrong("expected a version of Python such as `3.11`")
    return text


def _glibc(text: str) -> str:
    if not _GLIBC.fullmatch(text):
        raise wrong("expected a version of glibc such as `2.36`")
    return text


def _project(text: str) -> str:
    if not _PROJECT.fullmatch(text):
        raise wrong("expected the name of a project, without a version")
    return text


def _index(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https", "file"}:
        raise wrong("expected the URL of an index, such as `https://pypi.org/simple`")
    if "@" in parts.netloc:
        raise wrong(
            "expected a URL without user and password, got one with them",
            hint="put them into ~/.netrc, or set UV_INDEX_URL or PIP_INDEX_URL in the environment",
        )
    return text.rstrip("/")


def _requirement(text: str) -> str:
    """A requirement by the grammar of PEP 508; a URL in it holds no credentials, for it goes into the lock."""
    from packaging.requirements import InvalidRequirement
    from packaging.requirements import Requirement as Parsed

    if text.endswith(".whl") and " @ " not in text:
        raise wrong("expected a requirement, got a file", hint="`wheelhouse` takes a directory with wheels")
    try:
        parsed = Parsed(text)
    except InvalidRequirement:
        raise wrong("expected a requirement such as `torch==2.7.0`") from None
    if parsed.url and "@" in urlsplit(parsed.url).netloc:
        raise wrong("expected a URL without user and password, got one with them", hint="put them into ~/.netrc")
    return text


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


PythonRequirement = Annotated[Requirement, AfterValidator(_requirement)]
Index = Annotated[Word, AfterValidator(_index)]
Project = Annotated[str, AfterValidator(_project)]
Indexes = Annotated[
    tuple[Index, ...], BeforeValidator(_one_or_many, json_schema_input_type=tuple[Index, ...] | Index)
]


class Wheels(Model):
    """Python packages, resolved to wheels by hash and written as layers without pip.

    Entries with the same `into` are one environment: they are resolved together, and what they ask for is laid
    where the first of them stands, except for the wheels that a compile step of a later one makes.
    """

    requirements: tuple[PythonRequirement, ...] = Field((), description="requirements, such as `torch==2.7.0`")
    file: Text | None = Field(
        None,
        description="requirements file, `pylock.toml` or `uv.lock`, relative to the file that says it",
    )
    wheelhouse: Text | None = Field(
        None, description="directory whose wheels are all installed, relative to the file that says it"
    )
    artifact: Text | None = Field(
        None, description="`step.artifact` of a compile step in the same file, whose wheels are all installed"
    )
    into: AbsolutePath = Field(
        "/opt/venv", description="directory of the virtual environment, or a `site-packages` or `dist-packages`"
    )
    python: Annotated[str, AfterValidator(_python)] | None = Field(
        None, description="version of the base's Python, such as `3.11`; found out when absent"
    )
    interpreter: AbsolutePath | None = Field(
        None, description="the base's Python in the image; `/usr/bin/python3.11` and the like when absent"
    )
    glibc: Annotated[str, AfterValidator(_glibc)] | None = Field(
        None, description="version of the base's C library, such as `2.36`; found out when absent"
    )
    index: Index | None = Field(None, description="URL of the index; uv's and pip's own settings otherwise")
    extra_index: Indexes = Field((), description="URLs of further indexes, which come before `index`")
    index_strategy: Literal["first-index", "unsafe-first-match", "unsafe-best-match"] | None = Field(
        None, description="how uv chooses between indexes that have the same project; uv's own setting otherwise"
    )
    constraints: tuple[PythonRequirement, ...] = Field(
        (), description="versions that must not be left, such as `numpy<2`"
    )
    overrides: tuple[PythonRequirement, ...] = Field(
        (), description="requirements that replace what packages say of each other, such as `numpy==1.26.4`"
    )
    exclude: tuple[Project, ...] = Field(
        (), description="projects that the base provides: neither they nor what only they need is installed"
    )
    extras: tuple[Project, ...] = Field((), description="extras of the project whose lock `file` is")
    groups: tuple[Project, ...] = Field((), description="dependency groups of that project; none when empty")
    dependencies: Flag = Field(True, description="`false`: exactly what is asked for, without what it depends on")
    split: Size | None = Field(
        None, description="a wheel of this size or more gets a layer of its own; `4m` when absent"
    )
    bytecode: Flag = Field(False, description="`true`: compiled `.pyc` files too, larger and quicker to start")

    @model_validator(mode="after")
    def _something_to_install(self) -> Wheels:
        if not self.given("requirements", "file", "wheelhouse", "artifact"):
            raise wrong("expected `requirements`, `file`, `wheelhouse` or `artifact`, got none of them")
        if self.locks_itself:
            if self.requirements:
                raise wrong(
                    f"`{self.file}` says everything that is installed; `requirements` cannot add to it",
                    at=("requirements",),
                    hint="add them where that file is made",
                )
            for name in ("constraints", "overrides"):
                if getattr(self, name):
                    raise wrong(f"`{name}` has no meaning with `{self.file}`, which is locked already", at=(name,))
        else:
            for name in ("extras", "groups"):
                if getattr(self, name):
                    raise wrong(
                        f"`{name}` belongs to a `file` that is a `pylock.toml` or `uv.lock`",
                        at=(name,),
                        hint="a requirement names its extras itself: `ray[default]`" if name == "extras" else "",
                    )
        if self.into.strip("/") == "":
            raise wrong("expected a directory below `/`", at=("into",))
        return self

    @property
    def locks_itself(self) -> bool:
        """Is `file` a lock of another tool, from which only what fits the base is chosen?"""
        return self.file is not None and is_lock_file(self.file)

    @property
    def prefix(self) -> str:
        """`into` in one spelling: no trailing or doubled slashes."""
        return posixpath.normpath("/" + self.into.strip("/"))

    @property
    def is_venv(self) -> bool:
        """Is `into` a virtual environment, not a directory of packages?"""
        return posixpath.basename(self.prefix) not in _SITE

    @property
    def split_bytes(self) -> int | None:
        """`split` in bytes."""
        return None if self.split is None else size_bytes(self.split)


def is_lock_file(name: str) -> bool:
    """Is a file of this name a lock: `uv.lock`, `pylock.toml`, `pylock.NAME.toml` (PEP 751)?

    >>> [is_lock_file(name) for name in ("a/uv.lock", "pylock.gpu.toml", "requirements.txt")]
    [True, True, False]
    """
    base = posixpath.basename(name)
    return base == "uv.lock" or _PYLOCK.fullmatch(base) is not None
