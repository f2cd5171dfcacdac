"""A failed step by hand: a script that does it again with plain buildah, and its build directory, kept."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from assembler.build.container import Container
from assembler.oci.layout import write_atomically

_SCRIPT: Final = """\
#!/bin/sh
# {label} again, by hand, in a new container and a new build directory.
# With the word `shell` behind it, a shell in the container instead.
set -eu
{made}
container=$({start})
trap '{remove} "$container" >/dev/null' EXIT
echo "build directory: $build" >&2
if [ "${{1-}}" = shell ]; then
    {shell}
    exit
fi
set -x
{commands}
"""


def write_script(
    path: Path,
    container: Container,
    commands: Sequence[Sequence[str]],
    label: str,
    variables: Mapping[str, str],
) -> None:
    """Write the script that runs `commands`, as `Container.command` gave them, in another container.

    `variables` says which directories become new ones, by the name of a shell variable; one is `build`.
    """
    names = {**variables, container.name: "container"}
    start = container.buildah.command("from", "--pull-never", "--security-opt", "label=disable", container.image)
    first = list(commands[0])
    end = first.index("--", first.index(container.name))
    inside = first.index("run") + 1
    text = _SCRIPT.format(
        label=" ".join(label.split()),
        made="\n".join(f"{name}=$(mktemp -d)" for name in variables.values()),
        start=_quoted(start, {}),
        remove=_quoted(container.buildah.command("rm"), {}).replace("'", "'\\''"),
        shell=_quoted([*first[:inside], "--terminal", *first[inside:end], "--", "sh"], names),
        commands="\n".join(_quoted(command, names) for command in commands),
    )
    write_atomically(path, text.encode())


def _quoted(argv: Sequence[str], variables: Mapping[str, str]) -> str:
    """A command line for a shell, in which some texts are variables."""
    return " ".join(_word(word, variables) for word in argv)


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
