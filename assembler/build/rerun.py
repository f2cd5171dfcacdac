"""A failed step by hand: a script that does it again with plain buildah, and its build directory, kept."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from assembler.build.container import Container, kept_name
from assembler.build.namespace import entrance
from assembler.oci.layout import write_atomically

_SCRIPT: Final = """\
#!/bin/sh
# {label} again, by hand, in {where}.
# With the word `shell` behind it, a shell in the container instead.
set -eu
{enter}{start}
echo "build directory: $build" >&2
if [ "${{1-}}" = shell ]; then
    {shell}
    exit
fi
set -x
{commands}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The script at `path` that runs `commands` again, which are as `Container.command` gave them.

    `build` is the build directory that they name, `scratch` others that are made anew, by the name of a shell
    variable.
    """

    path: Path
    container: Container
    commands: tuple[tuple[str, ...], ...]
    label: str
    build: Path
    scratch: Mapping[str, Path] = field(default_factory=dict)

    def write(self) -> None:
        """Write the script so that it makes a new container and a new build directory."""
        buildah = self.container.buildah
        start = buildah.command("from", "--pull-never", "--security-opt", "label=disable", self.container.image)
        remove = f'{_quoted(buildah.command("rm"))} "$container" >/dev/null'
        lines = [
            "build=$(mktemp -d)",
            f"container=$({_quoted(start)})",
            f"trap {shlex.quote(remove)} EXIT",
        ]
        self._write("a new container and a new build directory", lines)

    def write_kept(self, build: Path) -> None:
        """Write it so that it goes on in the container that was kept; the build directory is `build` now."""
        lines = [f"build={shlex.quote(str(build))}", f"container={shlex.quote(kept_name(self.container.name))}"]
        self._write("the container and the build directory that were kept", lines)

    def _write(self, where: str, start: Sequence[str]) -> None:
        names = {str(self.build): "build", **{str(path): name for name, path in self.scratch.items()}}
        names[self.container.name] = "container"
        first = self.commands[0]
        end = first.index("--", first.index(self.container.name))
        inside = first.index("run") + 1
        text = _SCRIPT.format(
            label=" ".join(self.label.split()),
            where=where,
            enter=f'[ "$(id -u)" = 0 ] || exec {before} sh "$0" "$@"\n' if (before := entrance()) else "",
            start="\n".join([*start, *(f"{name}=$(mktemp -d)" for name in self.scratch)]),
            shell=_quoted([*first[:inside], "--terminal", *first[inside:end], "--", "sh"], names),
            commands="\n".join(_quoted(command, names) for command in self.commands),
        )
        write_atomically(self.path, text.encode())


def _quoted(argv: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """A command line for a shell, in which some texts are variables."""
    return " ".join(_word(word, variables or {}) for word in argv)


def _word(word: str, variables: Mapping[str, str]) -> str:
    for text, name in variables.items():
        before, found, after = word.partition(text)
        if found:
            parts = (shlex.quote(before) if before else "", f'"${name}"', shlex.quote(after) if after else "")
            return "".join(parts)
    return shlex.quote(word)


def replace_directory(source: Path, target: Path) -> None:
    """Move a directory to a place where an older one may be; OSError when that cannot be."""
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
