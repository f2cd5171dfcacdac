"""`assemble sif --with apptainer`: converted by an Apptainer of this host, for who wants exactly its file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from assembler.errors import NodeError
from assembler.events import StepOutput
from assembler.oci.outputs import write_layout
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.process import run, which
from assembler.sif.settings import SifSettings
from assembler.steps.sif import SifResult, check_pushes, check_target, push_sif
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.steps.session import Session


def convert_with_apptainer(
    session: Session,
    text: str,
    platform: Platform,
    target: Path,
    settings: SifSettings,
    pushes: Sequence[Reference] = (),
) -> SifResult:
    """Have Apptainer or Singularity build the SIF, and push it. NodeError without one, StepError when it fails."""
    program = next((name for name in ("apptainer", "singularity") if which(name)), None)
    if program is None:
        hint = "leave `--with` out: assemble writes the file itself"
        raise NodeError("neither `apptainer` nor `singularity` is on PATH", place="--with apptainer", hint=hint)
    check_target(target, str(target))
    check_pushes(session, pushes)
    options = ["--fix-perms"] if settings.fix_permissions else []
    if settings.compressor != "gzip":
        options += ["--mksquashfs-args", f"-comp {settings.compressor}"]
    if platform != Platform.host():
        options += ["--arch", platform.architecture]
    temporary = _name_beside(target)
    identifier = f"output:{target}"
    with session.step(identifier, "write", f"sif:{target}") as report:
        try:
            run(
                [program, "build", *options, str(temporary), _source(session, text, platform, target)],
                on_line=lambda line: session.emit(StepOutput(step=identifier, line=line)),
            )
            size = temporary.stat().st_size
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        report.outcome, report.detail = "ok", f"{size_text(size)}, by {program}"
    return push_sif(session, target, size, pushes)


def _source(session: Session, text: str, platform: Platform, target: Path) -> str:
    """The image as Apptainer's `build` takes it. One of the store is written out as a layout first."""
    from assembler.steps.sif_sources import find_image

    kind, colon, rest = text.partition(":")
    if kind in {"oci", "oci-archive"} and colon:
        return f"{kind}:{Path(rest).absolute()}"
    name = text.partition("@")[0]
    descriptor = session.store.find(name) if "/" not in name else None
    if descriptor is None:
        return f"docker://{text.removeprefix('docker://')}"
    find_image(session, text, platform, target)  # brings what is missing into the store
    directory = session.run.scratch("sif") / "image"
    write_layout(session.store, descriptor.digest, directory, name="image")
    return f"oci:{directory}:image"


def _name_beside(target: Path) -> Path:
    """A name beside the target that nothing has."""
    descriptor, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}-", suffix=".sif")
    os.close(descriptor)
    Path(name).unlink()
    return Path(name)
