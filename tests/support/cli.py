"""The program as a user runs it: a child process with a cache of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Program:
    """`assemble` with a cache directory."""

    cache: Path

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The child's environment: ours, with this checkout and this cache."""
        return {**os.environ, "PYTHONPATH": str(ROOT), "ASSEMBLE_CACHE": str(self.cache), **(extra or {})}

    def __call__(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        umask: int = -1,
        prefix: Sequence[str] = (),
        user: str | None = None,
    ) -> Ended:
        """Run to the end."""
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "assembler", *map(str, arguments)],
            cwd=cwd,
            env=self.environment(env),
            umask=umask,
            user=user,
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path, **keywords: Any) -> str:
        """Run, expect success, and return stdout without its last newline."""
        ended = self(*arguments, **keywords)
        assert ended.code == 0, ended.stderr
        return ended.stdout.rstrip("\n")
