"""The autotools and meson toolchains: configure, build, install."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Final, Protocol

from assembler.build.toolchain_cargo import SOURCE_COPY, copy_of_source
from assembler.build.toolchains import BUILD, SOURCE, AcceleratorWish, Command, Toolchain, common_environment

_INSTALLED: Final = "assemble-installed"
_WORK: Final = f"{BUILD}/work"


class AutotoolsWish(Protocol):
    """The options of the autotools toolchain, as the manifest says them."""

    @property
    def source_directory(self) -> str: ...
    @property
    def prepare(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def autoreconf(self) -> bool: ...
    @property
    def configure(self) -> tuple[str, ...]: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def install(self) -> bool: ...
    @property
    def prefix(self) -> str: ...


class MesonWish(Protocol):
    """The options of the meson toolchain, as the manifest says them."""

    @property
    def source_directory(self) -> str: ...
    @property
    def build_type(self) -> str: ...
    @property
    def options(self) -> Mapping[str, str]: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def install(self) -> bool: ...
    @property
    def prefix(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...


def autotools(options: AutotoolsWish, accelerator: AcceleratorWish | None, jobs: int) -> Toolchain:
    """Configure, make, install. In a copy of the source: what is generated there has the times of its sources."""
    place = posixpath.normpath(posixpath.join(SOURCE_COPY, options.source_directory))
    # Times are kept, so that make does not take generated files for older than what they were generated from.
    commands = [copy_of_source(preserve="mode,links,timestamps")]
    commands += [Command(argv=tuple(argv), workdir=place) for argv in options.prepare]
    if options.autoreconf:
        commands.append(Command(argv=("autoreconf", "--force", "--install"), workdir=place, serial=True))
    configure = ("./configure", f"--prefix={options.prefix}", *options.configure)
    commands.append(Command(argv=configure, workdir=place, serial=True))
    commands.append(Command(argv=("make", f"-j{jobs}", *options.targets), workdir=place))
    if options.install:
        argv = ("make", "install", f"DESTDIR={BUILD}/{_INSTALLED}")
        commands.append(Command(argv=argv, workdir=place, serial=True))
    return Toolchain(
        commands=tuple(commands),
        environment=common_environment(accelerator, jobs),
        programs=("make", "cc", *(("autoreconf",) if options.autoreconf else ())),
        harvest_from=_harvest_from(options.install, options.prefix, place.removeprefix(f"{BUILD}/")),
        cached="path",
    )


def meson(options: MesonWish, accelerator: AcceleratorWish | None, jobs: int) -> Toolchain:
    """Set up, compile, install. Meson puts sccache or ccache before the compilers by itself."""
    source = posixpath.normpath(posixpath.join(SOURCE, options.source_directory))
    # Debian's own default for libdir names the architecture, Fedora's does not.
    fixed = {"prefix": options.prefix, "libdir": "lib", "buildtype": options.build_type, **options.options}
    named = [f"-D{name}={value}" for name, value in fixed.items()]
    commands = [
        Command(argv=("meson", "setup", "--wrap-mode=nodownload", *named, _WORK, source), serial=True),
        Command(argv=("meson", "compile", "-C", _WORK, "-j", str(jobs), *options.targets)),
    ]
    if options.install:
        tags = (f"--tags={','.join(options.tags)}",) if options.tags else ()
        argv = ("meson", "install", "-C", _WORK, "--no-rebuild", f"--destdir={BUILD}/{_INSTALLED}", *tags)
        commands.append(Command(argv=argv, serial=True))
    return Toolchain(
        commands=tuple(commands),
        environment=common_environment(accelerator, jobs),
        programs=("meson", "ninja", "cc"),
        harvest_from=_harvest_from(options.install, options.prefix, "work"),
    )


def _harvest_from(install: bool, prefix: str, otherwise: str) -> str:
    return posixpath.join(_INSTALLED, prefix.strip("/")) if install else otherwise
