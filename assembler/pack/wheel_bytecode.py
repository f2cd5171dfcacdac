"""Compiled Python files for wheels, made by a Python of this host that has the version of the image's.

The same source gives the same `.pyc`: the header has no time, hashes are seeded alike, and each wheel is compiled
in its own process in the order of its files. What may differ is the micro version of Python, so that is in the
key.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from assembler.errors import NodeError, StepError
from assembler.oci.digest import Digest
from assembler.oci.layout import Store
from assembler.pack import bytecode_child
from assembler.process import run, which
from assembler.tree.entry import Slice

_SAY: Final = (
    "import sys;"
    "print(sys.executable);"
    "print('.'.join(map(str, sys.version_info[:3])) + getattr(sys, 'abiflags', ''));"
    "print(sys.implementation.cache_tag)"
)
# Nothing of the user's environment may show in what is compiled.
_CLEAN: Final = ("env", "-i", "LC_ALL=C.UTF-8", "PYTHONHASHSEED=0")


@dataclass(frozen=True, slots=True)
class Compiler:
    """A Python of this host: its path, its exact version, and the tag in the names of its compiled files."""

    path: str
    version: str
    tag: str

    @property
    def minor(self) -> str:
        """The version as paths have it, such as `3.13t`."""
        return self.version.rpartition(".")[0] + ("t" if self.version.endswith("t") else "")

    def compile(self, archive: Path, sources: Sequence[tuple[str, str]], store: Store) -> list[Slice | None]:
        """Compile members of a wheel, each a name and the path that its code is to carry.

        The result lies in one blob of the store; None for what is no valid source. StepError when Python fails.
        """
        with store.writer() as blob:
            request = {"archive": str(archive), "output": str(blob.path), "sources": list(sources)}
            done = run(
                [*_CLEAN, self.path, "-S", "-s", "-B", "-W", "ignore", str(bytecode_child.__file__)],
                input_bytes=json.dumps(request).encode(),
            )
            sizes = json.loads(done.stdout)
            digest = hashlib.sha256()
            with blob.path.open("rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
                written = file.tell()
            if len(sizes) != len(sources) or sum(sizes) != written:
                raise StepError(f"`{self.path}` compiled {len(sizes)} of {len(sources)} files", place=str(archive))
            name = Digest("sha256:" + digest.hexdigest())
            blob.commit(name)
        offset = 0
        found: list[Slice | None] = []
        for size in sizes:
            found.append(Slice(store.blob_path(name), offset, size) if size else None)
            offset += size
        return found


@functools.cache
def find_compiler(python: str) -> Compiler:
    """A Python of this host of the minor version `python`; NodeError when there is none."""
    for candidate in (sys.executable, which(f"python{python}")):
        compiler = _asked(candidate) if candidate else None
        if compiler and compiler.minor == python:
            return compiler
    raise NodeError(
        f"`bytecode` needs Python {python} on this host, as the image has it",
        hint=f"install `python{python}`, or leave `bytecode` out; Python then compiles when it runs",
    )


def _asked(path: str) -> Compiler | None:
    """What this Python says of itself."""
    try:
        done = run([path, "-I", "-S", "-c", _SAY], check=False)
    except NodeError:
        return None
    lines = done.stdout.splitlines()
    return Compiler(*lines) if done.returncode == 0 and len(lines) == 3 else None
