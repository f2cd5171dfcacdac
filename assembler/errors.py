"""Errors, each known by whose turn it is next.

An error says where (`place`), what (`fact`) and what to do (`hint`). The command line prints

    error: PLACE: FACT
        DETAIL …

    hint: HINT

Facts are lower case, without a full stop when they are one sentence, literals in backticks, expected before
found. Only `cli` turns an error into text on a terminal and an exit code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence


class AssembleError(Exception):
    """The base of everything that a user can be told. `exit_code` is what the process ends with."""

    exit_code = 1

    def __init__(
        self, fact: str, *, place: str | None = None, hint: str | None = None, detail: Sequence[str] = ()
    ) -> None:
        super().__init__(fact)
        self.fact = fact
        self.place = place
        self.hint = hint
        self.detail = tuple(detail)
        for line in self.detail:  # so that a traceback, which is all that a failed test has, tells it too
            self.add_note(line)

    def __str__(self) -> str:
        return f"{self.place}: {self.fact}" if self.place else self.fact

    def render(self) -> str:
        """The whole message, ready for a terminal, without a trailing newline."""
        lines = [f"error: {self}", *(f"    {line}" for line in self.detail)]
        if self.hint:
            lines += ["", f"hint: {self.hint}"]
        return "\n".join(lines)


class RequestError(AssembleError):
    """The command line asks for something that cannot be asked. Change the command."""

    exit_code = 2


class ManifestError(AssembleError):
    """A manifest or recipe is wrong. Edit the YAML."""

    exit_code = 2


class InvalidManifestError(ManifestError):
    """Every error found in the manifests and recipes of one request, in file order."""

    def __init__(self, errors: Sequence[ManifestError]) -> None:
        super().__init__(f"{len(errors)} error{'s' if len(errors) != 1 else ''}")
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)

    def render(self) -> str:
        parts = [error.render() for error in self.errors]
        return "\n".join([*parts, self.fact] if len(parts) > 1 else parts)


class LockError(AssembleError):
    """The lock does not answer, or what it names is gone. Update the lock."""

    exit_code = 2


class StepError(AssembleError):
    """A step failed in its container. Read the log."""


class NodeError(AssembleError):
    """This host lacks something: a tool, a right, disk. Ask the administrator, or go the way round."""


class UntrustedInputError(AssembleError):
    """A wheel, archive, base or layer tries something that it must not. Nothing was written."""


class RegistryError(AssembleError):
    """A registry refused or failed. Look at credentials, network, permissions."""


class VerifyError(AssembleError):
    """What was written is not what was meant: a defect of ours, or a damaged store."""


def refused(error: OSError) -> str:
    """Why the operating system refused, in the style of facts.

    >>> refused(OSError(28, "No space left on device"))
    'no space left on device'
    """
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def placed(place: str, hint: str | None = None) -> Iterator[None]:
    """Errors of the block that say no place, or no hint, get these: who called knows more than who failed."""
    try:
        yield
    except AssembleError as error:
        error.place = error.place or place
        error.hint = error.hint or hint
        raise
