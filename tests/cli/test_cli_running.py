"""What the display knows of a running step: rates and times left that make sense."""

from __future__ import annotations

import io
import json
import random

import pytest

from assembler.cli_progress import JsonRenderer
from assembler.cli_running import Running
from assembler.events import StepProgress, StepStarted

MEBIBYTE = 1 << 20


def test_a_transfer_that_stalls_has_no_time_left() -> None:
    """The last bytes of a push may wait for minutes, for the network or for the registry's own work."""
    running = Running("push", "layer", 0)
    for tick in range(100):
        running.progress(tick * MEBIBYTE, 100 * MEBIBYTE, tick / 10)
    shown = {running.amount_text(now) for now in range(20, 400)}
    assert shown == {"99.0 MiB of 100 MiB  0 B/s"}


@pytest.mark.parametrize("seed", range(20))
def test_time_left_is_of_the_right_size_on_a_network_that_varies(seed: int) -> None:
    chance, done, total = random.Random(seed), 0, 3000 * MEBIBYTE  # noqa: S311
    running = Running("push", "layer", 0)
    now = 0.0
    told = []
    while done < total:
        now += 0.1
        done = min(total, done + chance.randrange(2 * MEBIBYTE))  # ten mebibytes a second
        running.progress(done, total, now)
        if (left := running.seconds_left(now)) is not None:
            told.append((now, left))
    assert told[0][0] < 2
    assert all(left >= 1 for _, left in told)
    assert all(abs(at + left - now) < 0.4 * (now - at) + 2 for at, left in told if at > 8)
    assert "left" not in running.amount_text(now)


def test_what_is_through_has_no_rate() -> None:
    """The step goes on with something else: what was fetched is being installed."""
    running = Running("toolchain", "x", 0)
    for tick in range(11):
        running.progress(tick * MEBIBYTE, 10 * MEBIBYTE, tick / 10)
    assert {running.amount_text(now) for now in range(1, 100)} == {"10.0 MiB of 10.0 MiB"}


def test_nothing_is_said_of_what_nobody_knows() -> None:
    running = Running("push", "layer", 0)
    assert (running.rate(1), running.seconds_left(1)) == (None, None)
    running.progress(0, 10**18, 0)
    running.progress(1, 10**18, 2)
    assert running.seconds_left(2) is None  # thousands of years are no time
    running.progress(2, None, 4)
    assert running.seconds_left(4) is None


def test_json_has_rate_and_time_left() -> None:
    stream, now = io.StringIO(), [0.0]
    with JsonRenderer(stream, clock=lambda: now[0]) as emit:
        emit(StepStarted(step="push", verb="push", name="x"))
        for second in range(11):
            now[0] = float(second)
            emit(StepProgress(step="push", done_bytes=second * 1000, total_bytes=20_000))
        emit(StepProgress(step="unknown", done_bytes=1))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    first, last, unknown = events[1], events[-2], events[-1]
    assert (first["bytes_per_second"], first["seconds_left"]) == (None, None)
    assert (last["bytes_per_second"], last["seconds_left"]) == (1000, 10)
    assert (unknown["bytes_per_second"], unknown["seconds_left"]) == (None, None)
