"""One compile step: a container of the toolchain, commands in it, and what they made, harvested."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from assembler.build import advice, rerun, toolchains
from assembler.build.binaries import Binary, binaries, check_search_paths
from assembler.build.commands import Commands
from assembler.build.container import Buildah, Container, Network
from assembler.build.gpu_check import check_architectures
from assembler.build.harvest import ArtifactBundle, Harvest, find, write_bundle
from assembler.build.indexes import index_settings
from assembler.build.mounting import Mount
from assembler.build.noise import command_text
from assembler.build.prepared import PreparedBuild
from assembler.build.secrets import Secrets
from assembler.build.toolchain_choice import jobs_of, toolchain_of
from assembler.build.toolchains import (
    BUILD,
    CCACHE,
    COMPILER_LINKS,
    COMPILERS,
    SOURCE,
    STATISTICS,
    STATISTICS_FILE,
    Command,
    Toolchain,
    ccache_hits,
)
from assembler.errors import AssembleError, StepError
from assembler.events import Emit, Note, ignore
from assembler.manifest.models import Accelerator, CompileStep
from assembler.oci.layout import Store
from assembler.process import paste_line

_NONE: Final[Mapping[str, Path]] = MappingProxyType({})
_FILES_A_CALL: Final = 200
_FROM_SOURCE: Final = "source:"
_LIBRARY_MISSING: Final = "error while loading shared libraries"
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
    offline: bool = False,
    secrets: Mapping[str, Path] = _NONE,
    emit: Emit = ignore,
    step: str = "",
) -> ArtifactBundle:
    """Compile, harvest, and give the artifacts as one blob of the store.

    The log is `logs/LABEL-KEY.txt` below `cache`, with a script beside it that does the step again by hand. `jobs`
    None: as many as cores and memory allow. With `keep` a failed step's container and build directory stay. With
    `offline` nothing is fetched. `secrets` are files by the names that steps know them by.

    StepError when a command fails, a program is missing, a pattern matches nothing, a built file would look for
    libraries in the build directory, or has not the GPU code asked for. ManifestError when options do not fit the
    source, RequestError for a secret that was not given.
    """
    jobs = jobs or jobs_of(description, accelerator)
    work = _Work(
        description=description,
        accelerator=accelerator,
        toolchain=_toolchain(description, accelerator, jobs, source, label),
        jobs=jobs,
        image=image,
        offline=offline,
        secrets=Secrets.of(description.secrets, secrets, ssh=description.ssh, step=label),
        label=label,
        source=source,
        cache=cache,
        log=buildah.run_directory.log(label, key),
        emit=emit,
        step=step,
        **{name: buildah.run_directory.scratch(name) for name in ("build", "statistics", "compilers", "tools")},
    )
    work.make_directories()
    script: rerun.Script | None = None
    try:
        with buildah.container(image, label, keep=keep) as container:
            environment = work.environment(container)
            script = work.script(container, environment)
            script.write()
            work.compile(container, environment)
            harvest = work.harvest(container)
    except Exception:
        if keep and script:
            work.keep(cache / "kept" / work.log.stem, script)
        raise
    return write_bundle(harvest, store)


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
    jobs: int
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

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What the container sees of the host. Other steps may use the caches too: those lock themselves."""
        return (
            Mount(source=self.source, target=SOURCE),
            Mount(source=self.build, target=BUILD, read_only=False),
            Mount(source=self.cache / _CCACHE, target=CCACHE, read_only=False),
            Mount(source=self.statistics, target=STATISTICS, read_only=False),
            Mount(source=self.compilers, target=COMPILER_LINKS),
            *(
                Mount(source=self.cache / name, target=target, read_only=False)
                for name, target in self.toolchain.caches.items()
            ),
        )

    @property
    def _fetches(self) -> bool:
        """Does anything of it use the network?"""
        return self.description.network == "host" or any(command.fetches for command in self.toolchain.commands)

    def make_directories(self) -> None:
        """What is mounted has to be there; caches count as used now, since `assemble gc` frees old ones."""
        for mount in self.mounts:
            mount.source.mkdir(parents=True, exist_ok=True)
        for name in self.toolchain.caches:
            os.utime(self.cache / name)

    def network(self, command: Command) -> Network:
        """The network of a command."""
        return "none" if self.offline else "host" if command.fetches else self.description.network

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
        if self.accelerator and self.accelerator.cuda:
            environment.setdefault("PYTORCH_NVCC", "ccache nvcc")
        if self.toolchain.ccache == "launcher":
            return toolchains.with_ccache(environment)
        program, path = container.ask('command -v ccache; echo "$PATH"')
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
                    env={**environment, **command.environment, **self.secrets.environment},
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

    def compile(self, container: Container, environment: Mapping[str, str]) -> None:
        """Run the commands in order; once in a step, one that memory was not enough for with half the jobs."""
        commands, environment, jobs = self.toolchain.commands, dict(environment), self.jobs
        runner = Commands(
            container=container,
            mounts=(*self.mounts, *(index_settings(self.tools) if self._fetches else ())),
            network=self.network,
            log=self.log,
            emit=self.emit,
            step=self.step,
            label=self.label,
            secrets=self.secrets,
        )
        index = 0
        while index < len(commands):
            command = commands[index]
            start = self.log.stat().st_size if self.log.exists() else 0
            try:
                if command.prepares:
                    self._prepare(runner, command, environment)
                else:
                    runner.run(command, environment)
            except StepError as error:
                out_of_memory = advice.ran_out_of_memory(error, advice.end_of(self.log, start))
                if not out_of_memory or jobs < self.jobs or jobs == 1:
                    raise self._failure(error, command, start) from error
                jobs //= 2
                text = f"{self.label}: it ran out of memory with {self.jobs} jobs; trying again with {jobs}"
                self.emit(Note(text=text, level="warning"))
                fewer = toolchain_of(self.description, self.accelerator, jobs, self.source)
                commands = fewer.commands
                environment |= {
                    name: value
                    for name, value in fewer.environment.items()
                    if value != self.toolchain.environment.get(name) and name not in self.description.env
                }
                continue
            index += 1
        self._tell_hits()

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

    def _failure(self, error: StepError, command: Command, start: int) -> StepError:
        """The same error with the place, the log, the line that runs the step again, and advice."""
        end = advice.end_of(self.log, start)
        hint, fact = error.hint, error.fact
        if command.called:
            fact = fact.replace(command_text(command.argv), command.called)
        if advice.ran_out_of_memory(error, end):
            hint = advice.MEMORY
        elif _LIBRARY_MISSING in end and self.description.cmake and not self.description.cmake.install:
            hint = (
                "a program of the build does not find its library; with `install: true` it does,"
                " and artifacts are taken from what is installed"
            )
        return StepError(
            fact,
            place=self.label,
            hint=hint or advice.hint_for(end),
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
            text = f"{self.label}: ccache had {hits} of {hits + misses} objects ({share})"
            facts: dict[str, str | int] = {"step": self.step, "cache": _CCACHE, "hits": hits, "misses": misses}
            self.emit(Note(text=text, facts=facts))

    def check(self, harvest: Harvest) -> None:
        """StepError when what was built could not run where it is meant to, or must not be seen."""
        self.secrets.check(harvest, self.label)
        check_search_paths(self.built(harvest), self.label, _ONLY_WHILE_BUILDING)
        own = {
            name: tuple(item for item in items if item.source.is_relative_to(self.build))
            for name, items in harvest.items()
        }
        check_architectures(
            own,
            self.accelerator,
            self.label,
            strictness=self.description.architectures,
            required=self.description.toolchain in ("nvcc", "hipcc"),
        )

    def harvest(self, container: Container) -> Harvest:
        """What the artifacts are, stripped and found to be good."""
        harvest = self.found()
        if self.description.strip and self.strip(container, harvest):
            harvest = self.found()
        self.check(harvest)
        return harvest

    def found(self) -> Harvest:
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
