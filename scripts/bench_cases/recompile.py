"""What a small change costs when something has to be compiled: ours against buildah's layers and docker's caches.

recompile-cpp changes one line in one C++ file of llama.cpp's ggml, whose libraries are then compiled. With
buildah, a changed source is another layer, and everything is compiled again; docker's build has a cache mount with
ccache in it. recompile-cargo gives a Rust program another version of one of its dependencies.

Everybody compiles in the same devel image, which we make and push to a registry on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench_cases.builders import REPOSITORY_ROOT, Buildah, Docker
from bench_cases.measure import Run, registry, timed

HERE = Path(__file__).resolve().parent
SETTLE_SECONDS = 2.5
CASES = ("recompile-cpp", "recompile-cargo")

_LLAMA = "llama-cpp-python==0.3.36"
_TRUST = "/etc/ssl/bench-ca.crt"
_CHANGED_FILE = "ggml/src/ggml-backend.cpp"
_DEFINITIONS = {"GGML_NATIVE": "OFF", "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_EXAMPLES": "OFF"}
_CRATES = (
    ("1.0.14", "d75a2a4b1b190afb6f5425f10f6a8f959d2ea0b9c2b1d79553551850539e4674"),
    ("1.0.15", "4a5f13b858c8d314ee3e8f639011f7ccefe71f97f96e50151fb991f267928e2c"),
    ("1.0.11", "49f1f14873335454500d59611f1cf4a4b0f786f9ac11f4312a78e4cf2566695b"),
    ("1.0.10", "b1a46d1a171d865aa5f83f92695765caa047a9b4cbae2cbf37dbd613a793fd4c"),
    ("1.0.9", "af150ab688ff2122fcef229be89cb50dd66af9e01a4ff320cc137eecc9bacc38"),
)
"""Versions of a crate with their hashes; the first is the one of the lock file."""

_DEVEL = """\
manifest: 1
name: devel
runtime: {{bootstrap: {{suite: bookworm, packages: [ca-certificates]}}}}
layers:
  - packages: {{apt: [{packages}]}}
compression: gzip
"""
_MANIFEST = """\
manifest: 1
name: bench
devel: devel.yaml
runtime: scratch
sources: {{source: {{path: ./source}}}}
compile:
  step:
    toolchain: {toolchain}
    source: source
    {options}
    artifacts: {{result: "{artifact}"}}
layers:
  - copy: {{artifact: step.result, to: /app/}}
"""


@dataclass(frozen=True)
class Project:
    """What is compiled: for us, in a Containerfile (its `RUN` line, and one with cache mounts), and the change."""

    packages: str
    toolchain: str
    options: str
    artifact: str
    run: str
    run_cached: str
    write: Callable[[Path, Path], None]
    change: Callable[[Path, int], None]


def _write_llama(source: Path, cache: Path) -> None:
    timed(
        [sys.executable, str(HERE / "fetch.py"), _LLAMA, "vendor/llama.cpp", str(cache), str(source)], env=_PATHS
    )


def _change_llama(source: Path, number: int) -> None:
    path = source / _CHANGED_FILE
    text = path.read_text().partition("\n// change ")[0]
    path.write_text(f"{text}\n// change {number}\nextern const int ggml_bench_{number} = {number};\n")


def _write_rust(source: Path, _cache: Path) -> None:
    shutil.copytree(HERE / "rust", source)


def _change_rust(source: Path, number: int) -> None:
    """Another version of a crate, both in Cargo.toml and in the lock file; 0 is the first one."""
    manifest, lock = source / "Cargo.toml", source / "Cargo.lock"
    text, locked = (HERE / "rust/Cargo.toml").read_text(), (HERE / "rust/Cargo.lock").read_text()
    (old, old_sum), (new, new_sum) = _CRATES[0], _CRATES[number % len(_CRATES)]
    manifest.write_text(text.replace(f'itoa = "={old}"', f'itoa = "={new}"'))
    entry = 'name = "itoa"\nversion = "{}"'
    lock.write_text(locked.replace(entry.format(old), entry.format(new)).replace(old_sum, new_sum))


_CMAKE = "cmake -S /src -B /build -G Ninja -DCMAKE_BUILD_TYPE=Release " + " ".join(
    f"-D{name}={value}" for name, value in _DEFINITIONS.items()
)
_BUILD = "cmake --build /build --target ggml"
_CARGO = "cargo build --release --locked"
PROJECTS: Mapping[str, Project] = {
    "recompile-cpp": Project(
        packages="cmake, ninja-build, g++, ccache",
        toolchain="cmake",
        options=f"cmake: {{targets: [ggml], definitions: {json.dumps(_DEFINITIONS)}}}",
        artifact="bin/*.so*",
        run=f"RUN {_CMAKE} && {_BUILD}",
        run_cached=f"RUN --mount=type=cache,target=/root/.cache/ccache {_CMAKE}"
        f" -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache && {_BUILD}",
        write=_write_llama,
        change=_change_llama,
    ),
    "recompile-cargo": Project(
        packages="cargo-web, rustc-web, gcc, libc6-dev",
        toolchain="cargo",
        options="cargo: {}",
        artifact="target/release/bench",
        run=f"WORKDIR /src\nRUN {_CARGO}",
        run_cached="WORKDIR /src\nRUN --mount=type=cache,target=/root/.cargo/registry"
        f" --mount=type=cache,target=/src/target {_CARGO} && cp target/release/bench /",
        write=_write_rust,
        change=_change_rust,
    ),
}


class Recompile:
    """The cases of this file, in a directory of their own."""

    def __init__(self, directory: Path, runs: int, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._runs = runs
        self._say = say

    def run(self, case: str) -> tuple[float, dict[str, float], float]:
        """Median seconds of ours and of the peers after a change, and our peak memory in MiB."""
        project = PROJECTS[case]
        work, cache = self._directory / case, self._directory / "recompile-cache"
        work.mkdir()
        project.write(work / "source", cache)
        (work / "devel.yaml").write_text(_DEVEL.format(packages=project.packages))
        values = {"toolchain": project.toolchain, "options": project.options, "artifact": project.artifact}
        (work / "bench.yaml").write_text(_MANIFEST.format(**values))
        with registry(work / "registry") as host:
            devel = f"{host}/devel:1"
            _assemble(work, cache, "devel.yaml", "--push", devel)
            ours = self._measured("assemble", work, project, lambda: _assemble(work, cache, "bench.yaml"))
            peers = {}
            for name, argv, line in self._peers(project):
                # cargo needs the certificates of this host, as ours has them.
                trust = f"COPY ca.crt {_TRUST}\nENV CARGO_HTTP_CAINFO={_TRUST}\n" if _has_ca(work) else ""
                text = f"FROM {devel}\n{trust}COPY source /src\n{line}\n"
                (work / "Containerfile").write_text(text)
                build = [*argv, "-t", "bench-recompile", "-f", str(work / "Containerfile"), str(work)]
                runs = self._measured(name, work, project, partial(timed, build, env={"DOCKER_BUILDKIT": "1"}))
                peers[name] = statistics.median(run.seconds for run in runs)
        self._release()
        seconds = statistics.median(run.seconds for run in ours)
        return seconds, peers, max(run.peak_mib for run in ours)

    def _release(self) -> None:
        """Unmount what buildah leaves mounted, so that the directory can go."""
        places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for place in sorted((each for each in places if each.startswith(f"{self._directory}/")), reverse=True):
            timed(["umount", "--lazy", place])

    def _peers(self, project: Project) -> list[tuple[str, Sequence[str], str]]:
        """Name, command and `RUN` line of the peers that this host has."""
        found: list[tuple[str, Sequence[str], str]] = []
        if Buildah.is_there():
            root = ["--root", str(self._directory / "bud-root"), "--runroot", str(self._directory / "bud-run")]
            command = ["buildah", *root, "bud", "--layers", "--isolation", "chroot", "--tls-verify=false"]
            found.append(("buildah", command, project.run))
        if Docker.is_there():
            found.append(("docker", ["docker", "build"], project.run_cached))
        return found

    def _measured(self, name: str, work: Path, project: Project, build: Callable[[], Run]) -> list[Run]:
        """Build once, then time builds after changes."""
        self._say(f"{name}: the first time, {build().seconds:.1f} s")
        runs = []
        for number in range(1, self._runs + 1):
            project.change(work / "source", number)
            time.sleep(SETTLE_SECONDS)
            runs.append(build())
            self._say(f"{name}: {runs[-1].seconds:.2f} s")
        project.change(work / "source", 0)  # whoever is next begins with the same source
        return runs


def _has_ca(work: Path) -> bool:
    """Put the host's CA bundle beside the Containerfile, if it has one where Debian has it."""
    bundle = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    if bundle.is_file():
        shutil.copy(bundle, work / "ca.crt")
    return bundle.is_file()


def _assemble(work: Path, cache: Path, *arguments: str) -> Run:
    argv = [sys.executable, "-m", "assembler", *arguments]
    return timed(argv, env={"ASSEMBLE_CACHE": str(cache), **_PATHS}, cwd=work)


_PATHS = {"PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY_ROOT), os.environ.get("PYTHONPATH"))))}
