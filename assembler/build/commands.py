"""The commands of a compile step in its container: run one, or have from the cache what one would prepare."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from assembler.build.container import Container, Network
from assembler.build.mounting import Mount
from assembler.build.noise import command_text
from assembler.build.prepared import PreparedBuild
from assembler.build.secrets import Secrets
from assembler.build.toolchains import Command
from assembler.errors import StepError
from assembler.events import Emit, Outcome, StepFinished, StepOutput, StepStarted


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """Where and how commands run. `step` names the compile step in events, `label` is its name for people.

    `before` are words that commands run behind, unless they only fetch.
    """

    container: Container
    mounts: tuple[Mount, ...]
    network: Callable[[Command], Network]
    before: tuple[str, ...]
    log: Path
    emit: Emit
    step: str
    label: str
    secrets: Secrets

    def run(
        self,
        command: Command,
        environment: Mapping[str, str],
        *,
        tools: tuple[Mount, ...] = (),
        step: str | None = None,
    ) -> None:
        """Run one to its end; StepError when it fails."""
        with self.log.open("a") as log:
            log.write(f"$ {command_text(command.argv, length=None)}\n")
        hide = self.secrets.hide
        try:
            self.container.run(
                command.behind(self.before),
                env={**environment, **command.environment, **self.secrets.environment},
                mounts=(*self.mounts, *self.secrets.mounts, *tools),
                workdir=command.workdir,
                network=self.network(command),
                log=self.log,
                on_line=lambda line: self.emit(StepOutput(step=step or self.step, line=hide(line))),
            )
        except StepError as error:
            called = command.called or command_text(command.argv)
            fact = error.fact.replace(command_text(command.behind(self.before)), called)
            raise StepError(hide(fact), hint=error.hint, detail=[*map(hide, error.detail)]) from None
        finally:
            self.secrets.clean(self.log)

    def prepare(
        self,
        command: Command,
        environment: Mapping[str, str],
        *,
        place: PreparedBuild,
        target: Path,
        tools: Mapping[str, Path],
        scratch: Path,
    ) -> None:
        """Have what the command makes in `target`: from the cache, or made now and kept there.

        `tools` are files by their place in the container; `scratch` has room for them. A command that fails has
        done what it could: what is left to do is done, and reported, by the commands after it.
        """
        step, name = f"{self.step or self.label}:dependencies", f"{self.label} dependencies"
        started = time.monotonic()
        self.emit(StepStarted(step=step, verb="compile", name=name))
        whole = place.restore(target)
        if not whole:
            mounts = tuple(_executable(tool, scratch, where) for where, tool in tools.items())
            with contextlib.suppress(StepError):
                self.run(command, environment, tools=mounts, step=step)
            place.store(target)
        outcome: Outcome = "cached" if whole else "built"
        self.emit(
            StepFinished(
                step=step,
                verb="compile",
                name=name,
                outcome=outcome,
                seconds=time.monotonic() - started,
                detail="beginning with those of another lock file" if whole is False else "",
                key=place.key,
            )
        )


def _executable(tool: Path, scratch: Path, where: str) -> Mount:
    """A file of ours as a program of the container, whatever modes an installation gave it."""
    copy = scratch / tool.name
    shutil.copyfile(tool, copy)
    copy.chmod(0o755)
    return Mount(source=copy, target=where)
