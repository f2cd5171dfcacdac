"""Scripts of a wheel: those that entry points ask for, and those that name `#!python`.

The entry points specification, and "Recommended installer features" of the binary distribution format.
"""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Mapping
from typing import Final

from assembler.errors import UntrustedInputError

PLACEHOLDER: Final = b"#!python"
"""A script that begins so gets the environment's interpreter in its first line."""

_GROUPS: Final = ("console_scripts", "gui_scripts")
_SHEBANG_LIMIT: Final = 127  # Linux before 5.1 cuts the line after that; the newline is not counted
_DOTTED: Final = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_REFERENCE: Final = re.compile(rf"\s*(?P<module>{_DOTTED})\s*:\s*(?P<object>{_DOTTED})\s*(?:\[[^\]]*\]\s*)?")
_VERSIONED_PIP: Final = re.compile(r"pip\d+(?:\.\d+)?")
_SCRIPT_NAME: Final = re.compile(r"[^/\0-\x1f\x7f]+")
_SIMPLE_PATH: Final = re.compile(r"[\w@%+=:,./~-]+", re.ASCII)


def entry_point_scripts(data: bytes, archive: str) -> dict[str, tuple[str, str]]:
    """The scripts that `entry_points.txt` asks for, graphical or not: name → module and object.

    UntrustedInputError naming the wheel when one of them cannot be made.
    """
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False, default_section="\0")
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
    try:
        parser.read_string(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, configparser.Error) as error:
        fact = str(error).splitlines()[0]
        raise UntrustedInputError(f"`entry_points.txt` cannot be read: {fact}", place=archive) from error
    scripts = {}
    for group in _GROUPS:
        for name, value in parser.items(group) if parser.has_section(group) else ():
            reference = _REFERENCE.fullmatch(value)
            if not reference:
                raise UntrustedInputError(
                    f"`entry_points.txt`: the script `{name}` is `{value}`; expected `module:function`",
                    place=archive,
                )
            if not _SCRIPT_NAME.fullmatch(name) or name in {".", ".."}:
                raise UntrustedInputError(f"`entry_points.txt`: `{name!a}` is no name for a script", place=archive)
            scripts[name] = reference["module"], reference["object"]
    return scripts


def versioned_pip(scripts: Mapping[str, tuple[str, str]], python: str) -> dict[str, tuple[str, str]]:
    """pip's scripts as pip and uv install them, whatever its wheel says: `pip3.11` for Python 3.11."""
    own = scripts.get("pip")
    if own is None:
        return dict(scripts)
    kept = {name: reference for name, reference in scripts.items() if not _VERSIONED_PIP.fullmatch(name)}
    return {**kept, f"pip{python.partition('.')[0]}": own, f"pip{python}": own}


def script_text(interpreter: str, module: str, reference: str) -> bytes:
    """A script that calls an object of a module and exits with what it returns."""
    first = reference.partition(".")[0]
    lines = (
        "import sys",
        "",
        f"from {module} import {first}",
        "",
        'if __name__ == "__main__":',
        f"    sys.exit({reference}())",
    )
    return shebang(interpreter) + "\n".join(lines).encode() + b"\n"


def with_interpreter(script: bytes, interpreter: str) -> bytes:
    """A script that began with `#!python`, its first line for this interpreter. Options in it go, as with pip."""
    _, _, rest = script.partition(b"\n")
    return shebang(interpreter) + rest


def shebang(interpreter: str) -> bytes:
    """The first line of a script, or three that mean the same where the kernel would not take it.

    Those are a shell command to a shell and a string to Python.
    """
    line = f"#!{interpreter}"
    if len(line.encode()) > _SHEBANG_LIMIT or not _SIMPLE_PATH.fullmatch(interpreter):
        line = f"#!/bin/sh\n'''exec' {shlex.quote(interpreter)} \"$0\" \"$@\"\n' '''"
    return line.encode() + b"\n"
