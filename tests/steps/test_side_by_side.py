"""Jobs beside each other: how many, what comes of them, and what an error does to the others."""

from __future__ import annotations

import threading
import time

import pytest

from assembler.process import StoppedError
from assembler.steps.side_by_side import SideBySide, width

PATIENCE = 20.0


def test_no_more_than_so_many_run_at_once() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def job() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return 1

    with SideBySide[int](3, threading.Event()) as beside:
        for _ in range(12):
            beside.add(job)
    assert (sum(beside.results), most) == (12, 3)


def test_the_first_error_stops_the_others_and_is_raised() -> None:
    stop, begun = threading.Event(), threading.Event()
    ended = []

    def patient() -> int:
        begun.set()
        assert stop.wait(PATIENCE)
        ended.append("stopped")
        raise StoppedError

    def failing() -> int:
        assert begun.wait(PATIENCE)
        raise ValueError("on purpose")

    def in_spite_of_it() -> int:
        ended.append("begun in spite of it")
        return 1

    with pytest.raises(ValueError, match="on purpose"), SideBySide[int](2, stop) as beside:
        beside.add(patient)
        beside.add(failing)
        beside.add(in_spite_of_it)
    assert stop.is_set()
    assert ended == ["stopped"], "and it was waited for"


def test_an_error_of_the_block_stops_what_runs() -> None:
    stop = threading.Event()
    ended = []

    def job() -> int:
        assert stop.wait(PATIENCE)
        ended.append("stopped")
        raise StoppedError

    with pytest.raises(KeyboardInterrupt), SideBySide[int](2, stop) as beside:
        beside.add(job)
        raise KeyboardInterrupt
    assert ended == ["stopped"]


def test_nothing_is_stopped_when_all_went_well() -> None:
    stop = threading.Event()
    with SideBySide[str](1, stop) as beside:
        beside.add(lambda: "done")
    assert beside.results == ["done"]
    assert not stop.is_set()


def test_the_width_is_that_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (2, 2), (7, 2), (8, 3), (128, 3)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert width() == expected
