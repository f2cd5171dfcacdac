"""The words of which manifests are made: scalar types with one spelling each, and the base of all models.

Values come as text (see `source`), so each type reads text; a value of the right Python type passes as it is.
A validator raises `wrong(...)`: the fact is in the house style and `validate` adds what was found instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

from assembler.oci.platform import Platform
from assembler.oci.reference import Reference

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+_-]*(?::[a-z0-9]+)?(?:=[A-Za-z0-9.+:~_-]+)?")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s|m|h)")
_NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PORT = re.compile(r"([0-9]{1,5})(?:/(tcp|udp|sctp))?")
_CUDA = re.compile(r"sm_[0-9]{2,3}[af]?(?:\+ptx)?")
_ROCM = re.compile(r"gfx[0-9a-f]{3,4}(?::[a-z]+[+-])*")
_UNIT_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def wrong(fact: str, *, at: tuple[str, ...] = (), hint: str = "") -> PydanticCustomError:
    """An error of ours inside pydantic; `at` leads from the validated value to the part that is to blame."""
    return PydanticCustomError("house", "{fact}", {"fact": fact, "at": at, "hint": hint})


class Model(BaseModel):
    """Immutable; unknown keys are errors. In YAML a key has dashes where the attribute has underscores."""

    model_config = ConfigDict(
        defer_build=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        alias_generator=lambda name: name.rstrip("_").replace("_", "-"),
        field_title_generator=lambda name, _: name.rstrip("_").replace("_", " "),
    )

    def given(self, *names: str) -> list[str]:
        """Which of these fields hold something, by their names in YAML."""
        return [
            name.rstrip("_").replace("_", "-")
            for name in names
            if getattr(self, name) not in (None, (), {}, False)
        ]

    def exactly_one(self, *names: str) -> None:
        """Raise unless exactly one of the fields holds something."""
        given = self.given(*names)
        if len(given) != 1:
            found = " and ".join(f"`{name}`" for name in given) or "none of them"
            raise wrong(f"expected exactly one of {listing(name.rstrip('_') for name in names)}, got {found}")


def listing(names: Any) -> str:
    """Literals for a message: `a`, `b`."""
    return ", ".join(f"`{str(name).replace('_', '-')}`" for name in names)


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise wrong(f"expected {expected}")
        return text

    return check


def _flag(value: object) -> object:
    if isinstance(value, str):
        if value not in {"true", "false"}:
            raise wrong("expected true or false")
        return value == "true"
    if not isinstance(value, bool):
        raise wrong("expected true or false")
    return value


def _whole(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise wrong("expected a whole number, 0 or more")
    return value


def _version(value: object) -> object:
    if value == "1" or (value == 1 and not isinstance(value, bool)):
        return 1
    raise wrong("expected the format version `1`", hint="a newer assemble may read it")


def _mode(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"0?o?[0-7]{3,4}", value):
        return int(value.replace("o", ""), 8)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o7777:
        raise wrong("expected a mode in octal digits such as `0755`")
    return value


def _identity(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise wrong("expected a numeric id such as `1000`", hint="names are not looked up: the base is not read")
    return value


def size_bytes(text: str) -> int:
    """`2g`, `512m`, `1.5GiB` in bytes; powers of 1024, as podman reads them."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise wrong("expected a size such as `2g` or `512m`")
    return int(float(match[1]) * _UNIT_BYTES[match[2].lower()])


def duration_nanoseconds(text: str) -> int:
    """`30s`, `1m30s`, `500ms` in nanoseconds, the unit of the image config."""
    if not _DURATION.fullmatch(text):
        raise wrong("expected a duration such as `30s` or `1m30s`")
    return sum(round(float(number) * _NANOSECONDS[unit]) for number, unit in _DURATION_PART.findall(text))


def _size(text: str) -> str:
    size_bytes(text)
    return text


def _duration(text: str) -> str:
    duration_nanoseconds(text)
    return text


def _no_climbing(text: str) -> None:
    if ".." in text.split("/"):
        raise wrong("expected a path without `..`")
    if "\0" in text:
        raise wrong("expected a path without NUL")


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise wrong("expected an absolute path")
    _no_climbing(text)
    return text


def _relative(text: str) -> str:
    if text.startswith("/") or not text:
        raise wrong("expected a relative path")
    _no_climbing(text)
    return text


def _inside(text: str) -> str:
    if not text:
        raise wrong("expected a path or a pattern")
    _no_climbing(text)
    return text


def _some_text(text: str) -> str:
    if not text or "\0" in text:
        raise wrong("expected some text")
    return text


def _requirement(text: str) -> str:
    # In a requirements file a leading dash makes an option and a line break a second line.
    if not text.strip() or text.lstrip().startswith("-") or len(text.splitlines()) != 1:
        raise wrong("expected a requirement such as `torch==2.7.0`")
    return text


def _reference(text: str) -> str:
    try:
        Reference.parse(text)
    except ValueError as error:
        raise wrong(str(error) if text else "expected an image reference") from None
    return text


def _platform(text: str) -> str:
    try:
        Platform.parse(text)
    except ValueError as error:
        raise wrong(str(error)) from None
    return text


def _one_or_many(value: object) -> object:
    """A single text stands for a list of one."""
    return [value] if isinstance(value, str) else value


def _port(text: str) -> str:
    match = _PORT.fullmatch(text)
    if not match or not 0 < int(match[1]) < 65536:
        raise wrong("expected a port such as `80` or `80/udp`")
    return f"{int(match[1])}/{match[2] or 'tcp'}"


Flag = Annotated[bool, BeforeValidator(_flag)]
Whole = Annotated[int, BeforeValidator(_whole)]
Mode = Annotated[int, BeforeValidator(_mode), WithJsonSchema({"type": ["string", "integer"]})]
Identity = Annotated[int, BeforeValidator(_identity)]
FormatVersion = Annotated[Literal[1], BeforeValidator(_version)]
Text = Annotated[str, AfterValidator(_some_text)]
Name = Annotated[
    str,
    AfterValidator(_matching(_NAME, "a name of lower-case letters, digits and single `.`, `_`, `-` between them")),
]
EnvironmentName = Annotated[
    str, AfterValidator(_matching(_ENVIRONMENT_NAME, "a variable name such as `LD_LIBRARY_PATH`"))
]
PackageName = Annotated[
    str, AfterValidator(_matching(_PACKAGE, "a package name such as `libssl3` or `libssl3=3.0.2`"))
]
CudaArchitecture = Annotated[
    str, AfterValidator(_matching(_CUDA, "a CUDA architecture such as `sm_90` or `sm_90+ptx`"))
]
RocmArchitecture = Annotated[str, AfterValidator(_matching(_ROCM, "a ROCm architecture such as `gfx90a`"))]
Size = Annotated[str, AfterValidator(_size)]
Duration = Annotated[str, AfterValidator(_duration)]
Port = Annotated[str, AfterValidator(_port)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
RelativePath = Annotated[str, AfterValidator(_relative)]
InsidePath = Annotated[str, AfterValidator(_inside)]
Requirement = Annotated[str, AfterValidator(_requirement)]
ReferenceText = Annotated[str, AfterValidator(_reference)]
PlatformText = Annotated[str, AfterValidator(_platform)]
Argv: TypeAlias = tuple[str, ...]
Patterns = Annotated[
    tuple[InsidePath, ...],
    BeforeValidator(_one_or_many, json_schema_input_type=tuple[InsidePath, ...] | InsidePath),
]
Environment: TypeAlias = Mapping[EnvironmentName, str]
