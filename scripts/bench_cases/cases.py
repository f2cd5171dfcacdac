"""The cases: what is timed in each, from which state, and what it is compared with."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench_cases import recompile
from bench_cases.builders import REPOSITORY_ROOT, Builder, Ours, peers
from bench_cases.content import CHANGED, DIRECTORIES, change_one
from bench_cases.measure import Run, passing_registry, timed

HERE = Path(__file__).resolve().parent
# A file changed less than two seconds ago may change again within one tick of its time stamp, and is hashed again.
SETTLE_SECONDS = 2.5


@dataclass(kw_only=True)
class Result:
    """One line of the table. Seconds are medians of wall clock; None where a field has no meaning."""

    case: str
    ours_s: float
    peers: dict[str, float] = field(default_factory=dict)
    floor_s: float | None = None
    peak_mib: float | None = None
    bytes_pushed: int | None = None
    bytes_pulled: int | None = None

    @property
    def best_peer_ratio(self) -> float | None:
        """How many times as long the fastest peer takes."""
        return min(self.peers.values()) / self.ours_s if self.peers else None

    @property
    def times_floor(self) -> float | None:
        """How many times the floor we take."""
        return self.ours_s / self.floor_s if self.floor_s else None

    def to_json(self) -> dict[str, Any]:
        """The result as `--json` writes it."""
        return {**asdict(self), "best_peer_ratio": self.best_peer_ratio, "times_floor": self.times_floor}


class Bench:
    """One run of the benchmark: a directory with the tree, and everybody's storage beside it."""

    def __init__(self, directory: Path, runs: int, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._runs = runs
        self._say = say
        self._ours = Ours(directory)
        self._peers = peers(directory)
        self._changes = 0

    @property
    def tree(self) -> Path:
        """The tree that all cases pack."""
        return self._directory / "tree"

    def prepare(self) -> None:
        """Write the tree, and let its time stamps settle."""
        self._say("writing the tree")
        timed([sys.executable, str(HERE / "content.py"), str(self.tree)])
        time.sleep(SETTLE_SECONDS)

    def run(self, case: str) -> Result:
        """Measure one case."""
        if case in recompile.CASES:
            ours, others, peak = recompile.Recompile(self._directory, self._runs, self._say).run(case)
            return Result(case=case, ours_s=ours, peers=others, peak_mib=peak)
        return {"pack": self._pack, "tree": self._tree, "unchanged": self._unchanged, "one-file": self._one_file}[
            case
        ]()

    def _pack(self) -> Result:
        """The packer alone, into an empty store."""
        store = self._directory / "pack-store"
        argv = [sys.executable, str(HERE / "pack.py"), str(self.tree), str(store)]
        runs, floors = [], []
        for _ in range(self._runs):
            floors.append(self._floor(self.tree))
            runs.append(timed(argv, env={"PYTHONPATH": str(REPOSITORY_ROOT)}))
            shutil.rmtree(store)
        return Result(case="pack", ours_s=_median(runs), floor_s=statistics.median(floors), peak_mib=_peak(runs))

    def _tree(self) -> Result:
        """Everything from nothing to a pushed image, caches and registry empty."""
        seconds: dict[str, list[Run]] = {}
        floors = []
        for builder in (self._ours, *self._peers):
            runs = seconds.setdefault(builder.name, [])
            for _ in range(self._runs):
                builder.clean()
                if builder is self._ours:
                    floors.append(self._floor(self.tree))
                with passing_registry(self._directory) as host:
                    runs.append(self._build(builder, host, ()))
            builder.clean()
        return self._result("tree", seconds, floors)

    def _unchanged(self) -> Result:
        """The same again with nothing changed; the registry is asked whether it still has the image."""
        return self._again("unchanged", (), lambda: None, floor=None)

    def _one_file(self) -> Result:
        """One small file changed, in one of eight layers."""
        return self._again("one-file", DIRECTORIES, self._change, floor=self.tree / CHANGED)

    def _change(self) -> None:
        self._changes += 1
        change_one(self.tree, self._changes)
        time.sleep(SETTLE_SECONDS)

    def _again(
        self, case: str, directories: Sequence[str], change: Callable[[], None], floor: Path | None
    ) -> Result:
        seconds: dict[str, list[Run]] = {}
        floors = []
        for builder in (self._ours, *self._peers):
            builder.clean()
            runs = seconds.setdefault(builder.name, [])
            with passing_registry(self._directory) as host:
                self._build(builder, host, directories)
                for _ in range(max(self._runs, 3)):
                    change()
                    if floor and builder is self._ours:
                        floors.append(self._floor(floor))
                    runs.append(self._build(builder, host, directories))
            builder.clean()
        return self._result(case, seconds, floors)

    def _build(self, builder: Builder, host: str, directories: Sequence[str]) -> Run:
        run = builder.build(self._directory, directories, f"{host}/bench-tree:1")
        self._say(f"{builder.name}: {run.seconds:.2f} s")
        return run

    def _floor(self, root: Path) -> float:
        """The floor now: taken just before each run of ours, since a busy host slows both alike."""
        return float(timed([sys.executable, str(HERE / "floor.py"), str(root)]).stdout)

    def _result(self, case: str, runs: dict[str, list[Run]], floors: Sequence[float]) -> Result:
        ours = runs.pop(self._ours.name)
        return Result(
            case=case,
            ours_s=_median(ours),
            peers={name: _median(peer_runs) for name, peer_runs in runs.items()},
            floor_s=statistics.median(floors) if floors else None,
            peak_mib=_peak(ours),
            bytes_pushed=self._ours.bytes_pushed,
            bytes_pulled=self._ours.bytes_pulled,
        )


def _median(runs: Sequence[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def _peak(runs: Sequence[Run]) -> float:
    return max(run.peak_mib for run in runs)
