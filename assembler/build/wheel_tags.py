"""Which wheels run on a base: its Python, machine and C library against the tags in the names of wheels.

Tags are those of the PyPA specifications (platform compatibility tags; PEP 425, 513, 571, 599, 600), for CPython
on Linux with glibc. The order is that of installers: the closest ABI and the newest platform first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from assembler.errors import ManifestError
from assembler.oci.platform import Platform

if TYPE_CHECKING:
    from packaging.tags import Tag

_MACHINES: Final = {
    ("amd64", None): "x86_64",
    ("arm64", None): "aarch64",
    ("ppc64le", None): "ppc64le",
    ("riscv64", None): "riscv64",
    ("s390x", None): "s390x",
}
_LEGACY: Final = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_OLDEST_GLIBC: Final = {"x86_64": 5}  # elsewhere manylinux begins with 2.17
_UV_GLIBC: Final = (17, 28, *range(31, 41))
"""Minor versions of glibc 2 for which uv has a name of a platform."""
_PYTHON: Final = re.compile(r"3\.[0-9]{1,2}(?:\.[0-9]{1,3})?")
_GLIBC: Final = re.compile(r"2\.([0-9]{1,3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a wheel must fit: Python `3.11` or `3.11.2`, machine `x86_64`, glibc `2.36`."""

    python: str
    machine: str
    glibc: str

    def __post_init__(self) -> None:
        if not _PYTHON.fullmatch(self.python) or not _GLIBC.fullmatch(self.glibc):
            raise ValueError(f"expected Python and glibc such as `3.11` and `2.36`, got `{self}`")

    @property
    def minor(self) -> str:
        """`3.11`, whatever the patch version is."""
        return ".".join(self.python.split(".")[:2])

    @property
    def glibc_minor(self) -> int:
        """36 for glibc 2.36."""
        return int(self.glibc.partition(".")[2])

    @property
    def uv_platform(self) -> str:
        """uv's name for the newest platform, of those that it knows, that is not newer than the base."""
        oldest = _UV_GLIBC[0]
        minor = max((each for each in _UV_GLIBC if each <= self.glibc_minor), default=oldest)
        if self.machine not in {"x86_64", "aarch64"}:
            raise ManifestError(
                f"uv cannot resolve for `{self.machine}`; it can for `x86_64` and `aarch64`",
                hint="give a `pylock.toml` or `uv.lock` as `file`",
            )
        return f"{self.machine}-manylinux_2_{minor}"

    @property
    def text(self) -> str:
        """For people: `CPython 3.11, glibc 2.36, x86_64`."""
        return f"CPython {self.python}, glibc {self.glibc}, {self.machine}"

    def markers(self) -> dict[str, str]:
        """The environment in which markers are read (PEP 508)."""
        full = self.python if self.python.count(".") == 2 else f"{self.python}.0"
        return {
            "implementation_name": "cpython",
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": full,
            "python_version": self.minor,
            "sys_platform": "linux",
        }


def machine_of(platform: Platform) -> str:
    """The machine as Python calls it; ManifestError for one that has no wheels."""
    machine = _MACHINES.get((platform.architecture, None))
    if platform.os != "linux" or machine is None:
        raise ManifestError(f"there are no wheels for `{platform}`")
    return machine


@lru_cache(maxsize=8)
def ranks(target: Target) -> dict[Tag, int]:
    """Every tag that fits the target, with its rank: 0 is the best."""
    from packaging.tags import compatible_tags, cpython_tags

    oldest = _OLDEST_GLIBC.get(target.machine, 17)
    platforms: list[str] = []
    for minor in range(target.glibc_minor, oldest - 1, -1):
        platforms.append(f"manylinux_2_{minor}_{target.machine}")
        if minor in _LEGACY and (minor == 17 or target.machine == "x86_64"):
            platforms.append(f"{_LEGACY[minor]}_{target.machine}")
    platforms.append(f"linux_{target.machine}")
    number = tuple(int(part) for part in target.minor.split("."))
    short = f"cp{number[0]}{number[1]}"
    tags = [
        *cpython_tags(number, [short], platforms),
        *compatible_tags(number, short, platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}


def best(filenames: Sequence[str], target: Target) -> str | None:
    """The file that an installer would take, or None when none of them fits."""
    found = [(rank, filename) for filename in filenames if (rank := rank_of(filename, target)) is not None]
    return min(found)[1] if found else None


def rank_of(filename: str, target: Target) -> tuple[int, tuple[int, str]] | None:
    """How well a wheel fits, smaller is better; None when it does not, or when its name is not one of a wheel."""
    parsed = _parse(filename)
    if parsed is None:
        return None
    build, tags = parsed
    known = ranks(target)
    fitting = [known[tag] for tag in tags if tag in known]
    if not fitting:
        return None
    return min(fitting), (-build[0], build[1]) if build else (0, "")


def is_for_python(filename: str, target: Target) -> bool:
    """Is a wheel for the target's Python, whatever platform it is for?"""
    parsed = _parse(filename)
    pythons = {(tag.interpreter, tag.abi) for tag in ranks(target)}
    return parsed is not None and any((tag.interpreter, tag.abi) in pythons for tag in parsed[1])


def why_not(filename: str, target: Target) -> str:
    """Why a wheel does not fit: its tag, and what the base offers. Empty when it fits."""
    parsed = _parse(filename)
    if parsed is None:
        return "that is not the name of a wheel"
    if rank_of(filename, target) is not None:
        return ""
    tags = sorted(parsed[1], key=str)
    first = "-".join(filename.removesuffix(".whl").split("-")[-3:])
    offers = f"the base has {target.text}"
    if not is_for_python(filename, target):
        return f"its tag `{first}` asks for another Python; {offers}"
    needed = [_glibc_of(tag.platform) for tag in tags if tag.platform.endswith("_" + target.machine)]
    minors = [minor for minor in needed if minor is not None]
    if minors:
        return f"its tag `{first}` asks for glibc 2.{min(minors)} or newer; {offers}"
    if any("musllinux" in tag.platform for tag in tags):
        return f"its tag `{first}` asks for musl as the C library; {offers}"
    return f"its tag `{first}` asks for another platform; {offers}"


def _glibc_of(platform: str) -> int | None:
    match = re.match(r"manylinux_2_(\d+)_", platform)
    if match:
        return int(match[1])
    return next((minor for minor, name in _LEGACY.items() if platform.startswith(name + "_")), None)


def _parse(filename: str) -> tuple[tuple[int, str] | tuple[()], frozenset[Tag]] | None:
    """Build number and tags of a wheel's name."""
    from packaging.tags import parse_tag

    parts = filename.removesuffix(".whl").split("-")
    if not filename.endswith(".whl") or len(parts) not in {5, 6}:
        return None
    build: tuple[int, str] | tuple[()] = ()
    if len(parts) == 6:
        match = re.fullmatch(r"(\d+)(.*)", parts[2])
        if not match:
            return None
        build = (int(match[1]), match[2])
    return build, parse_tag("-".join(parts[-3:]))
