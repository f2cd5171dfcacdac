"""The verb `run`: find out how an image wants to be run, and become the program that runs it."""

from __future__ import annotations

import grp
import json
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from assembler.errors import AssembleError, NodeError, RequestError
from assembler.oci.descriptor import RUN
from assembler.process import paste_line, which
from assembler.steps.run_command import AMD_GROUPS, Engine, Node, RunCommand, Vendor, Wish, run_command

if TYPE_CHECKING:
    from assembler.manifest.models import RunHints

_ENGINES: Final[tuple[Engine, ...]] = ("podman", "docker", "apptainer")
_APPTAINERS: Final = ("apptainer", "singularity")
_HARMLESS: Final = frozenset({"gpus", "shm-size", "ulimit"})
"""What an image of anybody's may wish for: everything else gives it rights on this host, or files of it."""
_CDI: Final = (Path("/etc/cdi"), Path("/var/run/cdi"))


@dataclass(frozen=True, slots=True)
class _Target:
    """The image as an engine names it, and what it wishes for."""

    image: str
    hints: RunHints
    vendor: Vendor | None
    ports: tuple[str, ...] = ()


def run_verb(arguments: Namespace, cache: Path) -> int:
    """Print the command, or run it in this process's place."""
    engine = _engine(arguments)
    target = _target(arguments, cache, engine)
    hints = target.hints.model_copy(update={"gpus": arguments.gpus}) if arguments.gpus else target.hints
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    wish = Wish(
        image=target.image,
        hints=hints,
        vendor=target.vendor,
        ports=tuple(arguments.publish) or target.ports,
        environment=tuple(arguments.env),
        volumes=tuple(arguments.volume),
        user=arguments.user,
        command=tuple(command),
    )
    found = run_command(engine, wish, _node())
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.print:
        inherited = "".join(f'{name}="${old}" ' for name, old in found.inherited.items())
        print(inherited + paste_line(found.argv, found.environment))
        return 0
    return _become(found)


def _become(command: RunCommand) -> int:
    """Run it; this process ends with it."""
    program = next((path for name in _named(command.argv[0]) if (path := which(name))), None)
    if program is None:
        raise NodeError(f"`{command.argv[0]}` is not installed, or not on PATH", hint="`--with` names another one")
    inherited = {name: os.environ[old] for name, old in command.inherited.items() if old in os.environ}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, list(command.argv), {**os.environ, **command.environment, **inherited})  # noqa: S606


def _named(engine: str) -> tuple[str, ...]:
    return _APPTAINERS if engine == "apptainer" else (engine,)


def _engine(arguments: Namespace) -> Engine:
    is_sif = arguments.target.endswith(".sif")
    if arguments.engine is not None:
        engine: Engine = arguments.engine
        if is_sif and engine != "apptainer":
            raise RequestError(f"{engine} cannot run a SIF", place="--with", hint="`--with apptainer`")
        return engine
    if is_sif:
        return "apptainer"
    found = [engine for engine in _ENGINES if any(which(name) for name in _named(engine))]
    if found or arguments.print:
        return found[0] if found else "podman"
    raise NodeError("neither podman nor docker nor apptainer is installed, or on PATH", hint="install one of them")


def _node() -> Node:
    groups: dict[str, int] = {}
    for name in AMD_GROUPS:
        try:
            groups[name] = grp.getgrnam(name).gr_gid
        except KeyError:
            continue
    return Node(
        groups=groups,
        cdi=any(directory.is_dir() and any(directory.iterdir()) for directory in _CDI),
        tty=sys.stdin.isatty() and sys.stdout.isatty(),
        root=os.geteuid() == 0,
    )


def _target(arguments: Namespace, cache: Path, engine: Engine) -> _Target:
    from assembler.manifest.models import RunHints
    from assembler.manifest.search import is_called_manifest

    text = arguments.target
    if text.endswith(".sif"):
        if not Path(text).is_file():
            raise RequestError("no such file", place=text)
        return _Target(text, RunHints(gpus=arguments.gpus), None)
    if is_called_manifest(text):
        return _of_manifest(arguments, cache, engine)
    wishes = _wishes(arguments, cache)
    left = sorted(set(wishes) - _HARMLESS - {"vendor"})
    if left:
        print(f"note: the image asks for {', '.join(left)} as well, which it does not get", file=sys.stderr)
    try:
        hints = RunHints.model_validate({name: value for name, value in wishes.items() if name in _HARMLESS})
    except ValueError:
        print("note: what the image says of how it wants to be run makes no sense", file=sys.stderr)
        hints = RunHints()
    vendor: Vendor | None = "amd" if wishes.get("vendor") == "amd" else "nvidia" if "vendor" in wishes else None
    return _Target(_named_for(engine, text), hints, vendor)


def _of_manifest(arguments: Namespace, cache: Path, engine: Engine) -> _Target:
    from assembler.cli import pairs
    from assembler.manifest.library import find_manifest, load

    sets = pairs(arguments.set, "--set")
    manifest = load(find_manifest(arguments.target), sets=sets).manifest
    vendor = manifest.accelerator.vendor if manifest.accelerator else None
    if arguments.image:
        image = _named_for(engine, arguments.image)
    elif engine == "docker":
        fact = "docker runs no image that was not pushed or loaded"
        raise RequestError(fact, place="--with docker", hint="push it, and name it with `--image REF`")
    else:
        path = cache / "run" / manifest.name
        output, image = f"oci:{path}", f"oci:{path}:{manifest.name}"
        if engine == "apptainer":
            output, image = f"sif:{path}.sif", f"{path}.sif"
        if not arguments.print:
            path.parent.mkdir(parents=True, exist_ok=True)
            _assemble(arguments, cache, sets, output)
    return _Target(image, manifest.run, vendor, tuple(map(str, manifest.image.ports)))


def _assemble(arguments: Namespace, cache: Path, sets: Mapping[str, str], output: str) -> None:
    """Have the image, whole, as the engine reads it."""
    from assembler.cli_progress import choose_renderer
    from assembler.pipeline import Request, build
    from assembler.steps.session import Options

    request = Request(manifests=(arguments.target,), sets=sets, outputs=(output,))
    options = Options(cache=cache, insecure=tuple(arguments.insecure))
    with choose_renderer("auto", verbose=False, stream=sys.stderr) as emit:
        build(request, options, emit)


def _named_for(engine: Engine, text: str) -> str:
    is_reference = engine == "apptainer" and not text.startswith(("oci:", "docker://"))
    return f"docker://{text}" if is_reference else text


def _wishes(arguments: Namespace, cache: Path) -> dict[str, Any]:
    """What an image says of how it wants to be run; nothing when it says nothing, or cannot be asked."""
    from assembler.cli_image import find_image
    from assembler.oci.platform import Platform

    try:
        found = find_image(arguments.target, Platform.host(), cache, tuple(arguments.insecure))
    except AssembleError as error:
        print(f"note: how the image wants to be run cannot be read: {error.fact}", file=sys.stderr)
        return {}
    try:
        value = json.loads(found.manifest.annotations.get(RUN, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
