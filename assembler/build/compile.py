"""One compile step: a container of the toolchain, commands in it, and what they made, harvested."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from assembler.build import toolchains
from assembler.build.container import Buildah, Container, Mount, run_command
from assembler.build.harvest import (
    ArtifactBundle,
    Harvest,
    check_search_paths,
    elf_files,
    find,
    write_bundle,
)
from assembler.build.node import jobs as jobs_that_fit
from assembler.build.toolchains import BUILD, CCACHE, SOURCE, STATISTICS, STATISTICS_FILE, Toolchain
from assembler.errors import StepError
from assembler.events import Emit, Note, StepOutput, ignore
from assembler.manifest.models import Accelerator, CompileStep
from assembler.oci.layout import Store, write_atomically

_JOB_BYTES: Final = 2 << 30
"""What a job is thought to need when nobody says: C++ with many templates."""
_FILES_A_CALL: Final = 200
_FROM_SOURCE: Final = "source:"
_OUT_OF_MEMORY: Final = ("Killed signal terminated program", "out of memory", "virtual memory exhausted")
_HITS: Final = ("direct_cache_hit", "preprocessed_cache_hit")
_MISS: Final = "cache_miss"


def compile_step(
    buildah: Buildah,
    store: Store,
    description: CompileStep,
    *,
    image: str,
    source: Path,
    label: str,
    key: str,
    cache: Path,
    accelerator: Accelerator | None = None,
    jobs: int | None = None,
    keep: bool = False,
    emit: Emit = ignore,
    step: str = "",
) -> ArtifactBundle:
    """Compile, harvest, and give the artifacts as one blob of the store.

    The log is `logs/LABEL-KEY.txt` below `cache`, with a script beside it that does the step again by hand. `jobs`
    None means: as many as cores and memory allow. With `keep` a failed step's container and build directory stay.

    StepError when a command fails, a program is missing, a pattern matches nothing, or a built file would look for
    libraries in the build directory.
    """
    work = _Work(buildah, description, image, source, label, key, cache, accelerator, jobs, emit, step)
    with work.build_directory(keep=keep), buildah.container(image, label, keep=keep) as container:
        work.compile(container)
        harvest = work.harvest()
        if description.strip:
            harvest = work.strip(container, harvest)
    work.check(harvest)
    return write_bundle(harvest, store)


def _toolchain(description: CompileStep, accelerator: Accelerator | None, jobs: int) -> Toolchain:
    if description.cmake is not None:
        return toolchains.cmake(description.cmake, accelerator, jobs)
    if description.script is not None:
        return toolchains.script(description.script, accelerator, jobs)
    raise StepError(f"the toolchain `{description.toolchain}` has no options")
