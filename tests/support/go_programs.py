"""Programs of other makers that are written in Go: compiled from the Go module proxy, once for each version.

`go/` beside this file is a Go module with a `main.go` for each and their versions and hashes in `go.mod` and
`go.sum`. What was compiled is kept in the user's cache directory, outside of the repository. Go is the one thing
that may be lacking in CI as well, since that of Debian 12 is too old: the tests are then skipped, and say so.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

from assembler.process import which

SOURCES: Final = Path(__file__).with_name("go")
_OLDEST: Final = (1, 24)
_KEEP_SECONDS: Final = 30 * 86400.0
_PLACES: Final = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go", "/usr/lib/go-1.24/bin/go")


def go_program(name: str) -> str:
    """The path of the program that `go/NAME/main.go` is, compiled now if it never was."""
    go = _go()
    if go is None:
        pytest.skip(f"Go {'.'.join(map(str, _OLDEST))} or newer is not installed, and `{name}` is compiled by it")
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "assemble-tests")
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / f"{name}-{_key(name, go)}"
    with (directory / f"{name}.lock").open("w") as lock:  # workers of a test run want it at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            for old in directory.glob(f"{name}-*"):  # other checkouts may be using theirs
                if time.time() - old.stat().st_mtime > _KEEP_SECONDS:
                    old.unlink()
            _compile(go, name, program)
        os.utime(program)
    return str(program)


def _compile(go: str, name: str, program: Path) -> None:
    part = program.with_name(f"{program.name}.part")
    done = subprocess.run(
        [go, "build", "-trimpath", "-ldflags=-s -w", "-o", str(part), f"./{name}"],
        cwd=SOURCES,
        env={**os.environ, "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"`{name}` cannot be compiled:\n{done.stderr[-3000:]}"
    part.replace(program)


def _key(name: str, go: str) -> str:
    """What decides the bytes of the program."""
    parts = [(SOURCES / file).read_bytes() for file in ("go.mod", "go.sum", f"{name}/main.go")]
    return hashlib.sha256(b"\0".join([*parts, go.encode()])).hexdigest()[:16]


@functools.cache
def _go() -> str | None:
    """A Go that is new enough; None when there is none."""
    for go in (which("go"), *_PLACES):
        if go and Path(go).exists():
            said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
            numbers = said.strip().removeprefix("go").split(".")[:2]
            if len(numbers) == 2 and all(n.isdecimal() for n in numbers) and tuple(map(int, numbers)) >= _OLDEST:
                return go
    return None
