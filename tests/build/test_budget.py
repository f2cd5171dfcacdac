"""Jobs that compile steps share: never more than fit, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assembler.build.budget import Budget, JobNeeds
from assembler.process import StoppedError

ONE = JobNeeds()
GIB = 1 << 30


def test_a_step_alone_has_all() -> None:
    budget = Budget(8, 16 * GIB)
    assert budget.most(ONE) == 8
    assert budget.most(JobNeeds(memory=4 * GIB)) == 4
    assert budget.most(JobNeeds(processors=3)) == 2
    assert budget.most(JobNeeds(memory=99 * GIB)) == 1
    assert Budget(8, None).most(JobNeeds(memory=99 * GIB)) == 8, "the user said how many"
    with budget.lease(ONE, 99) as jobs:
        assert jobs == 8
    with budget.lease(ONE, 3) as jobs:
        assert jobs == 3


def test_two_share_and_the_last_has_all() -> None:
    budget = Budget(8, 16 * GIB, steps=2)
    with budget.lease(ONE, 99) as first, budget.lease(ONE, 99) as second:
        assert (first, second) == (4, 4)
    budget.step_ended()
    with budget.lease(ONE, 99) as jobs:
        assert jobs == 8


def test_steps_that_wait_for_others_to_end_have_no_share_yet() -> None:
    budget = Budget(16, None, steps=10, at_once=2)
    with budget.lease(ONE, 99) as first, budget.lease(ONE, 99) as second:
        assert (first, second) == (8, 8)


@pytest.mark.parametrize(
    ("budget", "needs"),
    [
        (Budget(2, None, steps=2), ONE),
        (Budget(16, 4 * GIB, steps=2), JobNeeds(memory=2 * GIB)),
        (Budget(16, GIB, steps=2), JobNeeds(memory=99 * GIB)),
    ],
)
def test_what_does_not_fit_beside_waits(budget: Budget, needs: JobNeeds) -> None:
    got: list[int] = []

    def other() -> None:
        with budget.lease(needs, 99) as jobs:
            got.append(jobs)

    with budget.lease(needs, 99) as jobs:
        assert jobs == budget.most(needs)
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.05)
        assert not got
    thread.join(10)
    assert got == [budget.most(needs)]


def test_nobody_gets_anything_after_the_end() -> None:
    budget = Budget(1, None, steps=2)
    with ThreadPoolExecutor(1) as pool, budget.lease(ONE, 1):
        waiting = pool.submit(lambda: budget.lease(ONE, 1).__enter__())
        time.sleep(0.02)
        budget.stop()
        with pytest.raises(StoppedError):
            waiting.result(10)


@settings(deadline=None, max_examples=30)
@given(
    processors=st.integers(1, 9),
    memory=st.none() | st.integers(1, 9),
    steps=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=5),
)
def test_never_more_than_there_is(processors: int, memory: int | None, steps: list[tuple[int, int]]) -> None:
    """Unless one job alone needs more: then it runs alone."""
    budget = Budget(processors, memory, len(steps))
    running: list[JobNeeds] = []
    lock = threading.Lock()
    faults: list[str] = []

    def step(needs: JobNeeds) -> None:
        for _ in range(3):
            with budget.lease(needs, 9) as jobs:
                with lock:
                    running.extend([needs] * jobs)
                    used = sum(each.processors for each in running), sum(each.memory for each in running)
                    over = used[0] > processors or (memory is not None and used[1] > memory)
                    if over and len(running) > 1:
                        faults.append(f"{running} of {processors}, {memory}")
                time.sleep(0.001)
                with lock:
                    for _ in range(jobs):
                        running.remove(needs)
        budget.step_ended()

    with ThreadPoolExecutor(len(steps)) as pool:
        list(pool.map(step, [JobNeeds(processors=each[0], memory=each[1]) for each in steps]))
    assert not faults
