"""What this host can do for this user, found by doing what a build does.

`diagnose` gives findings in the order in which a build needs things. The facts come from where builds have them:
`namespace.way_in`, `local_disk`, `node.probe_driver`, the launcher with its filter. Nothing is decided by a
version, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from assembler.build import launcher
from assembler.build.local_disk import (
    NETWORK_FILE_SYSTEMS,
    file_system,
    free_bytes,
    graph_directory,
    local_places,
    room_text,
)
from assembler.build.namespace import ENOUGH_IDS, WayIn, blocking_settings, identity, way_in
from assembler.build.node import memory_bytes, processors
from assembler.errors import AssembleError, NodeError
from assembler.process import run, which
from assembler.units import size_text

State = Literal["works", "degraded", "blocked"]
Area = Literal["images", "containers", "sif"]

_LITTLE: Final = 5 << 30
_PROBE: Final = """\
import json, sys
from pathlib import Path
from assembler.build.local_disk import graph_directory
from assembler.build.namespace import identity
from assembler.build.node import probe_driver
graph = graph_directory(Path(sys.argv[1]), identity())
print(json.dumps({"graph": str(graph), "driver": probe_driver(graph, identity())}))
"""
_NO_CONTAINERS: Final = (
    "images of wheels, copies and files can be assembled; compile where containers are allowed with `--cache-to`,"
    " and use that here with `--cache-from`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was tried: for what kind of work, how that went, and what to do about it.

    `fix` is for the administrator, `way_round` for the user; both are empty where all is well.
    """

    area: Area
    name: str
    state: State
    fact: str
    fix: str = ""
    way_round: str = ""


def diagnose(cache: Path) -> list[Finding]:
    """Try everything; errors of a probe are findings."""
    way = _way()
    found = [_cache(cache), _uv(), _rights(way), *_temporary()]
    if way.identity:
        found += _inside(way, cache)
    found += [_program("containers", "mmdebstrap", "bases from packages", "use a base by reference"), _jobs()]
    found += list(_sif())
    return [finding for finding in found if finding]


def _way() -> WayIn:
    """As what a build would run containers."""
    return WayIn(identity=identity()) if os.geteuid() == 0 else way_in()


# images


def _cache(cache: Path) -> Finding:
    there = next(place for place in (cache, *cache.parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            area="images",
            name="cache",
            state="blocked",
            fact=f"{there} cannot be written",
            way_round="`--cache DIR`, or ASSEMBLE_CACHE, names another directory",
        )
    fact = f"{cache} ({room_text(there)})"
    if free_bytes(there) < _LITTLE:
        way_round = "`assemble gc`, or `--cache DIR` on a larger disk"
        return Finding(area="images", name="cache", state="degraded", fact=fact, way_round=way_round)
    return Finding(area="images", name="cache", state="works", fact=fact)


def _uv() -> Finding:
    try:
        from assembler.build.uv import find_uv

        return Finding(area="images", name="wheels", state="works", fact=f"resolved by {find_uv()}")
    except AssembleError as error:
        fact, way_round = error.fact, error.hint or ""
        return Finding(area="images", name="wheels", state="degraded", fact=fact, way_round=way_round)


# containers


def _rights(way: WayIn) -> Finding:
    name = "user namespace"
    if way.identity == "root":
        return Finding(area="containers", name="rights", state="works", fact="root")
    if way.identity == "ranges":
        return Finding(area="containers", name=name, state="works", fact="with subordinate ids")
    if way.identity == "one":
        return Finding(
            area="containers",
            name=name,
            state="degraded",
            fact=f"with one id: {way.trouble}" if way.trouble else "with one id",
            fix=_range_fix(),
            way_round="nothing is needed for most images; a step that becomes another user is refused",
        )
    settings = blocking_settings()
    blocked = "; ".join(setting.text for setting in settings)
    return Finding(
        area="containers",
        name=name,
        state="blocked",
        fact=f"{way.trouble}" + (f" ({blocked})" if blocked else ""),
        fix="; ".join(setting.fix for setting in settings) or "allow users to make user namespaces",
        way_round=_NO_CONTAINERS,
    )


def _range_fix() -> str:
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    package = "" if which("newuidmap") else "apt-get install uidmap; "
    first = max([100_000, *(_end_of_ranges(Path("/etc") / kind) for kind in ("subuid", "subgid"))])
    ids = f"{first}-{first + ENOUGH_IDS - 1}"
    return f"{package}usermod --add-subuids {ids} --add-subgids {ids} {name}"


def _end_of_ranges(file: Path) -> int:
    """The first id above all ranges of a file."""
    try:
        lines = [line.split(":") for line in file.read_text().splitlines()]
    except OSError:
        return 0
    ends = [int(words[1]) + int(words[2]) for words in lines if len(words) == 3 and "".join(words[1:]).isdigit()]
    return max(ends, default=0)


def _temporary() -> Iterator[Finding]:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and not os.access(runtime, os.W_OK | os.X_OK):
        fact = f"XDG_RUNTIME_DIR={runtime} cannot be written; /tmp is used"
        yield Finding(area="containers", name="runtime directory", state="works", fact=fact)
    place = Path(tempfile.gettempdir())
    fact = f"{place} ({room_text(place)})"
    if file_system(place) in NETWORK_FILE_SYSTEMS or free_bytes(place) < 1 << 30:
        others = [str(other) for other in local_places() if other != place]
        way_round = f"TMPDIR={others[0]}" if others else "TMPDIR on a disk of this node"
        yield Finding(area="containers", name="temporary files", state="degraded", fact=fact, way_round=way_round)
    else:
        yield Finding(area="containers", name="temporary files", state="works", fact=fact)


def _inside(way: WayIn, cache: Path) -> Iterator[Finding]:
    """What is found in the namespace that a build goes into."""
    if which("buildah") is None:
        yield Finding(
            area="containers",
            name="buildah",
            state="blocked",
            fact="is not installed, or not on PATH",
            fix="apt-get install buildah (or dnf install buildah)",
            way_round=_NO_CONTAINERS,
        )
    else:
        yield _storage(way, cache)
    if trouble := _launched(way, "none", "own"):
        yield Finding(
            area="containers",
            name="network",
            state="blocked",
            fact=f"a step cannot be kept from the network: {trouble}",
            fix="sysctl -w user.max_net_namespaces=28633",
            way_round="`network: host` in steps",
        )
    if way.identity == "one":
        with tempfile.TemporaryDirectory(prefix="assemble-doctor-") as name:
            trouble = _launched(way, "host", f"recorded:{name}/owners.json")
        yield Finding(
            area="containers",
            name="system call filter",
            state="blocked" if trouble else "works",
            fact=trouble or "owners are written down",
            fix="a kernel from 5.5 with CONFIG_SECCOMP_FILTER" if trouble else "",
            way_round="subordinate ids do without" if trouble else "",
        )


def _storage(way: WayIn, cache: Path) -> Finding:
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = run([*way.before, sys.executable, "-c", _PROBE, str(cache)], env=environment, check=False)
    name = "storage"
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        try:
            graph_directory(cache, way.identity)
            fact, hint = (done.tail or ("it cannot be tried",))[-1], ""
        except (NodeError, OSError) as error:
            fact, hint = str(error), getattr(error, "hint", None) or ""
        return Finding(area="containers", name=name, state="blocked", fact=fact, way_round=hint)
    graph = Path(found["graph"])
    there = next(place for place in (graph, *graph.parents) if place.exists())
    fact = f"{graph} ({room_text(there)}), {found['driver']}"
    if found["driver"] == "overlay":
        return Finding(area="containers", name=name, state="works", fact=fact)
    return Finding(
        area="containers",
        name=name,
        state="degraded",
        fact=f"{fact}: each container is a whole copy",
        fix="a kernel whose overlay works in user namespaces (5.11), on ext4 or xfs",
        way_round="`--cache DIR` on another local file system",
    )


def _launched(way: WayIn, network: str, owners: str) -> str:
    """What stands against a program that is started as buildah is."""
    program = which("true") or "true"
    argv = [*way.before, sys.executable, "-I", str(Path(launcher.__file__)), network, owners, program]
    done = run(argv, check=False)
    if not done.returncode:
        return ""
    return done.stderr.partition(launcher.PREFIX)[2].strip() or done.stderr.strip() or "it fails"


def _program(area: Area, program: str, use: str, way_round: str) -> Finding:
    if found := which(program):
        return Finding(area=area, name=use, state="works", fact=found)
    fix = f"apt-get install {program}"
    return Finding(
        area=area, name=use, state="degraded", fact=f"`{program}` is not installed", fix=fix, way_round=way_round
    )


def _jobs() -> Finding:
    fact = f"{processors()} cores and {size_text(memory_bytes())} of memory, by affinity and cgroup"
    return Finding(area="containers", name="compile jobs", state="works", fact=fact)


# SIF


def _sif() -> Iterator[Finding]:
    from assembler.sif.squashfs import find_tool

    try:
        yield Finding(area="sif", name="squashfs", state="works", fact=find_tool().name)
    except NodeError as error:
        yield Finding(
            area="sif",
            name="squashfs",
            state="blocked",
            fact=error.fact,
            fix=error.hint or "",
            way_round="push, then `apptainer build FILE.sif docker://REFERENCE`",
        )
