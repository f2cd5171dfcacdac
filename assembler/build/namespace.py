"""Which identities we have on this host, and the way into a user namespace for who is not root.

The program goes in as a whole, by becoming itself anew, when it first needs a container: buildah's mounts are seen
only inside the namespace that made them, and an image of wheels, copies and files needs none. `enter.py` does it.
Of two ways the better is taken that works, which is found by doing:

- `ranges`: with subordinate ids (/etc/subuid, or whoever libsubid asks), which newuidmap and newgidmap may give;
- `one`: with the user's own id alone; see `system_calls.py` and `recorder.py` for what that takes.

`buildah unshare` would do the first, but it stays between us and the terminal.
"""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from assembler.build import enter
from assembler.errors import NodeError
from assembler.process import run, which

Identity = Literal["root", "ranges", "one"]

INSIDE: Final = "ASSEMBLE_NAMESPACE"
"""Set for a program that was sent into a namespace, so that it never tries again."""
ENOUGH_IDS: Final = 65536
"""`nobody` is 65534, and groups of that number are set by apt and others."""

_WHOLE: Final = (1 << 32) - 2
_SYSCTL: Final = Path("/proc/sys")


def identity(uid_map: Path = Path("/proc/self/uid_map")) -> Identity:
    """Which ids this process, being root, can give to others: all, some, or only its own."""
    try:
        count = sum(int(line.split()[2]) for line in uid_map.read_text().splitlines())
    except (OSError, ValueError, IndexError):
        return "root"  # a kernel without user namespaces
    return "one" if count == 1 else "root" if count >= _WHOLE else "ranges"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subordinate:
    """Ids that a user may give to others: first and number. `trouble` is why there are none, or too few."""

    ranges: tuple[tuple[int, int], ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayIn:
    """How a command is started in a namespace: what is put before it. None where there is no way.

    `trouble` is why it is not `ranges`, or why there is none.
    """

    identity: Identity | None
    before: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """A kernel setting that keeps users from making namespaces: its name, value, and the value that would not."""

    name: str
    value: str
    better: str

    @property
    def text(self) -> str:
        """The setting as sysctl prints it."""
        return f"{self.name} = {self.value}"

    @property
    def fix(self) -> str:
        """What an administrator runs."""
        return f"sysctl -w {self.name}={self.better}"


def way_in() -> WayIn:
    """The way into a namespace for this user, tried just now."""
    user, group = os.getuid(), os.getgid()
    subordinate = [subordinate_ids(kind) for kind in ("uid", "gid")]
    trouble = next((found.trouble for found in subordinate if found.trouble), "")
    if not trouble:
        maps = [_map(own, found.ranges) for own, found in zip((user, group), subordinate, strict=True)]
        trouble = _tried(maps)
        if not trouble:
            return WayIn(identity="ranges", before=_before(maps))
    maps = [f"0 {user} 1", f"0 {group} 1"]
    failure = _tried(maps)
    if failure:
        return WayIn(identity=None, trouble=failure)
    return WayIn(identity="one", before=_before(maps), trouble=trouble)


def entrance() -> str:
    """What a user puts before a command, in a shell, to be where we are; empty for root."""
    if not os.environ.get("_CONTAINERS_ROOTLESS_UID"):
        return ""
    if identity() == "ranges":
        return "buildah unshare"
    return f'{sys.executable} -I {Path(enter.__file__)} "0 $(id -u) 1" "0 $(id -g) 1"'


def _map(own: int, ranges: tuple[tuple[int, int], ...]) -> str:
    """Root is ourselves; the ids from 1 are those of the ranges, one after the other."""
    triples, inside = [f"0 {own} 1"], 1
    for first, count in ranges:
        triples.append(f"{inside} {first} {count}")
        inside += count
    return ",".join(triples)


def _before(maps: list[str]) -> tuple[str, ...]:
    return (sys.executable, "-I", str(Path(enter.__file__)), *maps)


def _tried(maps: list[str]) -> str:
    """What stands against a namespace with these maps; nothing when it can be made."""
    done = run([*_before(maps), "true"], check=False)
    if not done.returncode:
        return ""
    text = (done.stderr or "it cannot be made").partition(enter.PREFIX)[2].strip()
    return text or f"it cannot be made: {done.stderr.strip()}"


def subordinate_ids(kind: str, files: Path = Path("/etc")) -> Subordinate:
    """The subordinate ids of this user, as libsubid's `getsubids` says, else as the file has them."""
    if which(f"new{kind}map") is None:
        return Subordinate(trouble=f"`new{kind}map` is not installed (package `uidmap` or `shadow-utils`)")
    user = os.getuid()
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    lines = []
    if which("getsubids"):
        done = run(["getsubids", *(["-g"] if kind == "gid" else []), name], check=False)
        lines = [line.partition(":")[2].split()[1:] for line in done.stdout.splitlines()]
    if not lines:
        try:
            text = (files / f"sub{kind}").read_text()
        except OSError:
            text = ""
        lines = [line.split(":")[1:] for line in text.splitlines() if line.partition(":")[0] in (name, str(user))]
    ranges = tuple(
        (int(words[0]), int(words[1]))
        for words in lines
        if len(words) == 2 and words[0].strip().isdigit() and words[1].strip().isdigit()
    )
    if not ranges:
        return Subordinate(trouble=f"`{name}` has no range in {files}/sub{kind}")
    if (count := sum(count for _, count in ranges)) < ENOUGH_IDS:
        text = f"the range of `{name}` in {files}/sub{kind} has {count} ids, expected {ENOUGH_IDS}"
        return Subordinate(ranges=ranges, trouble=text)
    return Subordinate(ranges=ranges)


def blocking_settings(sysctl: Path = _SYSCTL) -> tuple[Setting, ...]:
    """Settings of this kernel that keep users from making namespaces."""
    found = []
    for name, bad, better in (
        ("user.max_user_namespaces", "0", "28633"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ):
        try:
            value = (sysctl / name.replace(".", "/")).read_text().strip()
        except OSError:
            continue
        if value == bad:
            found.append(Setting(name, value, better))
    return tuple(found)


def no_way(way: WayIn) -> NodeError:
    """The error of a step that needs a container where no namespace can be made."""
    settings = blocking_settings()
    blocked = [f"this blocks it: {setting.text}" for setting in settings]
    fix = " or ".join(f"`{setting.fix}`" for setting in settings)
    return NodeError(
        f"containers need root, or a user namespace, and this user can make none: {way.trouble}",
        detail=blocked,
        hint=(f"the administrator can run {fix}; " if fix else "")
        + "without, images of wheels, copies and files can be assembled, or run this where containers are"
        + " allowed with `--cache-to`, and here with `--cache-from`",
    )


def way_or_error() -> WayIn:
    """The way in; NodeError when there is none, or when this program went in already and is not root still."""
    if os.environ.get(INSIDE):
        fact = "this program went into a user namespace, and is not its root"
        raise NodeError(fact, place=INSIDE, hint=f"if it did not, unset {INSIDE}")
    way = way_in()
    if way.identity is None:
        raise no_way(way)
    return way
