"""One compile step: a container of the toolchain, commands in it, and what they made, harvested."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.build import rerun, toolchains
from assembler.build.container import Buildah, Container
from assembler.build.harvest import (
    ArtifactBundle,
    Harvest,
    check_search_paths,
    elf_files,
    find,
    write_bundle,
)
from assembler.build.mounting import Mount
from assembler.build.node import jobs as jobs_that_fit
from assembler.build.noise import command_text
from assembler.build.toolchains import BUILD, CCACHE, SOURCE, STATISTICS, STATISTICS_FILE, Toolchain
from assembler.errors import StepError
from assembler.events import Emit, Note, StepOutput, ignore
from assembler.manifest.models import Accelerator, CompileStep
from assembler.oci.layout import Store

_JOB_BYTES: Final = 2 << 30
"""What a job is thought to need when nobody says: C++ with many templates."""
_FILES_A_CALL: Final = 200
_FROM_SOURCE: Final = "source:"
_OUT_OF_MEMORY: Final = ("Killed signal terminated program", "out of memory", "virtual memory exhausted")
_CCACHE: Final = "ccache"
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
    toolchain = _toolchain(
        description, accelerator, jobs or jobs_that_fit(description.jobs_memory_bytes or _JOB_BYTES)
    )
    run_directory = buildah.run_directory
    work = _Work(
        description=description,
        toolchain=toolchain,
        label=label,
        source=source,
        build=run_directory.scratch("build"),
        statistics=run_directory.scratch("statistics"),
        ccache=cache / _CCACHE,
        log=run_directory.log(label, key),
        emit=emit,
        step=step,
    )
    work.ccache.mkdir(parents=True, exist_ok=True)
    try:
        with buildah.container(image, label, keep=keep) as container:
            work.compile(container)
            harvest = work.harvest()
            if description.strip and work.strip(container, harvest):
                harvest = work.harvest()
        check_search_paths(elf_files(harvest), work.build, label, (BUILD, SOURCE))
    except Exception:
        if keep:
            work.keep(cache / "kept" / work.log.stem)
        raise
    return write_bundle(harvest, store)


def _toolchain(description: CompileStep, accelerator: Accelerator | None, jobs: int) -> Toolchain:
    if description.cmake is not None:
        return toolchains.cmake(description.cmake, accelerator, jobs)
    if description.script is not None:
        return toolchains.script(description.script, accelerator, jobs)
    raise StepError(f"the toolchain `{description.toolchain}` has no options")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A compile step under way: its directories on the host, and what is done in its container."""

    description: CompileStep
    toolchain: Toolchain
    label: str
    source: Path
    build: Path
    statistics: Path
    ccache: Path
    log: Path
    emit: Emit
    step: str

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What the container sees of the host. Other steps may use the compiler cache too: it locks itself."""
        return (
            Mount(source=self.source, target=SOURCE),
            Mount(source=self.build, target=BUILD, read_only=False),
            Mount(source=self.ccache, target=CCACHE, read_only=False),
            Mount(source=self.statistics, target=STATISTICS, read_only=False),
        )

    def compile(self, container: Container) -> None:
        """Run the commands in order."""
        programs = [*(name for name in self.toolchain.programs if name), _CCACHE]
        there = container.programs(programs)
        for name in programs[:-1]:
            if name not in there:
                raise toolchains.missing_program(name, self.label)
        environment = {**self.toolchain.environment, **self.description.env}
        if _CCACHE in there:
            environment = dict(toolchains.with_ccache(environment))
        again = self.log.with_suffix(".sh")
        variables = {str(self.build.resolve()): "build", str(self.statistics.resolve()): "statistics"}
        commands = [
            container.command(
                command.argv,
                env=environment,
                mounts=self.mounts,
                workdir=command.workdir,
                network=self.description.network,
            )
            for command in self.toolchain.commands
        ]
        rerun.write_script(again, container, commands, self.label, variables)
        for command in self.toolchain.commands:
            with self.log.open("a") as log:
                log.write(f"$ {command_text(command.argv, length=None)}\n")
            try:
                container.run(
                    command.argv,
                    env=environment,
                    mounts=self.mounts,
                    workdir=command.workdir,
                    network=self.description.network,
                    log=self.log,
                    on_line=lambda line: self.emit(StepOutput(step=self.step, line=line)),
                )
            except StepError as error:
                raise self._failure(error, again) from error
        self._tell_hits()

    def _failure(self, error: StepError, again: Path) -> StepError:
        """The same error with the place, the log, the line that runs the step again, and advice."""
        text = "\n".join(error.detail)
        hint = error.hint
        if "137" in error.fact or any(words in text for words in _OUT_OF_MEMORY):
            hint = "it ran out of memory, most likely: pass a smaller `--jobs`, or raise the step's `jobs-memory`"
        return StepError(
            error.fact,
            place=self.label,
            hint=hint,
            detail=[*error.detail, "", f"log: {self.log}", f"run it again: sh {again}"],
        )

    def _tell_hits(self) -> None:
        """How often the compiler cache had the answer, from the log that ccache (4.4 and newer) writes."""
        try:
            lines = (self.statistics / STATISTICS_FILE).read_text(errors="replace").splitlines()
        except OSError:
            return
        hits, misses = sum(line in _HITS for line in lines), lines.count(_MISS)
        if hits + misses:
            share = f"{100 * hits // (hits + misses)} %"
            self.emit(Note(text=f"{self.label}: ccache had {hits} of {hits + misses} objects ({share})"))

    def harvest(self) -> Harvest:
        """What the artifacts' patterns match in the build directory, or with `source:` before them, the source."""
        built: dict[str, tuple[str, ...]] = {}
        sources: dict[str, tuple[str, ...]] = {}
        for name, patterns in self.description.artifacts.items():
            of_source = [pattern.startswith(_FROM_SOURCE) for pattern in patterns]
            if any(of_source) and not all(of_source):
                raise StepError(
                    f"artifact `{name}` mixes files of the source and of the build",
                    place=self.label,
                    hint="make two artifacts of it",
                )
            if any(of_source):
                sources[name] = tuple(pattern.removeprefix(_FROM_SOURCE) for pattern in patterns)
            else:
                built[name] = patterns
        root = self.build / self.toolchain.harvest_from
        return {**find(root, built, self.label), **find(self.source, sources, self.label)}

    def strip(self, container: Container, harvest: Harvest) -> bool:
        """Take debug information out of what was built, with the container's `strip`. False: nothing to do."""
        paths = [path.relative_to(self.build) for path in elf_files(harvest) if path.is_relative_to(self.build)]
        if not paths:
            return False
        if not container.programs(["strip"]):
            self.emit(Note(text=f"{self.label}: not stripped, the devel base has no `strip`"))
            return False
        files = [f"{BUILD}/{path}" for path in sorted(paths)]
        for start in range(0, len(files), _FILES_A_CALL):
            command = ["strip", "--strip-debug", "--", *files[start : start + _FILES_A_CALL]]
            container.run(command, mounts=self.mounts, log=self.log)
        return True

    def keep(self, target: Path) -> None:
        """Move the build directory to where it outlives the run."""
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            rerun.replace_directory(self.build, target)
            self.emit(Note(text=f"the build directory is kept: {target}"))
