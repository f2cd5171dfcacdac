"""How the program starts itself again in a user namespace: by leaving everything first, then becoming itself.

What was done so far is in the store, so the second start finds it there.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn


class Entering(BaseException):
    """Raised where a namespace is needed; what it passes on its way out is let go, without a word."""

    def __init__(self, before: tuple[str, ...]) -> None:
        super().__init__("the program starts again in a user namespace")
        self.before = before


def enter(before: tuple[str, ...]) -> NoReturn:
    """Go into the namespace that these words, put before a command, start it in."""
    raise Entering(before)


def start_again(entering: Entering) -> NoReturn:
    """Become the same command line, inside."""
    from assembler.build.namespace import INSIDE

    sys.stdout.flush()
    sys.stderr.flush()
    argv = [*entering.before, sys.executable, *sys.orig_argv[1:]]
    os.execve(argv[0], argv, {**os.environ, INSIDE: "1"})  # noqa: S606
