"""Asking apt which packages a wish means, and saying in our words why it does not know.

Used on the host's apt (for a root made from nothing) and on the apt of a base; both are given as a `Run`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from assembler.build.debs import Package, parse_uris, with_snapshots
from assembler.errors import AssembleError, LockError, StepError
from assembler.process import Completed

Run: TypeAlias = Callable[[Sequence[str]], Completed]
"""Runs a command where apt is, in the C locale, captures its output, and raises StepError when it fails."""

OPTIONS: Final = (
    "-o=APT::Sandbox::User=root",  # a user namespace of one id has nobody else to become
    "-o=APT::Install-Recommends=false",
    "-o=Acquire::Languages=none",
    "-o=Acquire::ForceHash=SHA256",
    "-o=Acquire::Retries=3",
)

_UNKNOWN: Final = re.compile(r"E: Unable to locate package (\S+)")
_NO_CANDIDATE: Final = re.compile(r"E: Package '([^']+)' has no installation candidate")
_NO_VERSION: Final = re.compile(r"E: Version '([^']+)' for '([^']+)' was not found")
_PATTERN: Final = "?"
_SHOWN: Final = 6


def update(run: Run) -> None:
    """Fetch the lists. A list that cannot be had is an error: the answer would be an old one, or none."""
    try:
        run(["apt-get", *OPTIONS, "-o=APT::Update::Error-Mode=any", "-q", "update"])
    except StepError as error:
        if not error.detail:  # apt did not even begin
            raise StepError(error.fact, hint="`apt` packages want a base of Debian or Ubuntu") from error
        lines = [line for line in error.detail if line.startswith(("E:", "W:", "Err:"))]
        unknown = any("does not have a Release file" in line for line in lines)
        hint = "is the release's name right, and does the archive still have it?" if unknown else None
        raise StepError("`apt-get update` failed", detail=lines or error.detail, hint=hint) from error


def known_names(run: Run) -> frozenset[str]:
    """Every name that the lists mention, virtual packages too."""
    return frozenset(run(["apt-cache", "--all-names", "pkgnames"]).stdout.split())


def ask(run: Run, names: Sequence[str], lists: Path, known: frozenset[str] | None = None) -> tuple[Package, ...]:
    """The packages that installing `names` would fetch now, sorted; `lists` is apt's lists directory on this host.

    A name is a package, `package=version`, either with `:architecture`, or an apt pattern such as `?essential`.
    LockError for a name that apt does not know, is only virtual or has no such version; StepError when
    the packages do not go together.
    """
    plain = [name for name in names if not name.startswith(_PATTERN)]
    known = known_names(run) if known is None else known
    for name in plain:
        # apt would take an unknown name for a regular expression, and `name-` for a removal.
        if plain_name(name) not in known:
            raise _unknown(run, name)
    command = [
        "apt-get",
        *OPTIONS,
        "-qq",
        "-y",
        "--no-install-recommends",
        "--print-uris",
        "install",
        "--",
        *names,
    ]
    try:
        completed = run(command)
    except StepError as error:
        raise _explained(run, error, plain) from error
    return with_snapshots(parse_uris(completed.stdout), lists)


def plain_name(name: str) -> str:
    """A wish without version and architecture."""
    return name.partition("=")[0].partition(":")[0]


def _explained(run: Run, error: StepError, names: Sequence[str]) -> AssembleError:
    text = "\n".join(error.detail)
    if match := _NO_VERSION.search(text):
        version, name = match.groups()
        offered = re.findall(r"^\s*\S+ \| (\S+) \|", run(["apt-cache", "madison", name]).stdout, re.MULTILINE)
        hint = f"offered now: {', '.join(f'`{name}={v}`' for v in dict.fromkeys(offered))}" if offered else None
        return LockError(f"no archive offers version `{version}` of the package `{name}`", hint=hint)
    if match := _NO_CANDIDATE.search(text):
        name = match[1]
        _, _, provided = run(["apt-cache", "showpkg", name]).stdout.partition("Reverse Provides:")
        providers = sorted({line.split()[0] for line in provided.splitlines() if line.strip()})
        if not providers:
            return _unknown(run, name)
        more = ", …" if len(providers) > _SHOWN else ""
        shown = ", ".join(f"`{provider}`" for provider in providers[:_SHOWN])
        return LockError(f"`{name}` is a virtual package", hint=f"name one that provides it: {shown}{more}")
    if match := _UNKNOWN.search(text):
        return _unknown(run, match[1])
    # Only a louder apt says which packages are in each other's way.
    try:
        run(["apt-get", *OPTIONS, "-q", "-y", "--simulate", "install", "--", *names])
    except StepError as told:
        error = told
    lines = list(error.detail)
    for number, line in enumerate(lines):
        if line.startswith("The following packages have unmet dependencies"):
            lines = lines[number:]
            break
    reasons = [line for line in lines if line.startswith((" ", "E:", "The following"))]
    return StepError(f"apt cannot install {', '.join(f'`{n}`' for n in names)} together", detail=reasons or lines)


def _unknown(run: Run, name: str) -> LockError:
    """An error for a name that no list has as a package, with names that look like it."""
    real = run(["apt-cache", "pkgnames"]).stdout.split()
    close = difflib.get_close_matches(plain_name(name), real, n=3, cutoff=0.75)
    hint = f"did you mean {' or '.join(f'`{other}`' for other in close)}?" if close else None
    architecture = name.partition("=")[0].partition(":")[2]
    if architecture and plain_name(name) in real:
        hint = f"the base does not take packages of the architecture `{architecture}`"
    return LockError(f"apt knows no package `{name}`", hint=hint)
