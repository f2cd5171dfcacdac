"""The case `push-layer`: an image of the store, with one large layer, goes to an empty registry on loopback."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

from bench_cases.builders import REPOSITORY_ROOT
from bench_cases.cases import Result
from bench_cases.measure import BenchError, Run, passing_registry, read_result, timed

LAYER_BYTES = 1 << 30
_CHUNK = 1 << 20
_MANIFEST = """\
manifest: 1
name: push-layer
runtime: scratch
sources: {data: {path: ./push-layer}}
layers:
  - copy: {source: data, to: /opt/}
"""


class PushBench:
    """One run of the case: a gigabyte that cannot be compressed, in our store and in a layout for the others."""

    def __init__(self, directory: Path, runs: int, say: Callable[[str], None]) -> None:
        self._directory = directory / "push"
        self._runs = runs
        self._say = say
        self._bytes_pushed: int | None = None

    def prepare(self) -> None:
        """Make the bytes, and the image of them."""
        self._say("writing a gigabyte, and assembling it")
        data = self._directory / "push-layer"
        data.mkdir(parents=True)
        numbers = random.Random(7)  # noqa: S311  (the same bytes everywhere; nothing is secret)
        with (data / "data").open("wb") as file:
            for _ in range(LAYER_BYTES // _CHUNK):
                file.write(numbers.randbytes(_CHUNK))
        (self._directory / "push-layer.yaml").write_text(_MANIFEST)
        self._assemble("--output", f"oci:{self._directory / 'layout'}")

    def run(self, case: str) -> Result:
        """Measure. Who pushes changes from run to run, since a busy host slows all alike for a while."""
        seconds: dict[str, list[Run]] = {}
        for number in range(self._runs):
            for name, push in self._pushes():
                with passing_registry(self._directory) as host:
                    run = push(host)
                seconds.setdefault(name, []).append(run)
                self._say(f"{name}: {run.seconds:.2f} s, {run.peak_mib:.0f} MiB ({number + 1} of {self._runs})")
        floor, ours = seconds.pop("curl"), seconds.pop("assemble")
        return Result(
            case=case,
            ours_s=statistics.median(run.seconds for run in ours),
            peers={name: statistics.median(run.seconds for run in runs) for name, runs in seconds.items()},
            floor_s=statistics.median(run.seconds for run in floor),
            peak_mib=max(run.peak_mib for run in ours),
            bytes_pushed=self._bytes_pushed,
        )

    def _pushes(self) -> Iterator[tuple[str, Callable[[str], Run]]]:
        """Everybody that this host has, by name."""
        layout = self._directory / "layout"
        yield "curl", self._curl
        yield "assemble", self._ours
        if shutil.which("skopeo"):
            source = ["skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:push-layer"]
            yield "skopeo", lambda host: timed([*source, f"docker://{host}/push-layer:1"])
        crane = _crane()
        if crane:
            yield "crane", lambda host: timed([crane, "push", str(layout), f"{host}/push-layer:1"])

    def _ours(self, host: str) -> Run:
        run = self._assemble("--push", f"{host}/push-layer:1", "--json")
        self._bytes_pushed = read_result(run.stdout).get("bytes_pushed")
        return run

    def _assemble(self, *words: str) -> Run:
        paths = os.pathsep.join(filter(None, (str(REPOSITORY_ROOT), os.environ.get("PYTHONPATH"))))
        return timed(
            [sys.executable, "-m", "assembler", "push-layer.yaml", *words],
            env={"ASSEMBLE_CACHE": str(self._directory / "cache"), "PYTHONPATH": paths},
            cwd=self._directory,
        )

    def _curl(self, host: str) -> Run:
        """The layer alone, by one request; what the registry does with it is the same for all."""
        if shutil.which("curl") is None:
            raise BenchError("`curl` is not installed")
        blobs = (self._directory / "layout/blobs/sha256").iterdir()
        layer = max(blobs, key=lambda path: path.stat().st_size)
        uploads = f"http://{host}/v2/push-layer/blobs/uploads/"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(uploads, method="POST")) as answer:
            place = urljoin(uploads, answer.headers["Location"])
        url = f"{place}{'&' if '?' in place else '?'}digest=sha256:{layer.name}"
        quiet = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*"]
        return timed(
            [*quiet, "--header", "Content-Type: application/octet-stream", "--upload-file", str(layer), url]
        )


def _crane() -> str | None:
    """crane, installed or as the tests have compiled it."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "assemble-tests")
    compiled = sorted(kept.glob("crane-*"), key=lambda path: path.stat().st_mtime)
    return shutil.which("crane") or (str(compiled[-1]) if compiled else None)
