"""Patches: what a manifest changes in a source after it was fetched, by `git apply`, which writes nowhere else.

A patch's paths are relative to the root of the source, with one leading directory (`a/`, `b/`) dropped.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from assembler.build.git import apply
from assembler.errors import ManifestError
from assembler.tree.archive import SOURCE_TIME


def patch_digests(patches: Sequence[str], directory: Path) -> list[str]:
    """The SHA-256 of each patch, in order; ManifestError when one cannot be read."""
    return [hashlib.sha256(_read(directory / name, name)).hexdigest() for name in patches]


def apply_patches(patches: Sequence[str], directory: Path, tree: Path) -> None:
    """Change the files of `tree`, in order; ManifestError names the patch that does not apply, and where."""
    for name in patches:
        path = (directory / name).absolute()
        _read(path, name)
        lines = apply(path, tree)
        if lines is not None:
            raise ManifestError(
                "the patch does not apply",
                place=name,
                detail=lines,
                hint="was it made for another version of the source?",
            )
    if patches:
        _settle(tree)


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestError((error.strerror or str(error)).lower(), place=name) from error


def _settle(tree: Path) -> None:
    """Give everything the times and modes of a checkout again."""
    for root, directories, files in os.walk(tree):
        for name in (*directories, *files):
            path = Path(root) / name
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                path.chmod(0o755 if status.st_mode & 0o100 else 0o644)
            elif stat.S_ISDIR(status.st_mode):
                path.chmod(0o755)
            os.utime(path, (SOURCE_TIME, SOURCE_TIME), follow_symlinks=False)
    os.utime(tree, (SOURCE_TIME, SOURCE_TIME))
