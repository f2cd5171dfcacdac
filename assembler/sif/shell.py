"""Words for a POSIX shell's scripts that are stored in images: whatever they say, nothing of it is evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from assembler.errors import UntrustedInputError


def quoted(text: str) -> str:
    """The text as one word of a script. UntrustedInputError for what no process can be given.

    A quotation mark stands in marks of the other kind: the shell in Apptainer (mvdan.cc/sh), which reads the
    scripts of the environment, keeps the backslash of `\\'` in a value.

    >>> print(quoted("it's $HOME"))
    'it'"'"'s $HOME'
    """
    if "\0" in text:
        raise UntrustedInputError(f"{text[:80]!a} has a NUL, which no argument and no variable can have")
    return "'" + text.replace("'", "'\"'\"'") + "'"


def words(texts: Sequence[str]) -> str:
    """Several words, separated by blanks."""
    return " ".join(map(quoted, texts))
