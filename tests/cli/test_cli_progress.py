"""Renderers, on real streams: pipes, files and pseudo-terminals."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from assembler.cli_progress import (
    JsonRenderer,
    LiveRenderer,
    Mode,
    PlainRenderer,
    QuietRenderer,
    Renderer,
    choose_renderer,
)
from assembler.cli_running import Running
from assembler.events import Emit, Note, StepFinished, StepOutput, StepProgress, StepStarted

BUILT = StepFinished(
    step="1",
    verb="compile",
    name="flash-attn",
    outcome="built",
    seconds=2462,
    key="sha256:2b77c1ff",
    detail="9 MiB",
)


class Terminal:
    """A pseudo-terminal whose output is read along."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self._master, slave = pty.openpty()
        self._read = bytearray()
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self.resize(columns, rows)
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def _follow(self) -> None:
        # EIO is how a pseudo-terminal says that the other side is closed.
        try:
            while data := os.read(self._master, 65536):
                self._read += data
        except OSError:
            return

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def text(self) -> str:
        return self._read.decode(errors="replace").replace("\r\n", "\n")

    def wait(self, condition: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + 10
        while not condition(self.text()):
            assert time.monotonic() < deadline, repr(self.text())
            time.sleep(0.01)
        return self.text()

    def screen(self) -> list[str]:
        """The lines that one sees: what the few sequences in use do, done to a list of lines."""
        lines, row, column = [""], 0, 0
        for sequence, character in re.findall(r"\x1b\[([0-9]*[A-Za-z])|(.|\n)", self.text()):
            if sequence.endswith("A"):
                row -= int(sequence[:-1])
                assert row >= 0
            elif sequence == "J":
                lines[row:] = [lines[row][:column]]
            elif sequence == "K":
                lines[row] = lines[row][:column]
            elif character == "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            elif character == "\r":
                column = 0
            elif character:
                lines[row] = lines[row][:column] + character + lines[row][column + 1 :]
                column += 1
        return [line for line in lines if line]

    def close(self) -> str:
        self.stream.close()
        self._reader.join(5)
        os.close(self._master)
        return self.text()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal()
    yield made
    if not made.stream.closed:
        made.close()


def started(step: str = "1", name: str = "flash-attn") -> StepStarted:
    return StepStarted(step=step, verb="compile", name=name)


# choosing


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("auto", LiveRenderer), ("live", LiveRenderer), ("plain", PlainRenderer), ("json", JsonRenderer)],
)
def test_the_mode_chooses_on_a_terminal(mode: Mode, kind: type, terminal: Terminal) -> None:
    assert isinstance(choose_renderer(mode, stream=terminal.stream), kind)
    assert isinstance(choose_renderer("quiet", stream=terminal.stream), QuietRenderer)


def test_auto_is_plain_where_no_cursor_moves(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    assert isinstance(choose_renderer(stream=closed), PlainRenderer)
    assert isinstance(choose_renderer(stream=io.StringIO()), PlainRenderer)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_renderer(stream=terminal.stream), PlainRenderer)


# plain


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_writes_a_line_a_step() -> None:
    stream = io.StringIO()
    with PlainRenderer(stream) as emit:
        emit(started())
        emit(StepOutput(step="1", line="secret compiler talk"))
        emit(BUILT)
        emit(Note(text="clone of https://me:pw@example.org"))
        emit(Note(text="old lock", level="warning"))
    assert stream.getvalue().splitlines() == [
        "compile    flash-attn                    2b77c1  built     41m02s  9 MiB",
        "clone of https://***@example.org",
        "warning: old lock",
    ]


def test_plain_announces_slow_steps_and_gives_a_sign_of_life() -> None:
    stream, clock = io.StringIO(), Clock()
    emit = PlainRenderer(stream, clock=clock)
    emit(started())
    for _ in range(10):
        clock.now += 15
        emit(StepProgress(step="1", done_bytes=int(clock.now - 100) << 20, total_bytes=600 << 20))
        emit._tick()
    emit(BUILT)
    emit.stop()
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert [line[2:4] for line in lines[:3]] == [["started"], ["running", "1m15s"], ["running", "2m15s"]]
    assert " ".join(lines[1][4:]) == "75.0 MiB of 600 MiB 1.0 MiB/s 8m45s left"
    assert lines[3][3] == "built"
    assert len(lines) == 4


def test_verbose_prefixes_output_with_the_name() -> None:
    stream = io.StringIO()
    with PlainRenderer(stream, verbose=True) as emit:
        emit(started())
        emit(StepOutput(step="1", line="\x1b[32m[1/9]\x1b[0m cc a.c"))
        emit(StepOutput(step="?", line="x\x1b[2Jy"))
    assert [line.split(None, 2) for line in stream.getvalue().splitlines()] == [
        ["compile", "flash-attn", "started"],
        ["flash-attn", "|", "[1/9] cc a.c"],
        ["?", "|", "xy"],
    ]


def test_a_failure_names_what_was_running() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), PlainRenderer(stream) as emit:
        emit(started())
        raise RuntimeError
    assert stream.getvalue().split()[:3] == ["compile", "flash-attn", "stopped"]


def test_other_encodings_get_ascii(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="latin-1") as stream, PlainRenderer(stream) as emit:
        emit(Note(text="412 MiB → 131 MiB … 日 é"))
    assert path.read_text(encoding="latin-1") == "412 MiB -> 131 MiB ... ? é\n"


# any


@pytest.mark.parametrize("mode", ["live", "plain", "json", "quiet"])
def test_a_reader_who_left_ends_the_output_not_the_work(mode: Mode) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    with choose_renderer(mode, stream=stream, verbose=True) as emit:
        _everything(emit)
    with pytest.raises(BrokenPipeError):
        stream.close()
    with choose_renderer(mode, stream=stream) as emit:
        _everything(emit)


def _everything(emit: Emit) -> None:
    emit(started())
    emit(StepProgress(step="1", done_bytes=1))
    emit(StepProgress(step="unknown", done_bytes=1))
    emit(StepOutput(step="1", line="x"))
    emit(Note(text="w", level="warning"))
    emit(BUILT)


@pytest.mark.parametrize("mode", ["live", "plain", "json"])
def test_threads_do_not_mix_lines(mode: Mode) -> None:
    stream = io.StringIO()

    def work(emit: Emit, number: int) -> None:
        for i in range(50):
            step = f"{number}-{i}"
            emit(started(step, step))
            emit(StepProgress(step=step, done_bytes=5, total_bytes=5))
            emit(StepFinished(step=step, verb="pack", name=step, outcome="built", seconds=0))

    renderer: Renderer = choose_renderer(mode, stream=stream)
    with renderer as emit:
        threads = [threading.Thread(target=work, args=(emit, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(4):
        for i in range(50):
            marker = f'"step": "{number}-{i}", "verb": "pack"' if mode == "json" else f"\npack       {number}-{i} "
            assert ("\n" + stream.getvalue().replace("\r", "\n").replace("\x1b[K", "")).count(marker) == 1


def test_quiet_keeps_warnings() -> None:
    stream = io.StringIO()
    with QuietRenderer(stream) as emit:
        _everything(emit)
        emit(Note(text="nothing"))
    assert stream.getvalue() == "warning: w\n"


# json


def test_json_writes_an_object_a_line() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), JsonRenderer(stream, verbose=True) as emit:
        _everything(emit)
        emit(started("2", "日"))
        for done in range(100):
            emit(StepProgress(step="2", done_bytes=done + 1, total_bytes=100))
        raise KeyboardInterrupt
    assert stream.getvalue().isascii()
    objects = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["event"] for one in objects if one["event"] != "step_progress"] == [
        "step_started",
        "step_output",
        "note",
        "step_finished",
        "step_started",
        "step_stopped",
    ]
    progress = [one["done_bytes"] for one in objects if one["event"] == "step_progress" and one["step"] == "2"]
    assert progress[0] == 1
    assert progress[-1] == 100
    assert len(progress) < 10
    assert set(objects[0]) == {"event", "time", "step", "verb", "name"}
    assert objects[-1]["name"] == "日"


def test_json_keeps_output_out_unless_verbose() -> None:
    stream = io.StringIO()
    with JsonRenderer(stream) as emit:
        emit(StepOutput(step="1", line="x"))
    assert stream.getvalue() == ""


# live


def test_live_shows_what_runs_and_leaves_only_what_finished(terminal: Terminal) -> None:
    with LiveRenderer(terminal.stream, verbose=True) as emit:
        emit(started())
        emit(started("2", "push"))
        emit(StepProgress(step="2", done_bytes=1 << 20, total_bytes=4 << 20))
        terminal.wait(lambda text: "1.0 MiB of 4.0 MiB" in text)
        emit(StepOutput(step="1", line="[1/9] cc"))
        emit(BUILT)
        terminal.wait(lambda text: "41m02s" in text)
        assert any("1.0 MiB of" in line for line in terminal.screen())
    terminal.close()
    assert "\x1b[32mbuilt\x1b[0m" in terminal.text()
    assert terminal.screen() == [
        "flash-attn | [1/9] cc",
        "compile    flash-attn                    2b77c1  built     41m02s  9 MiB",
    ]


def test_live_has_no_colour_when_told_so(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with LiveRenderer(terminal.stream) as emit:
        emit(BUILT)
        emit(Note(text="careful", level="warning"))
    assert "\x1b[" not in terminal.close().replace("\x1b[K", "").replace("\x1b[J", "")


def test_live_rows_never_wrap_and_follow_a_resize(terminal: Terminal) -> None:
    terminal.resize(40, 10)
    with LiveRenderer(terminal.stream) as emit:
        for number in range(30):
            emit(started(str(number), f"layer-{number}-" + "x" * 100))
        text = terminal.wait(lambda text: "more" in text)
        rows = text.replace("\x1b[K", "").split("\n")
        assert all(len(row) < 40 for row in rows)
        assert len(rows) - 1 <= 8
        terminal.resize(60, 30)
        terminal.wait(lambda text: "… and 15 more" in text)


def test_live_redraws_at_most_ten_times_a_second(terminal: Terminal) -> None:
    begin = time.monotonic()
    with LiveRenderer(terminal.stream) as emit:
        emit(started())
        while time.monotonic() - begin < 0.5:
            emit(StepProgress(step="1", done_bytes=int((time.monotonic() - begin) * 1e9)))
            time.sleep(0.001)
    assert terminal.close().count("\r\x1b[") <= 10 * (time.monotonic() - begin) + 2


def test_a_renderer_can_begin_again() -> None:
    stream = io.StringIO()
    emit = PlainRenderer(stream)
    for _ in range(2):
        emit.start()
        emit.start()
        emit(BUILT)
        emit.stop()
        emit.stop()
    assert stream.getvalue().count("built") == 2


# the running step


def test_the_rate_is_of_the_last_seconds() -> None:
    running = Running("push", "layer", 0)
    for second in range(60):
        running.progress((second if second < 30 else 30 + (second - 30) * 10) << 20, None, second)
    assert running.amount_text(59) == "320 MiB  10.0 MiB/s"
    running.progress(0, None, 60)
    assert running.amount_text(60) == "0 B"
