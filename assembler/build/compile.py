"""One compile step: a container of the toolchain, commands in it, and what they made, harvested."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from assembler.build import advice, rerun, toolchains
from assembler.build.budget import Budget, JobNeeds
from assembler.build.commands import Commands
from assembler.build.compiler_cache import (
    COMPILER_LINKS,
    STATISTICS,
    CompilerCache,
    compiler_cache,
    hits_note,
    programs_of,
    trouble,
)
from assembler.build.container import Buildah, Container, Network
from assembler.build.harvest import ArtifactBundle, Harvest, write_bundle
from assembler.build.indexes import index_settings
from assembler.build.mounting import Mount
from assembler.build.prepared import PreparedBuild
from assembler.build.products import Products
from assembler.build.secrets import Secrets
from assembler.build.toolchain_choice import needs_of, toolchain_of
from assembler.build.toolchains import BUILD, SOURCE, Command, Toolchain
from assembler.errors import AssembleError, StepError
from assembler.events import Emit, Note, ignore
from assembler.manifest.models import Accelerator, CompileStep
from assembler.oci.layout import Store
from assembler.process import paste_line

_NONE: Final[Mapping[str, Path]] = MappingProxyType({})
_LOCATE: Final = 'command -v "$1" || echo; echo "$PATH"'
_LIBRARY_MISSING: Final = "error while loading shared libraries"


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
    budget: Budget,
    accelerator: Accelerator | None = None,
    keep: bool = False,
    offline: bool = False,
    secrets: Mapping[str, Path] = _NONE,
    emit: Emit = ignore,
    step: str = "",
) -> ArtifactBundle:
    """Compile, harvest, and give the artifacts as one blob of the store.

    The log is `logs/LABEL-KEY.txt` below `cache`, with a script beside it that does the step again by hand. Jobs
    are taken out of `budget` command by command. With `keep` a failed step's container and build directory stay.
    With `offline` nothing is fetched. `secrets` are files by the names that steps know them by.

    StepError when a command fails, a program is missing, a pattern matches nothing, a built file would look for
    libraries in the build directory, or has not the GPU code asked for. ManifestError when options do not fit the
    source, RequestError for a secret that was not given, StoppedError when the run ends meanwhile.
    """
    needs = needs_of(description, accelerator)
    scratch = buildah.run_directory.scratch
    work = _Work(
        description=description,
        accelerator=accelerator,
        toolchain=_toolchain(description, accelerator, budget.most(needs), source, label),
        budget=budget,
        needs=needs,
        image=image,
        offline=offline,
        secrets=Secrets.of(description.secrets, secrets, ssh=description.ssh, step=label),
        label=label,
        source=source,
        cache=cache,
        log=buildah.run_directory.log(label, key),
        emit=emit,
        step=step,
        build=scratch("build"),
        statistics=scratch("statistics"),
        compilers=scratch("compilers"),
        tools=scratch("tools"),
    )
    return write_bundle(_harvest(buildah, work, keep=keep), store)


def _harvest(buildah: Buildah, work: _Work, *, keep: bool) -> Harvest:
    """What the commands make in a container of their own."""
    script: rerun.Script | None = None
    try:
        with buildah.container(work.image, work.label, keep=keep) as container:
            work = work.with_compiler_cache(container)
            script = work.script(container)
            script.write()
            work.compile(container)
            return work.products.harvest(container)
    except Exception:
        if keep and script:
            work.keep(work.cache / "kept" / work.log.stem, script)
        raise


def _toolchain(
    description: CompileStep, accelerator: Accelerator | None, jobs: int, source: Path, label: str
) -> Toolchain:
    """The toolchain; its errors, which are about options and sources, say which step they are about."""
    try:
        return toolchain_of(description, accelerator, jobs, source)
    except AssembleError as error:
        raise type(error)(error.fact, place=label, hint=error.hint) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A compile step under way: its directories on the host, and what is done in its container."""

    description: CompileStep
    accelerator: Accelerator | None
    toolchain: Toolchain
    budget: Budget
    needs: JobNeeds
    image: str
    offline: bool
    secrets: Secrets
    label: str
    source: Path
    build: Path
    statistics: Path
    compilers: Path
    tools: Path
    cache: Path
    log: Path
    emit: Emit
    step: str
    compiler_cache: CompilerCache = CompilerCache()  # noqa: RUF009  (it is a frozen value)

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What the container sees of the host. Other steps may use the caches too: those lock themselves."""
        return (
            Mount(source=self.source, target=SOURCE),
            Mount(source=self.build, target=BUILD, read_only=False),
            Mount(source=self.statistics, target=STATISTICS, read_only=False),
            Mount(source=self.compilers, target=COMPILER_LINKS),
            *self.compiler_cache.mounts,
            *(
                Mount(source=self.cache / name, target=target, read_only=False)
                for name, target in self.toolchain.caches.items()
            ),
        )

    @property
    def products(self) -> Products:
        """What is looked for when the commands are through."""
        return Products(
            description=self.description,
            accelerator=self.accelerator,
            harvest_from=self.toolchain.harvest_from,
            build=self.build,
            source=self.source,
            secrets=self.secrets,
            mounts=self.mounts,
            log=self.log,
            label=self.label,
            emit=self.emit,
        )

    @property
    def _fetches(self) -> bool:
        """Does anything of it use the network?"""
        return self.description.network == "host" or any(command.fetches for command in self.toolchain.commands)

    @property
    def most_jobs(self) -> int:
        """As many jobs as the step may have, which is what `toolchain` was made for."""
        return self.budget.most(self.needs)

    def network(self, command: Command) -> Network:
        """The network of a command."""
        return "none" if self.offline else "host" if command.fetches else self.description.network

    def with_compiler_cache(self, container: Container) -> _Work:
        """The work as it is done in this container. StepError when that lacks a program."""
        kind, way = self.description.compiler_cache, self.toolchain.cached
        wanted = [name for name in self.toolchain.programs if name]
        there = container.programs([*wanted, *programs_of(kind, way)])
        for name in wanted:
            if name not in there:
                raise toolchains.missing_program(name, self.label)
        found = compiler_cache(
            kind,
            there,
            partial(container.ask, _LOCATE),
            {**self.toolchain.environment, **self.description.env},
            way=way,
            cuda=self.accelerator is not None and bool(self.accelerator.cuda),
            cache=self.cache,
            network=self.description.network == "host" and not self.offline,
            step=self.label,
        )
        found.prepare(self.compilers, self.statistics)
        for text in found.notes:
            self.emit(Note(text=text, level="warning"))
        words = (*self.secrets.words, *found.secrets)
        work = replace(self, compiler_cache=found, secrets=replace(self.secrets, words=words))
        for mount in work.mounts:  # what is mounted has to be there
            if not mount.source.exists():
                mount.source.mkdir(parents=True, exist_ok=True)
            if mount.source.parent == self.cache:
                os.utime(mount.source)  # a cache is used now: `assemble gc` frees old ones
        return work

    def script(self, container: Container) -> rerun.Script:
        """How the commands are run again by hand; it lies beside the log."""
        return rerun.Script(
            path=self.log.with_suffix(".sh"),
            container=container,
            commands=tuple(
                container.command(
                    command.behind(self.compiler_cache.before),
                    env={**self.compiler_cache.environment, **command.environment, **self.secrets.environment},
                    mounts=(*self.mounts, *self.secrets.mounts),
                    workdir=command.workdir,
                    network=self.network(command),
                )
                for command in self.toolchain.commands
                if not command.prepares
            ),
            label=self.label,
            build=self.build.resolve(),
            scratch={"statistics": self.statistics.resolve(), "compilers": self.compilers.resolve()},
        )

    def compile(self, container: Container) -> None:
        """Run the commands in order; once in a step, one that memory was not enough for with half the jobs."""
        runner = Commands(
            container=container,
            mounts=(*self.mounts, *(index_settings(self.tools) if self._fetches else ())),
            network=self.network,
            before=self.compiler_cache.before,
            log=self.log,
            emit=self.emit,
            step=self.step,
            label=self.label,
            secrets=self.secrets,
        )
        most, tried_again = self.most_jobs, False
        index = 0
        while index < len(self.toolchain.commands):
            command, jobs = self.toolchain.commands[index], most
            start = self.log.stat().st_size if self.log.exists() else 0
            try:
                if command.serial:
                    runner.run(command, self.compiler_cache.environment)
                else:
                    with self.budget.lease(self.needs, most) as jobs:
                        self._run(runner, index, jobs)
            except StepError as error:
                out_of_memory = advice.ran_out_of_memory(error, advice.end_of(self.log, start))
                if not out_of_memory or tried_again or jobs == 1:
                    raise self._failure(error, start) from error
                tried_again, most = True, jobs // 2
                text = f"{self.label}: it ran out of memory with {jobs} jobs; trying again with {most}"
                self.emit(Note(text=text, level="warning"))
                continue
            index += 1
        note = hits_note(self.compiler_cache, self.statistics, label=self.label, step=self.step)
        if note:
            self.emit(note)
        if why := trouble(self.statistics):
            text = f"{self.label}: sccache kept objects on this host only: {self.secrets.hide(why)}"
            self.emit(Note(text=text, level="warning"))

    def _run(self, runner: Commands, index: int, jobs: int) -> None:
        """Run one of the commands with so many jobs."""
        toolchain = self.toolchain
        if jobs != self.most_jobs:
            toolchain = toolchain_of(self.description, self.accelerator, jobs, self.source)
        command = toolchain.commands[index]
        environment = {
            **self.compiler_cache.environment,
            **{
                name: value
                for name, value in toolchain.environment.items()
                if value != self.toolchain.environment.get(name) and name not in self.description.env
            },
        }
        if command.prepares:
            self._prepare(runner, command, environment)
        else:
            runner.run(command, environment)

    def _prepare(self, commands: Commands, command: Command, environment: Mapping[str, str]) -> None:
        prepared = self.toolchain.prepared
        if prepared is not None:
            group = [self.image, dict(self.description.env), prepared.group]
            commands.prepare(
                command,
                environment,
                place=PreparedBuild.of(self.cache, group, prepared.key),
                target=self.build / prepared.directory,
                tools=self.toolchain.tools,
                scratch=self.tools,
            )

    def _failure(self, error: StepError, start: int) -> StepError:
        """The same error with the place, the log, the line that runs the step again, and advice."""
        end = advice.end_of(self.log, start)
        hint = error.hint
        if advice.ran_out_of_memory(error, end):
            hint = advice.MEMORY
        elif _LIBRARY_MISSING in end and self.description.cmake and not self.description.cmake.install:
            hint = (
                "a program of the build does not find its library; with `install: true` it does,"
                " and artifacts are taken from what is installed"
            )
        return StepError(
            error.fact,
            place=self.label,
            hint=hint or advice.hint_for(end),
            detail=[
                *error.detail,
                "",
                f"log: {self.log}",
                f"run it again: {paste_line(['sh', str(self.log.with_suffix('.sh'))])}",
            ],
        )

    def keep(self, target: Path, script: rerun.Script) -> None:
        """Move the build directory to where it outlives the run, and let the script go on there."""
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            rerun.replace_directory(self.build, target)
            script.write_kept(target)
            self.emit(Note(text=f"the build directory is kept: {target}"))
