"""What the end of a failed step's log means, and what its user can do about it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from assembler.errors import StepError
from assembler.process import exit_name

_LOG_END_BYTES: Final = 256 << 10
_KILLED: Final = 137
_OUT_OF_MEMORY: Final = re.compile(
    r"Killed signal terminated program"  # gcc
    r"|terminated with signal 9 \[Killed\]"  # collect2, about the linker
    r"|(unable to execute command|clang\S* frontend command failed due to signal).*[Kk]ill"  # clang
    r"|died due to signal 9\b"  # nvcc
    r"|signal: 9, SIGKILL"  # cargo, about rustc
    r"|xargs: .*: terminated by signal 9\b"
    r"|virtual memory exhausted|[Cc]annot allocate memory|\bout of memory allocating\b|what\(\):\s+std::bad_alloc"
)
"""What compilers and linkers say when the kernel ended one of them for want of memory, or gave them none."""

MEMORY: Final = "it ran out of memory, most likely: pass a smaller `--jobs`, or raise the step's `jobs-memory`"
_HINTS: Final = (
    (
        r"error: .*lock file .* needs to be updated but --locked|cannot update the lock file .* --locked",
        "Cargo.lock does not fit Cargo.toml: commit an updated one, or say `cargo: {locked: false}`",
    ),
    (
        r"error: no matching package named .*|unable to update registry|failed to download .*--offline",
        "a crate is not in the cache: run once without `--offline`",
    ),
    (r"error: linker `cc` not found", "add a C compiler to the step: `packages: {apt: [gcc, libc6-dev]}`"),
    (
        r"Unsupported gpu architecture '(compute_\w+)'",
        r"this nvcc does not know `\1`: take it out of `accelerator`, or compile in another devel base",
    ),
    (
        r"invalid target ID '(gfx\w+)'",
        r"this hipcc does not know `\1`: take it out of `accelerator`, or compile in a newer devel base",
    ),
    (r"No module named '?pip'?", "add pip to the step: `packages: {apt: [python3-pip]}`"),
    (
        r"ensurepip is not\s+available|No module named '?venv'?",
        "add venv to the step: `packages: {apt: [python3-venv]}`",
    ),
    (
        r"No module named '?(setuptools|wheel|scikit_build_core|hatchling|maturin|flit_core|poetry)'?"
        r"|BackendUnavailable|Cannot import '\S+'",
        "a build without isolation finds its backend in `packages` or in `wheel: {requires: […]}`",
    ),
    (
        r"Python\.h: No such file",
        "add Python's headers to the step: `packages: {apt: [python3-dev]}`",
    ),
    (
        r"fatal error: '?([\w./+-]+)'?(?:: No such file or directory| file not found)",
        r"the devel base has no header `\1`: add the package that has it, often called `…-dev`, to the step",
    ),
    (
        r"ModuleNotFoundError|ImportError: .*undefined symbol",
        "a module of the wheel, or one that it needs, does not import in the devel base",
    ),
    (
        r"Temporary failure in name resolution|Could not resolve host|Network is unreachable"
        r"|Name or service not known|dns error",
        "the step has no network: fetch what it needs as a source, or say `network: host`",
    ),
)


def ran_out_of_memory(error: StepError, text: str) -> bool:
    """Did the kernel end the command, or a compiler of its, for want of memory? `text` is what it printed."""
    return error.fact.endswith(exit_name(_KILLED)) or _OUT_OF_MEMORY.search(text) is not None


def hint_for(text: str) -> str | None:
    """Advice for a failure whose log ends like this, or None."""
    for pattern, hint in _HINTS:
        if match := re.search(pattern, text):
            return match.expand(hint)
    return None


def end_of(log: Path, start: int = 0) -> str:
    """The end of a log, from `start` at the earliest.

    A killed compiler says so before other jobs end, so the last lines may not tell.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - _LOG_END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
