"""One compile step: a container of the toolchain, commands in it, and what they made, harvested."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.build import rerun, toolchains
from assembler.build.binaries import Binary, binaries, check_search_paths
from assembler.build.container import Buildah, Container
from assembler.build.harvest import ArtifactBundle, Harvest, find, write_bundle
from assembler.build.mounting import Mount
from assembler.build.node import jobs as jobs_that_fit
from assembler.build.noise import command_text
from assembler.build.toolchains import (
    BUILD,
    CCACHE,
    COMPILER_LINKS,
    COMPILERS,
    SOURCE,
    STATISTICS,
    STATISTICS_FILE,
    Toolchain,
    ccache_hits,
)
from assembler.errors import StepError
from assembler.events import Emit, Note, StepOutput, ignore
from assembler.manifest.models import Accelerator, CompileStep
from assembler.oci.layout import Store
from assembler.process import exit_name, paste_line

_JOB_BYTES: Final = 2 << 30
"""What a job is thought to need when nobody says: C++ with many templates."""
_FILES_A_CALL: Final = 200
_FROM_SOURCE: Final = "source:"
_OUT_OF_MEMORY: Final = re.compile(
    r"Killed signal terminated program"  # gcc
    r"|terminated with signal 9 \[Killed\]"  # collect2, about the linker
    r"|(unable to execute command|clang\S* frontend command failed due to signal).*[Kk]ill"  # clang
    r"|died due to signal 9\b"  # nvcc
    r"|signal: 9, SIGKILL"  # cargo, about rustc
    r"|virtual memory exhausted|[Cc]annot allocate memory|\bout of memory allocating\b|what\(\):\s+std::bad_alloc"
)
"""What compilers and linkers say when the kernel ended one of them for want of memory, or gave them none."""
_LIBRARY_MISSING: Final = "error while loading shared libraries"
_LOG_END_BYTES: Final = 256 << 10
_NVCC_THREADS: Final = "NVCC_THREADS"
_KILLED: Final = 137
_CCACHE: Final = "ccache"
_ONLY_WHILE_BUILDING: Final = (BUILD, SOURCE, "/cache", "/tmp", "/var/tmp")  # noqa: S108  (in the container)


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
    toolchain = _toolchain(description, accelerator, jobs or _jobs(description))
    run_directory = buildah.run_directory
    work = _Work(
        description=description,
        toolchain=toolchain,
        label=label,
        source=source,
        build=run_directory.scratch("build"),
        statistics=run_directory.scratch("statistics"),
        compilers=run_directory.scratch("compilers"),
        ccache=cache / _CCACHE,
        log=run_directory.log(label, key),
        emit=emit,
        step=step,
    )
    work.ccache.mkdir(parents=True, exist_ok=True)
    script: rerun.Script | None = None
    try:
        with buildah.container(image, label, keep=keep) as container:
            environment = work.environment(container)
            script = work.script(container, environment)
            script.write()
            work.compile(container, environment)
            harvest = work.harvest()
            if description.strip and work.strip(container, harvest):
                harvest = work.harvest()
            check_search_paths(work.built(harvest), label, _ONLY_WHILE_BUILDING)
    except Exception:
        if keep and script:
            work.keep(cache / "kept" / work.log.stem, script)
        raise
    return write_bundle(harvest, store)


def _jobs(description: CompileStep) -> int:
    """As many jobs as cores and memory allow; each runs several threads where nvcc is told to."""
    threads = description.env.get(_NVCC_THREADS, "")
    fit = jobs_that_fit(description.jobs_memory_bytes or _JOB_BYTES)
    return max(1, fit // max(1, int(threads))) if threads.isdecimal() else fit


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
    compilers: Path
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
            Mount(source=self.compilers, target=COMPILER_LINKS),
        )

    def environment(self, container: Container) -> Mapping[str, str]:
        """What the commands find in their environment; StepError when the container lacks a program."""
        wanted = [name for name in self.toolchain.programs if name]
        names = [*wanted, _CCACHE, *(COMPILERS if self.toolchain.ccache == "path" else ())]
        there = container.programs(names)
        for name in wanted:
            if name not in there:
                raise toolchains.missing_program(name, self.label)
        environment = {**self.toolchain.environment, **self.description.env}
        if _CCACHE not in there:
            return environment
        if self.toolchain.ccache == "launcher":
            return toolchains.with_ccache(environment)
        program, path = container.run(["sh", "-c", 'command -v ccache; echo "$PATH"']).stdout.splitlines()
        for name in there.intersection(COMPILERS):
            (self.compilers / name).symlink_to(program)
        return toolchains.with_ccache_on_path(environment, environment.get("PATH", path))

    def script(self, container: Container, environment: Mapping[str, str]) -> rerun.Script:
        """How the commands are run again by hand; it lies beside the log."""
        return rerun.Script(
            path=self.log.with_suffix(".sh"),
            container=container,
            commands=tuple(
                container.command(
                    command.argv,
                    env=environment,
                    mounts=self.mounts,
                    workdir=command.workdir,
                    network=self.description.network,
                )
                for command in self.toolchain.commands
            ),
            label=self.label,
            build=self.build.resolve(),
            scratch={"statistics": self.statistics.resolve(), "compilers": self.compilers.resolve()},
        )

    def compile(self, container: Container, environment: Mapping[str, str]) -> None:
        """Run the commands in order."""
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
                raise self._failure(error) from error
        self._tell_hits()

    def _failure(self, error: StepError) -> StepError:
        """The same error with the place, the log, the line that runs the step again, and advice."""
        end = _end_of(self.log)
        hint = error.hint
        if error.fact.endswith(exit_name(_KILLED)) or _OUT_OF_MEMORY.search(end):
            hint = "it ran out of memory, most likely: pass a smaller `--jobs`, or raise the step's `jobs-memory`"
        elif _LIBRARY_MISSING in end and self.description.cmake and not self.description.cmake.install:
            hint = (
                "a program of the build does not find its library; with `install: true` it does,"
                " and artifacts are taken from what is installed"
            )
        return StepError(
            error.fact,
            place=self.label,
            hint=hint,
            detail=[
                *error.detail,
                "",
                f"log: {self.log}",
                f"run it again: {paste_line(['sh', str(self.log.with_suffix('.sh'))])}",
            ],
        )

    def _tell_hits(self) -> None:
        """How often the compiler cache had the answer."""
        try:
            hits, misses = ccache_hits((self.statistics / STATISTICS_FILE).read_text(errors="replace"))
        except OSError:
            return
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
        root, called = self.build / self.toolchain.harvest_from, "the build directory"
        if self.toolchain.harvest_from:
            called = "what was installed"
        return {
            **find(root, built, self.label, called=called),
            **find(self.source, sources, self.label, called="the source"),
        }

    def built(self, harvest: Harvest) -> tuple[Binary, ...]:
        """The programs and libraries that were built; a source may come with some that are not ours to judge."""
        return tuple(one for one in binaries(harvest) if one.path.is_relative_to(self.build))

    def strip(self, container: Container, harvest: Harvest) -> bool:
        """Take debug information out of what was built, with the container's `strip`. False: nothing to do."""
        paths = [one.path.relative_to(self.build) for one in self.built(harvest)]
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

    def keep(self, target: Path, script: rerun.Script) -> None:
        """Move the build directory to where it outlives the run, and let the script go on there."""
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            rerun.replace_directory(self.build, target)
            script.write_kept(target)
            self.emit(Note(text=f"the build directory is kept: {target}"))


def _end_of(log: Path) -> str:
    """The end of a log. A killed compiler says so before other jobs end, so the last lines may not tell."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
