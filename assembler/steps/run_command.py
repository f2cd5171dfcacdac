"""The command that runs an image as it wants to be run: of podman, docker or Apptainer.

A manifest's `run:` section speaks in podman's options. What another program calls differently is translated, what
it has by itself (Apptainer: the host's network, IPC and /dev/shm) is left out, and what it cannot do is told.

NVIDIA's GPUs come into podman by CDI (cdi.md of tags.cncf.io/container-device-interface), into docker by `--gpus`,
into Apptainer by `--nv`. AMD's are devices, /dev/kfd and /dev/dri, and the groups that own them, or `--rocm`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from assembler.errors import RequestError
from assembler.manifest.models import RunHints

Engine = Literal["podman", "docker", "apptainer"]
Vendor = Literal["nvidia", "amd"]

AMD_DEVICES: Final = ("/dev/kfd", "/dev/dri")
AMD_GROUPS: Final = ("video", "render")
_NO_CDI: Final = (
    "this host does not describe its GPUs for CDI; `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` does"
)
_DEVICES: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9:.-]*(,[A-Za-z0-9][A-Za-z0-9:.-]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What matters of this host. `groups` has the ids of the groups that own GPUs, `cdi` says whether NVIDIA's
    GPUs are described for CDI, `tty` whether somebody is there to type.
    """

    groups: Mapping[str, int] = field(default_factory=dict)
    cdi: bool = True
    tty: bool = False
    root: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be run: an image as the engine names it, with the hints of its manifest and what the user adds.

    `ports` are published under their own number. `environment` has `NAME=VALUE`, or `NAME` for this process's
    value, which then stands in no argument list. Without `command` the image's own runs.
    """

    image: str
    hints: RunHints
    vendor: Vendor | None = None
    ports: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    user: str | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommand:
    """The argument list, variables to be set for it, and what a reader should know. `inherited` are variables that
    are to have the value of another one of this process: what is secret stands in no argument list.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def run_command(engine: Engine, wish: Wish, node: Node) -> RunCommand:
    """The command of this engine. RequestError for GPUs that cannot be named."""
    if engine == "apptainer":
        return _apptainer(wish)
    hints = wish.hints
    words = [engine, "run", "--rm", "--interactive", *(["--tty"] if node.tty else [])]
    gpus, notes = _gpus(engine, wish, node)
    words += gpus
    words += _each("--device", hints.device)
    words += _each("--group-add", hints.group_add)
    if hints.ipc:
        words.append(f"--ipc={hints.ipc}")
    if hints.shm_size and hints.ipc != "host":  # of the host's namespace the size is the host's
        words.append(f"--shm-size={hints.shm_size}")
    words += _each("--ulimit", hints.ulimit)
    words += _each("--cap-add", hints.cap_add)
    words += _each("--security-opt", hints.security_opt)
    if hints.network:
        words.append(f"--network={hints.network}")
    if hints.network != "host":
        words += _each("--publish", (_published(port) for port in wish.ports))
    words += _each("--volume", (*hints.volume, *wish.volumes))
    words += _each("--env", wish.environment)
    if wish.user:
        words.append(f"--user={wish.user}")
    return RunCommand(argv=(*words, wish.image, *wish.command), notes=tuple(notes))


def _each(option: str, values: Iterator[str] | tuple[str, ...]) -> list[str]:
    return [f"{option}={value}" for value in values]


def _published(port: str) -> str:
    number, slash, protocol = port.partition("/")
    return f"{number}:{number}{slash}{protocol}"


def _gpus(engine: Engine, wish: Wish, node: Node) -> tuple[list[str], list[str]]:
    """Options that bring the GPUs in, and what is to be told about them."""
    chosen = _chosen(wish.hints)
    if chosen is None:
        return [], []
    if wish.vendor == "amd":
        groups = (node.groups.get(name, name) for name in AMD_GROUPS)
        # A user without root keeps the groups that she has: others cannot be had in her namespace.
        kept = ["--group-add=keep-groups"] if engine == "podman" and not node.root else None
        options = [*_each("--device", AMD_DEVICES), *(kept or [f"--group-add={group}" for group in groups])]
        notes = [] if chosen == "all" else ["all of AMD's GPUs are there: ROCR_VISIBLE_DEVICES chooses among them"]
        return options, notes
    if engine == "docker":
        number = chosen.isdigit() or chosen == "all"
        return [f"--gpus={chosen}" if number else f'--gpus="device={chosen}"'], []
    names = [str(number) for number in range(int(chosen))] if chosen.isdigit() else chosen.split(",")
    told = [] if node.cdi else [_NO_CDI]
    return [f"--device=nvidia.com/gpu={name}" for name in names], told


def _chosen(hints: RunHints) -> str | None:
    """`all`, a number, or devices with commas between them; None for no GPU."""
    if hints.gpus in (None, "none", "0"):
        return None
    text = str(hints.gpus).removeprefix("device=")
    if not _DEVICES.fullmatch(text):
        fact = f"expected `all`, `none`, a number or devices such as `0,2`, got `{hints.gpus}`"
        raise RequestError(fact, place="gpus")
    return text


def _apptainer(wish: Wish) -> RunCommand:
    """Apptainer shares network, IPC, /dev and /dev/shm with the host anyway, and runs as the calling user."""
    hints = wish.hints
    words = ["apptainer", "exec" if wish.command else "run", "--cleanenv"]
    environment: dict[str, str] = {}
    chosen = _chosen(hints)
    if chosen is not None:
        words.append("--rocm" if wish.vendor == "amd" else "--nv")
        if chosen != "all":
            devices = ",".join(map(str, range(int(chosen)))) if chosen.isdigit() else chosen
            variable = "ROCR_VISIBLE_DEVICES" if wish.vendor == "amd" else "CUDA_VISIBLE_DEVICES"
            environment[f"APPTAINERENV_{variable}"] = devices
    words += _each("--bind", (*hints.volume, *wish.volumes))
    words += _each("--env", tuple(item for item in wish.environment if "=" in item))
    inherited = {f"APPTAINERENV_{item}": item for item in wish.environment if "=" not in item}
    left = {"ulimit": hints.ulimit, "cap-add": hints.cap_add, "user": wish.user}
    notes = [f"Apptainer leaves `{name}` as the host has it" for name, value in left.items() if value]
    return RunCommand(
        argv=(*words, wish.image, *wish.command),
        environment=environment,
        inherited=inherited,
        notes=tuple(notes),
    )
