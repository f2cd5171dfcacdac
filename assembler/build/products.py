"""What a compile step made: found in its directories, stripped, and seen to be fit for where it is going."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.build.binaries import Binary, binaries, check_search_paths
from assembler.build.container import Container, Mount
from assembler.build.gpu_check import check_architectures
from assembler.build.harvest import Harvest, find
from assembler.build.secrets import Secrets
from assembler.build.toolchains import BUILD, SOURCE
from assembler.errors import StepError
from assembler.events import Emit, Note
from assembler.manifest.models import Accelerator, CompileStep

_FILES_A_CALL: Final = 200
_FROM_SOURCE: Final = "source:"
_ONLY_WHILE_BUILDING: Final = (BUILD, SOURCE, "/cache", "/tmp", "/var/tmp")  # noqa: S108  (in the container)


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Where the artifacts of a step are looked for: in `build`, or below `harvest_from` in it, and in `source`."""

    description: CompileStep
    accelerator: Accelerator | None
    harvest_from: str
    build: Path
    source: Path
    secrets: Secrets
    mounts: tuple[Mount, ...]
    log: Path
    label: str
    emit: Emit

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
        root, called = self.build / self.harvest_from, "the build directory"
        if self.harvest_from:
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
