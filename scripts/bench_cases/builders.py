"""Who is measured: ourselves, buildah, and docker where a daemon runs. All build the same layers and push them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench_cases.measure import Run, read_result, timed

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent.parent


class Builder(Protocol):
    """Builds an image of `work/tree`, with one layer for all of it or one for each of `directories`."""

    name: str

    def build(self, work: Path, directories: Sequence[str], reference: str) -> Run:
        """Build and push; what an earlier build left is used."""

    def clean(self) -> None:
        """Forget everything that was built."""


class Ours:
    """`python -m assembler MANIFEST --push REFERENCE`, with a cache of its own."""

    name = "assemble"

    def __init__(self, directory: Path) -> None:
        self._cache = directory / "assemble-cache"
        self.bytes_pushed: int | None = None
        self.bytes_pulled: int | None = None

    def build(self, work: Path, directories: Sequence[str], reference: str) -> Run:
        manifest = work / "bench-tree.yaml"
        text = manifest_text(directories)
        if not manifest.exists() or manifest.read_text() != text:
            manifest.write_text(text)
        paths = os.pathsep.join(filter(None, (str(REPOSITORY_ROOT), os.environ.get("PYTHONPATH"))))
        run = timed(
            [sys.executable, "-m", "assembler", str(manifest), "--push", reference, "--json"],
            env={"ASSEMBLE_CACHE": str(self._cache), "PYTHONPATH": paths},
            cwd=work,
        )
        result = read_result(run.stdout)
        self.bytes_pushed, self.bytes_pulled = result.get("bytes_pushed"), result.get("bytes_pulled")
        return run

    def clean(self) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)


class Buildah:
    """`buildah bud` and `buildah push`, with storage of its own."""

    name = "buildah"

    def __init__(self, directory: Path) -> None:
        self._root = directory / "buildah-root"
        self.compression = "gzip"  # what it takes by itself
        self._argv = ["buildah", "--root", str(self._root), "--runroot", str(directory / "buildah-run")]

    @staticmethod
    def is_there() -> bool:
        """Is it installed?"""
        return shutil.which("buildah") is not None

    def build(self, work: Path, directories: Sequence[str], reference: str) -> Run:
        containerfile = work / "Containerfile"
        containerfile.write_text(containerfile_text(directories))
        build = [*self._argv, "bud", "--layers", "-t", reference, "-f", str(containerfile), str(work)]
        options = ["--tls-verify=false", "--compression-format", self.compression]
        push = [*self._argv, "push", *options, reference, f"docker://{reference}"]
        return both(timed(build), timed(push))

    def clean(self) -> None:
        if self._root.exists():
            subprocess.run([*self._argv, "rmi", "--all", "--force"], capture_output=True, check=False)
            shutil.rmtree(self._root, ignore_errors=True)


class Docker:
    """`docker build` and `docker push` with the daemon that runs. It goes without a peak: the daemon has it."""

    name = "docker"

    def __init__(self) -> None:
        self._built: set[str] = set()

    @staticmethod
    def is_there() -> bool:
        """Is it installed, and is there a daemon? podman's stand-in for the command has none."""
        if shutil.which("docker") is None:
            return False
        asked = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"], capture_output=True, text=True, check=False
        )
        return asked.returncode == 0 and bool(asked.stdout.strip())

    def build(self, work: Path, directories: Sequence[str], reference: str) -> Run:
        containerfile = work / "Containerfile"
        containerfile.write_text(containerfile_text(directories))
        self._built.add(reference)
        build = ["docker", "build", "-t", reference, "-f", str(containerfile), str(work)]
        return both(timed(build, env={"DOCKER_BUILDKIT": "1"}), timed(["docker", "push", reference]))

    def clean(self) -> None:
        if self._built:
            subprocess.run(["docker", "rmi", "--force", *sorted(self._built)], capture_output=True, check=False)
            subprocess.run(["docker", "builder", "prune", "--force", "--all"], capture_output=True, check=False)
            self._built.clear()


def peers(directory: Path) -> list[Builder]:
    """The peers that this host has."""
    found: list[Builder] = []
    if Buildah.is_there():
        found.append(Buildah(directory))
    if Docker.is_there():
        found.append(Docker())
    return found


def manifest_text(directories: Sequence[str]) -> str:
    """Our manifest: one `copy` layer for the tree, or one for each directory."""
    lines = [
        "manifest: 1",
        "name: bench-tree",
        "runtime: scratch",
        "sources:",
        "  tree: {path: ./tree}",
        "layers:",
    ]
    if directories:
        lines += [f"  - copy: {{source: tree, path: {name}, to: /opt/tree/{name}/}}" for name in directories]
    else:
        lines.append("  - copy: {source: tree, to: /opt/tree/}")
    return "\n".join(lines) + "\n"


def containerfile_text(directories: Sequence[str]) -> str:
    """The peers' Containerfile with the same layers."""
    if directories:
        copies = [f"COPY tree/{name} /opt/tree/{name}/" for name in directories]
    else:
        copies = ["COPY tree /opt/tree/"]
    return "\n".join(["FROM scratch", *copies]) + "\n"


def both(*runs: Run) -> Run:
    """Commands that ran one after the other, as one."""
    return Run(
        sum(run.seconds for run in runs), max(run.peak_mib for run in runs), "".join(r.stdout for r in runs)
    )
