"""uv, which resolves Python requirements for a base that is not this host: the program, its words and its errors.

Why `uv pip compile --format pylock.toml`: it resolves for a named platform and Python without an interpreter of
that version, takes wheels alone (`--only-binary :all:`), keeps what an older lock chose where that still holds,
and gives file, URL and hash of each wheel in a form of PEP 751. `uv lock` wants a project and every platform at
once; `uv pip install --dry-run` names no files.

Which uv: the one of our own Python environment, a dependency like any other, so that everybody who installed the
same assemble resolves with the same one; where a distribution left it out, the one on PATH.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from assembler.build.index_settings import uv_environment
from assembler.build.wheel_tags import Target
from assembler.errors import AssembleError, ManifestError, NodeError, RegistryError
from assembler.process import run, which

OLDEST: Final = (0, 9, 8)
"""The first uv that can leave projects out of a resolution (`--excludes`)."""
_UNSATISFIABLE: Final = 1
_NETWORK: Final = re.compile(
    r"failed to (?:fetch|download|connect)|error sending request|dns error|connection refused|timed out|"
    r"certificate|status (?:code|client error|server error)|unauthorized|forbidden",
    re.IGNORECASE,
)
_USER: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/?#\s@]+@", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What uv is to resolve. `directory` is where relative settings and files start.

    `preferences` are (name, version) of an older answer, kept where nothing forbids it; those in `upgrade` move.
    """

    directory: Path
    target: Target
    requirements: Sequence[str] = ()
    files: Sequence[Path] = ()
    constraints: Sequence[str] = ()
    overrides: Sequence[str] = ()
    exclude: Sequence[str] = ()
    index: str | None = None
    extra_index: Sequence[str] = ()
    index_strategy: str | None = None
    dependencies: bool = True
    preferences: Sequence[tuple[str, str]] = ()
    upgrade: Sequence[str] = ()
    place: str = field(default="")


@dataclass(frozen=True, slots=True)
class Told:
    """What uv answered: the document of PEP 751, and its warnings."""

    document: Mapping[str, Any]
    warnings: tuple[str, ...]


def find_uv() -> str:
    """The path of uv; NodeError when there is none, or only one that is too old."""
    try:
        return str(importlib.import_module("uv").find_uv_bin())
    except (ImportError, OSError):  # not a dependency here, or its program was taken out
        pass
    found = which("uv")
    if found is None:
        raise NodeError("`uv` is not installed; it resolves `wheels` layers", hint="pip install uv")
    words = run([found, "--version"]).stdout.split()
    numbers = tuple(int(each) for each in re.findall(r"\d+", words[1] if len(words) > 1 else "")[:3])
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise NodeError(f"expected uv {oldest} or newer, found {' '.join(words[1:2])}", place=found)
    return found


def resolve(question: Question, scratch: Path, cache: Path) -> Told:
    """Ask uv. `scratch` is an empty directory, `cache` is uv's own where the user has not set one.

    ManifestError when no set of wheels satisfies the requirements on the target, with uv's reasons; RegistryError
    when an index cannot be had.
    """
    output = scratch / "pylock.toml"
    sources = [scratch / "requirements.in", *question.files]
    (scratch / "requirements.in").write_text("".join(f"{line}\n" for line in question.requirements))
    if question.preferences:
        output.write_text(_preferences(question.preferences))
    argv = [
        *("pip", "compile", *map(str, sources), "--output-file", str(output), "--format", "pylock.toml"),
        *("--python-platform", question.target.uv_platform, "--python-version", question.target.python),
        *("--only-binary", ":all:", "--generate-hashes", "--no-header", "--no-annotate"),
        *("--python", sys.executable, "--no-python-downloads"),
    ]
    for option, lines in (
        ("--constraints", question.constraints),
        ("--overrides", question.overrides),
        ("--excludes", question.exclude),
    ):
        if lines:
            path = scratch / f"{option.strip('-')}.txt"
            path.write_text("".join(f"{line}\n" for line in lines))
            argv += [option, str(path)]
    if not question.dependencies:
        argv.append("--no-deps")
    if question.index:
        argv += ["--default-index", question.index]
    for url in question.extra_index:
        argv += ["--index", url]
    if question.index_strategy:
        argv += ["--index-strategy", question.index_strategy]
    for name in question.upgrade:
        argv += ["--upgrade-package", name]
    warnings = _run(argv, question.directory, cache, question)
    return Told(_document(output.read_text(), question.place), warnings)


def export(lock: Path, *, extras: Sequence[str], groups: Sequence[str], cache: Path, place: str) -> Told:
    """What a `uv.lock` locks, for every platform, without its own project; errors as `resolve`."""
    question = Question(
        directory=lock.parent, target=Target(python="3.11", machine="x86_64", glibc="2.36"), place=place
    )
    argv = ["export", "--frozen", "--format", "pylock.toml", "--no-emit-workspace", "--no-header", "--no-annotate"]
    argv += ["--no-default-groups", "--python", sys.executable, "--no-python-downloads", "--quiet"]
    argv += [word for name in extras for word in ("--extra", name)]
    argv += [word for name in groups for word in ("--group", name)]
    output: list[str] = []
    warnings = _run(argv, lock.parent, cache, question, output)
    return Told(_document("".join(output), place), warnings)


def _preferences(chosen: Sequence[tuple[str, str]]) -> str:
    """A lock of PEP 751 that says no more than versions."""
    lines = ['lock-version = "1.0"', 'created-by = "assemble"']
    for name, version in chosen:
        lines += ["[[packages]]", f'name = "{name}"', f'version = "{version}"']
    return "\n".join(lines) + "\n"


def _run(
    argv: Sequence[str], directory: Path, cache: Path, question: Question, output: list[str] | None = None
) -> tuple[str, ...]:
    """Run uv and return its warnings; its failure becomes an error of ours."""
    settings = {**uv_environment(), "NO_COLOR": "1", "UV_NO_PROGRESS": "1"}
    if not os.environ.get("UV_CACHE_DIR"):
        cache.mkdir(parents=True, exist_ok=True)
        settings["UV_CACHE_DIR"] = str(cache)
    done = run([find_uv(), *argv], env=settings, cwd=directory, check=False)
    lines = [_USER.sub(r"\1***@", line) for line in done.stderr.splitlines()]
    if done.returncode:
        raise _failure(done.returncode, lines, question)
    if output is not None:
        output.append(done.stdout)
    return tuple(line.removeprefix("warning: ") for line in lines if line.startswith("warning: "))


def _failure(code: int, lines: Sequence[str], question: Question) -> AssembleError:
    """uv's complaint as an error: its own reasons, and what the base offers."""
    starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
    said = [line for line in lines[starts[0] if starts else 0 :] if line.strip()]
    text = "\n".join(said)
    place = question.place or None
    if code != _UNSATISFIABLE:
        if _NETWORK.search(text):
            return RegistryError("uv cannot reach what it needs", place=place, detail=said)
        return ManifestError("uv cannot read the requirements", place=place, detail=said)
    hint = None
    if re.search(r"no (?:usable )?wheels|wheels with a matching", text):
        hint = (
            f"the base has {question.target.text}: choose a version that has a wheel for it, "
            "compile it in a step and give it as `artifact`, or take another base"
        )
    return ManifestError("no wheels satisfy the requirements on this base", place=place, detail=said, hint=hint)


def _document(text: str, place: str) -> Mapping[str, Any]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"expected a lock of PEP 751, got something else: {error}", place=place) from error
    version = str(document.get("lock-version", ""))
    if version.partition(".")[0] != "1":
        raise ManifestError(f"expected lock version `1.0`, got `{version}`", place=place)
    return document
