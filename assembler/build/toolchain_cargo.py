"""The cargo toolchain: crates fetched by the lock file, dependencies compiled apart and kept, then the packages.

Cargo takes a package that has a path for unchanged when no file is newer than what was compiled of it. All our
sources are of one time, so nothing that was compiled of them may be found by a later step: what is kept is
compiled with the source at `/src`, and the packages themselves in a copy at `/build/source`. Only crates of
registries and git, which are known by hash, are the same for both.
"""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from typing import Final, Protocol

from assembler.build.toolchains import (
    BUILD,
    SOURCE,
    AcceleratorWish,
    Command,
    Prepared,
    Toolchain,
    common_environment,
)
from assembler.errors import ManifestError

CARGO_HOME: Final = "/cache/cargo"
SOURCE_COPY: Final = f"{BUILD}/source"
DEPENDENCIES_ONLY: Final = "/cache/dependencies-only"

_TARGET: Final = "target"
_LOCK: Final = "Cargo.lock"
_SETTINGS: Final = ("Cargo.toml", ".cargo/config.toml", ".cargo/config", "rust-toolchain.toml", "rust-toolchain")
_LARGEST_LOCK: Final = 16 << 20
# The crates of other platforms are left out. The target is cargo's own unless it is named.
_FETCH: Final = 'exec cargo fetch "$@" --target "$(rustc -vV | sed -n "s/^host: //p")"'


class CargoWish(Protocol):
    """The options of the cargo toolchain, as the manifest says them."""

    @property
    def source_directory(self) -> str: ...
    @property
    def package(self) -> tuple[str, ...]: ...
    @property
    def bins(self) -> tuple[str, ...]: ...
    @property
    def features(self) -> tuple[str, ...]: ...
    @property
    def default_features(self) -> bool: ...
    @property
    def all_features(self) -> bool: ...
    @property
    def profile(self) -> str: ...
    @property
    def target(self) -> str | None: ...
    @property
    def locked(self) -> bool: ...


def copy_of_source(*, preserve: str = "mode,links") -> Command:
    """The command that makes a copy of the source that may be written to. Its files are of now."""
    argv = ("cp", "-R", f"--preserve={preserve}", f"{SOURCE}/.", SOURCE_COPY)
    return Command(argv=argv, serial=True, called=f"copy {SOURCE} to {SOURCE_COPY}")


def cargo(options: CargoWish, accelerator: AcceleratorWish | None, jobs: int, source: Path) -> Toolchain:
    """Fetch, compile dependencies, compile. `source` is where the source is on this host.

    ManifestError when the source has no Cargo.toml, or `locked` is wanted and there is no Cargo.lock.
    """
    directory = source / options.source_directory
    lock = _lock_file(source, directory)
    _check(options, directory, lock)
    build = _build_arguments(options)
    place = posixpath.normpath(posixpath.join(SOURCE_COPY, options.source_directory))
    original = posixpath.normpath(posixpath.join(SOURCE, options.source_directory))
    locked = ("--locked",) if options.locked else ()
    commands = [copy_of_source(), _fetch(options, place, locked)]
    prepared = None
    if options.locked and lock is not None:
        dependencies = ("cargo", "build", "--keep-going", *locked, "--offline", *build, "-j", str(jobs))
        commands.append(
            Command(
                argv=dependencies,
                workdir=original,
                environment={"RUSTC_WORKSPACE_WRAPPER": DEPENDENCIES_ONLY},
                prepares=True,
                called="cargo build (dependencies)",
            )
        )
        group = json.dumps([build, options.source_directory])
        prepared = Prepared(directory=_TARGET, group=group, key=lock + _settings(source))
    argv = ("cargo", "build", *locked, "--offline", *build, "-j", str(jobs))
    commands.append(Command(argv=argv, workdir=place))
    return Toolchain(
        commands=tuple(commands),
        environment={
            **common_environment(accelerator, jobs),
            "CARGO_HOME": CARGO_HOME,
            "CARGO_TARGET_DIR": f"{BUILD}/{_TARGET}",
            "CARGO_TERM_COLOR": "never",
            "CARGO_TERM_PROGRESS_WHEN": "never",
            "CARGO_INCREMENTAL": "0",  # nothing is compiled twice in one target directory
        },
        programs=("cargo", "rustc", "cc"),
        caches={"cargo": CARGO_HOME},
        tools={DEPENDENCIES_ONLY: Path(__file__).with_name("dependencies_only.sh")},
        prepared=prepared,
        cached="path",
    )


def _build_arguments(options: CargoWish) -> tuple[str, ...]:
    """What is built, and how: the same for the dependencies and the whole."""
    words = ["--profile", options.profile]
    words += [f"--package={name}" for name in options.package]
    words += [f"--bin={name}" for name in options.bins]
    words += [f"--features={','.join(options.features)}"] if options.features else []
    words += ["--all-features"] if options.all_features else []
    words += [] if options.default_features else ["--no-default-features"]
    words += [f"--target={options.target}"] if options.target else []
    return tuple(words)


def _fetch(options: CargoWish, place: str, locked: tuple[str, ...]) -> Command:
    if options.target:
        argv: tuple[str, ...] = ("cargo", "fetch", *locked, f"--target={options.target}")
        return Command(argv=argv, workdir=place, fetches=True, serial=True)
    argv = ("sh", "-c", _FETCH, "sh", *locked)
    return Command(argv=argv, workdir=place, fetches=True, serial=True, called="cargo fetch")


def _lock_file(source: Path, directory: Path) -> str | None:
    """The text of the Cargo.lock in force: that of the directory, or of a workspace around it."""
    for place in (directory, *directory.parents):
        path = place / _LOCK
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST_LOCK:
            return path.read_text(errors="surrogateescape")
        if place == source:
            break
    return None


def _settings(source: Path) -> str:
    """The texts of all Cargo.toml and of cargo's own settings: features and profiles are not in the lock file."""
    paths = [path for name in _SETTINGS for path in sorted(source.rglob(name))]
    return "".join(
        f"\n# {path.relative_to(source)}\n{path.read_text(errors='surrogateescape')}"
        for path in paths
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST_LOCK
    )


def _check(options: CargoWish, directory: Path, lock: str | None) -> None:
    if not (directory / "Cargo.toml").is_file():
        raise ManifestError(
            f"the source has no `Cargo.toml` in `{options.source_directory}`",
            hint="`cargo: {source-directory: …}` says where it is",
        )
    if options.locked and lock is None:
        raise ManifestError(
            "the source has no `Cargo.lock`",
            hint="commit one, or say `cargo: {locked: false}`, which nobody can repeat",
        )
