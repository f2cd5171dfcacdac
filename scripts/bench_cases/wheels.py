"""Cases of wheels: sixty of them, 1.2 GB, on disk; to an image in a registry.

Compared with what people do today: uv installs them into a virtual environment, buildah (or docker) copies that
into an image and pushes it. Everybody reads the same files; nobody downloads. Package indexes are only asked once,
for the wheels, and those are kept where --wheels says.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bench_cases.builders import REPOSITORY_ROOT, Buildah, Docker, both
from bench_cases.cases import Result
from bench_cases.measure import BenchError, Run, passing_registry, read_result, timed

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "wheels.txt"
BUMPED = ("transformers==5.23.0", "transformers==5.22.2")
# Of the second image: what it has instead of these, a tenth of all.
GONE = ("lark", "msgspec", "pyzmq", "cloudpickle", "einops", "prometheus-client")
OTHERS = (
    "attrs==26.1.0",
    "six==1.17.0",
    "pytz==2026.6",
    "jsonschema==4.26.0",
    "wcwidth==0.2.14",
    "tabulate==0.9.0",
)
PYTHON = "3.11"
_TAGS = ("2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
_PLATFORMS = (*(f"manylinux_{tag}_x86_64" for tag in _TAGS), "manylinux2014_x86_64", "manylinux1_x86_64")


def download(directory: Path, say: Callable[[str], None]) -> None:
    """Have all wheels in `directory`; what is there already is kept."""
    done = directory / "complete"
    wanted = [*REQUIREMENTS.read_text().split(), BUMPED[1], *OTHERS]
    if done.exists() and done.read_text().split() == wanted:
        return
    say(f"downloading wheels to {directory}")
    directory.mkdir(parents=True, exist_ok=True)
    pip = [
        sys.executable,
        "-m",
        "uv",
        "tool",
        "run",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    target = ["--python-version", PYTHON, *(f"--platform={platform}" for platform in _PLATFORMS)]
    for names in (wanted[: -1 - len(OTHERS)], wanted[-1 - len(OTHERS) :]):
        if subprocess.run([*pip, *target, "--dest", str(directory), *names], check=False).returncode:
            raise BenchError("the wheels cannot be downloaded")
    done.write_text("\n".join(wanted))


def _file(pool: Path, requirement: str) -> Path:
    name, _, version = requirement.partition("==")
    (path,) = pool.glob(f"{name.replace('-', '_')}-{version}-*.whl")
    return path


class WheelBuilder(Protocol):
    """Makes an image of a directory of wheels and pushes it; what an earlier build left is used."""

    name: str

    def build(self, work: Path, reference: str, compression: str) -> Run:
        """Build `work/wheels` into an image, and push it."""

    def clean(self) -> None:
        """Forget everything that was built."""


class OurWheels:
    """`python -m assembler MANIFEST --push REFERENCE`, with a cache of its own; the lock lies beside."""

    name = "assemble"

    def __init__(self, directory: Path) -> None:
        self._cache = directory / "assemble-cache"
        self.bytes_pushed: int | None = None

    def build(self, work: Path, reference: str, compression: str) -> Run:
        manifest = self._manifest(work, compression)
        run = self._timed([str(manifest), "--push", reference, "--json"], work, self._cache)
        self.bytes_pushed = read_result(run.stdout).get("bytes_pushed")
        return run

    def lock(self, work: Path, compression: str) -> None:
        """Have a lock that holds, as a project has one; the cache is left as it was."""
        other = self._cache.with_name("assemble-lock-cache")
        self._timed(["lock", str(self._manifest(work, compression))], work, other)
        shutil.rmtree(other)

    def _manifest(self, work: Path, compression: str) -> Path:
        path = work / "bench-wheels.yaml"
        text = (
            f"manifest: 1\nname: bench-wheels\nruntime: scratch\ncompression: {compression}\nlayers:\n"
            f'  - wheels: {{wheelhouse: ./wheels, python: "{PYTHON}", glibc: "2.36", '
            f"interpreter: /usr/bin/python{PYTHON}, dependencies: false}}\n"
        )
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return path

    def _timed(self, arguments: Sequence[str], work: Path, cache: Path) -> Run:
        paths = os.pathsep.join(filter(None, (str(REPOSITORY_ROOT), os.environ.get("PYTHONPATH"))))
        environment = {"ASSEMBLE_CACHE": str(cache), "PYTHONPATH": paths}
        return timed([sys.executable, "-m", "assembler", *arguments], env=environment, cwd=work)

    def clean(self) -> None:
        shutil.rmtree(self._cache, ignore_errors=True)


class UvAnd:
    """uv makes a virtual environment, and another builder the image."""

    def __init__(self, directory: Path, builder: Buildah | Docker) -> None:
        self.name = f"uv + {builder.name}"
        self._builder = builder
        self._cache = directory / "uv-cache"

    def build(self, work: Path, reference: str, compression: str) -> Run:
        """A changed environment is changed, not made anew, which is quicker."""
        uv = [sys.executable, "-m", "uv", "--quiet", "--no-config", "--cache-dir", str(self._cache)]
        if isinstance(self._builder, Buildah):
            self._builder.compression = "zstd" if compression == "zstd" else "gzip"
        venv = work / "tree"
        runs = []
        if not venv.exists():
            runs.append(timed([*uv, "venv", "--python", PYTHON, str(venv)]))
        wheels = sorted(str(path) for path in (work / "wheels").glob("*.whl"))
        runs.append(timed([*uv, "pip", "sync", "--offline", "--python", str(venv), self._list(work, wheels)]))
        runs.append(self._builder.build(work, (), reference))
        return both(*runs)

    def _list(self, work: Path, wheels: Sequence[str]) -> str:
        path = work / "requirements.txt"
        path.write_text("\n".join(wheels))
        return str(path)

    def clean(self) -> None:
        self._builder.clean()
        shutil.rmtree(self._cache, ignore_errors=True)


class WheelBench:
    """The cases of wheels, below one directory. `pool` has all the files."""

    def __init__(self, directory: Path, pool: Path, runs: int, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._pool = pool
        self._runs = runs
        self._say = say
        self._ours = OurWheels(directory)
        self._peers = [UvAnd(directory, Buildah(directory))] if Buildah.is_there() else []
        if Docker.is_there():
            self._peers.append(UvAnd(directory, Docker()))

    def prepare(self) -> None:
        """Have the wheels."""
        download(self._pool, self._say)

    def run(self, case: str) -> Result:
        """Measure one case."""
        return {
            "wheels-zstd": lambda: self._whole("wheels-zstd", "zstd"),
            "wheels-gzip": lambda: self._whole("wheels-gzip", "gzip"),
            "wheels-both": lambda: self._whole("wheels-both", "both"),
            "wheels-shared": lambda: self._second("wheels-shared", self._shared()),
            "wheels-bump": lambda: self._second("wheels-bump", self._bumped()),
        }[case]()

    def _first(self) -> list[str]:
        return REQUIREMENTS.read_text().split()

    def _bumped(self) -> list[str]:
        return [BUMPED[1] if each == BUMPED[0] else each for each in self._first()]

    def _shared(self) -> list[str]:
        return [each for each in self._first() if each.partition("==")[0] not in GONE] + list(OTHERS)

    def _whole(self, case: str, compression: str) -> Result:
        """From wheels on disk to an image in an empty registry, with empty caches."""
        seconds: dict[str, list[Run]] = {}
        floors = []
        for builder in (self._ours, *self._peers):
            runs = seconds.setdefault(builder.name, [])
            for _ in range(self._runs):
                builder.clean()
                work = self._work(self._first())
                if builder is self._ours:
                    self._ours.lock(work, compression)
                    floors.append(self._floor(work, compression))
                with passing_registry(self._directory) as host:
                    runs.append(self._build(builder, work, host, compression))
            builder.clean()
        return self._result(case, seconds, floors)

    def _second(self, case: str, requirements: Sequence[str]) -> Result:
        """A second image like the first one, with caches and registry as that left them."""
        seconds: dict[str, list[Run]] = {}
        for builder in (self._ours, *self._peers):
            runs = seconds.setdefault(builder.name, [])
            for _ in range(self._runs):
                builder.clean()
                work = self._work(self._first())
                with passing_registry(self._directory) as host:
                    self._build(builder, work, host, "zstd", "first image, ")
                    self._fill(work, requirements)
                    runs.append(self._build(builder, work, host, "zstd"))
            builder.clean()
        return self._result(case, seconds, [])

    def _build(self, builder: WheelBuilder, work: Path, host: str, compression: str, what: str = "") -> Run:
        run = builder.build(work, f"{host}/bench-wheels:1", compression)
        self._say(f"{what}{builder.name}: {run.seconds:.2f} s")
        return run

    def _work(self, requirements: Sequence[str]) -> Path:
        work = self._directory / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        self._fill(work, requirements)
        return work

    def _fill(self, work: Path, requirements: Sequence[str]) -> None:
        """`work/wheels` with exactly these wheels, all of which have been there for a while."""
        shutil.rmtree(work / "wheels", ignore_errors=True)
        (work / "wheels").mkdir()
        for requirement in requirements:
            path = _file(self._pool, requirement)
            (work / "wheels" / path.name).symlink_to(path.resolve())
        time.sleep(2.5)

    def _floor(self, work: Path, compression: str) -> float:
        """The floor now: taken just before each run of ours, since a busy host slows both alike."""
        kind = "gzip" if compression == "gzip" else "zstd"
        wheels = sorted(str(path) for path in (work / "wheels").glob("*.whl"))
        return float(timed([sys.executable, str(HERE / "wheel_floor.py"), kind, *wheels]).stdout)

    def _result(self, case: str, runs: dict[str, list[Run]], floors: Sequence[float]) -> Result:
        ours = runs.pop(self._ours.name)
        return Result(
            case=case,
            ours_s=statistics.median(run.seconds for run in ours),
            peers={name: statistics.median(run.seconds for run in theirs) for name, theirs in runs.items()},
            floor_s=statistics.median(floors) if floors else None,
            peak_mib=max(run.peak_mib for run in ours),
            bytes_pushed=self._ours.bytes_pushed,
        )
