"""The verb `sif`: a manifest is assembled into one, any other image is converted."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from assembler.cli_progress import choose_renderer
from assembler.errors import RequestError
from assembler.events import Emit
from assembler.oci.platform import Platform
from assembler.sif.settings import SifSettings
from assembler.steps.session import Options, Session
from assembler.steps.sif import SifResult, check_pushes, convert, parse_pushes, push_sif

if TYPE_CHECKING:
    from assembler.pipeline import Result


def sif_command(arguments: Namespace, options: Options, sets: Mapping[str, str], epoch: int | None) -> int:
    """Make the SIF, push it, and print where it is."""
    with choose_renderer(arguments.progress, verbose=arguments.verbose, stream=sys.stderr) as emit:
        result = _made(arguments, options, sets, epoch, emit)
    places = [*map(str, result.references)] or [str(result.path)]
    if arguments.json:
        value = {
            "path": str(result.path),
            "size": result.size,
            "digest": result.digest,
            "references": [str(reference) for reference in result.references],
        }
        print(json.dumps(value, indent=2))
    else:
        print("\n".join(places))
    return 0


def _made(
    arguments: Namespace, options: Options, sets: Mapping[str, str], epoch: int | None, emit: Emit
) -> SifResult:
    settings = SifSettings(compressor=arguments.compression, fix_permissions=arguments.fix_perms, epoch=epoch or 0)
    pushes = parse_pushes(arguments.push)
    platform = _platform(arguments.arch)
    target: Path = arguments.target
    image: str = arguments.image
    manifest = _is_manifest(image)
    if sets and not manifest:
        raise RequestError("`--set` is for manifests", place=image)
    if manifest and not arguments.with_:
        with Session(options, emit) as session:
            check_pushes(session, pushes)
        _build(arguments, options, sets, emit, (f"sif:{target}",), settings, epoch)
        with Session(options, emit) as session:
            return push_sif(session, target, target.stat().st_size, pushes)
    if manifest:
        built = _build(arguments, options, sets, emit, (), settings, epoch)
        image = f"{built.name}@{built.digest}"
    with Session(options, emit) as session:
        if arguments.with_:
            from assembler.steps.sif_apptainer import convert_with_apptainer

            return convert_with_apptainer(session, image, platform, target, settings, pushes)
        return convert(session, image, platform, target, settings, pushes)


def _build(
    arguments: Namespace,
    options: Options,
    sets: Mapping[str, str],
    emit: Emit,
    outputs: tuple[str, ...],
    settings: SifSettings,
    epoch: int | None,
) -> Result:
    from assembler.pipeline import Request, build

    platforms = (str(_platform(arguments.arch)),) if arguments.arch else ()
    request = Request(
        manifests=(arguments.image,), sets=sets, platforms=platforms, outputs=outputs, sif=settings, epoch=epoch
    )
    return build(request, options, emit)[0]


def _platform(architecture: str | None) -> Platform:
    try:
        return Platform.parse(f"linux/{architecture}") if architecture else Platform.host()
    except ValueError:
        raise RequestError(
            f"expected an architecture such as `arm64`, got `{architecture}`", place="--arch"
        ) from None


def _is_manifest(text: str) -> bool:
    """Is it a manifest, by its file or by its name in the library?"""
    if text.startswith(("oci:", "oci-archive:", "docker://")):
        return False
    from assembler.manifest.search import is_called_manifest

    return Path(text).is_file() or is_called_manifest(text)
