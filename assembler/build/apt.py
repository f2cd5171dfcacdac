"""Packages into a container of the base: which ones (`resolve`, with the network), and exactly these (`install`).

Resolving writes apt's lists and caches into directories of the host that are mounted over the container's own.
Installing needs neither lists nor network: apt gets the .debs that the lock names as files, so it has no choice.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from assembler.build.answers import answer
from assembler.build.apt_query import OPTIONS, ask, plain_name, update
from assembler.build.bootstrap import link_or_copy
from assembler.build.container import Mount, Network
from assembler.build.debs import Package
from assembler.errors import LockError, VerifyError
from assembler.process import Completed


class Runner(Protocol):
    """What is asked of a container here: to run a command. `assembler.build.container.Container` is one."""

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        network: Network = "none",
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        check: bool = True,
    ) -> Completed: ...


_LISTS: Final = "/var/lib/apt/lists"
_CACHE: Final = "/var/cache/apt"
_DEBS: Final = "/run/assemble-debs"

_ENVIRONMENT: Final[Mapping[str, str]] = {
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    "LC_ALL": "C",
    "LANGUAGE": "",
}

# Without sources there is nothing to download. `--no-download` would say so, but apt then forgets where
# packages given as files are ("Pathname to install is not absolute").
_INSTALL: Final = (
    "--no-install-recommends",
    "--allow-downgrades",
    "-o=Dir::Etc::SourceList=/dev/null",
    "-o=Dir::Etc::SourceParts=/dev/null",
    "-o=Dpkg::Use-Pty=0",
    "-o=Dpkg::Options::=--force-unsafe-io",  # the layer is what lasts, not the container
    "-o=Dpkg::Options::=--force-confdef",
    "-o=Dpkg::Options::=--force-confold",
    "-q",
    "-y",
)

_SCRIPT: Final = """
set -eu
helper=/usr/sbin/policy-rc.d
if [ ! -e "$helper" ]; then
    trap 'rm -f "$helper"' EXIT
    printf '#!/bin/sh\\nexit 101\\n' > "$helper"
    chmod 755 "$helper"
fi
apt-get "$@"
"""
"""No service is started while packages are configured (invoke-rc.d(8)); the helper is gone afterwards."""


def resolve(container: Runner, names: Sequence[str], *, lists: Path | None = None) -> tuple[Package, ...]:
    """What installing `names` into this container would fetch now, sorted; nothing is installed.

    A name may be `package=version`. `lists` is a host directory where apt's lists are kept for the next call; it
    must be this base's alone, and callers wait for each other. Without it they are dropped.

    LockError for a name that apt does not know, StepError when the archives cannot be reached, the packages do
    not go together or the base has no apt.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="assemble-apt-")))
        kept = stack.enter_context(_locked(lists)) if lists else scratch / "lists"
        cache = scratch / "cache"
        (kept / "partial").mkdir(parents=True, exist_ok=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        mounts = (
            Mount(source=kept, target=_LISTS, read_only=False),
            Mount(source=cache, target=_CACHE, read_only=False),
        )

        def run(argv: Sequence[str]) -> Completed:
            def once(command: Sequence[str]) -> Completed:
                return container.run(command, env=_ENVIRONMENT, mounts=mounts, network="host", check=False)

            return answer(once, argv)

        update(run)
        packages = ask(run, names, kept)
    for package in packages:
        if not package.url.startswith(("http:", "https:")):
            raise LockError(
                f"the base takes `{package.name}` from `{package.url}`, which only it can read",
                hint="name an archive on the web in the base's apt sources",
            )
    return packages


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f"{directory.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


def install(
    container: Runner,
    packages: Sequence[Package],
    paths: Mapping[Package, Path],
    requested: Sequence[str],
    *,
    scratch: Path | None = None,
    epoch: int = 0,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Install exactly `packages`, whose files are `paths`; what is not `requested` counts as a dependency.

    No network is needed or used. `scratch` is a directory near the store, where the files can get a second name
    instead of a copy. `epoch` is the day that new accounts are said to be of (seconds since 1970).

    StepError when apt fails; VerifyError when dpkg does not have the locked versions afterwards.
    """
    if not packages:
        return
    manual = set(_query(container, ["apt-mark", "showmanual"]).split())
    environment = {**_ENVIRONMENT, "SOURCE_DATE_EPOCH": str(epoch)}
    with tempfile.TemporaryDirectory(prefix="assemble-debs-", dir=scratch) as name:
        directory = Path(name)
        for package in packages:
            link_or_copy(paths[package], directory / package.filename)
        files = [f"{_DEBS}/{package.filename}" for package in sorted(packages)]
        container.run(
            ["sh", "-c", _SCRIPT, "sh", *OPTIONS, *_INSTALL, "install", "--", *files],
            env=environment,
            mounts=(Mount(source=directory, target=_DEBS, read_only=True),),
            network="none",
            log=log,
            on_line=on_line,
        )
    wished = {plain_name(name) for name in requested}
    dependencies = [p for p in sorted(packages) if p.name not in wished | manual]
    if dependencies:
        native = _query(container, ["dpkg", "--print-architecture"]).strip()
        marked = [
            p.name if p.architecture in {native, "all"} else f"{p.name}:{p.architecture}" for p in dependencies
        ]
        container.run(["apt-mark", "auto", "--", *marked], env=environment, log=log, on_line=on_line)
    _verify(container, packages)


def _query(container: Runner, argv: Sequence[str]) -> str:
    return answer(lambda command: container.run(command, env=_ENVIRONMENT, check=False), argv).stdout


def _verify(container: Runner, packages: Sequence[Package]) -> None:
    """Does the container's dpkg say that these packages are installed in these versions?"""
    form = "${Package}\\t${Version}\\t${Architecture}\\t${db:Status-Status}\\n"
    text = _query(container, ["dpkg-query", "--show", f"--showformat={form}"])
    installed = {tuple(line.split("\t")[:3]) for line in text.splitlines() if line.endswith("\tinstalled")}
    lacking = [p for p in packages if (p.name, p.version, p.architecture) not in installed]
    if lacking:
        raise VerifyError(
            "dpkg does not have the locked versions",
            place="packages",
            detail=[f"{package.label} {package.architecture}" for package in lacking],
        )
