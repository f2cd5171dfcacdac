"""Progress for people and for machines: renderers that take the engine's events and write to one stream.

A renderer is an `Emit` and a context manager. `LiveRenderer` redraws what runs on a terminal, `PlainRenderer`
writes a log that reads well in a file, `JsonRenderer` one object a line, `QuietRenderer` warnings only. An event
costs its caller an append under a lock; where there is something to redraw or to remind of, one thread of the
renderer's own writes. A stream that closes underneath (`assemble … 2>&1 | head`) ends the output, not the work.

Lines read: verb, name, short key, outcome, seconds, detail.

    compile   ucx                           8c1f02   cached
    compile   flash-attn                    2b77c1   built     41m02s
    pack      flash-attn                             built       3.1s  412 MiB → 131 MiB

The objects of `JsonRenderer` carry `event` and `time` (RFC 3339, UTC), and by event:

    step_started    step, verb, name
    step_progress   step, done_bytes, total_bytes (or null), bytes_per_second and seconds_left (over the last
                    eight seconds; null while nobody can tell); at most two a second for one step, and the last
    step_output     step, line; only with verbose
    step_finished   step, verb, name, outcome, seconds, detail, key (or null)
    step_stopped    step, verb, name, seconds: it ran when the work failed or was interrupted
    note            level (`info`, `warning`), text
"""

from __future__ import annotations

import datetime
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Literal, Protocol, Self, TextIO

from assembler.cli_namespace import Entering
from assembler.cli_running import Running, columns
from assembler.cli_terminal import LiveArea, Painter, Sink, is_terminal
from assembler.cli_text import duration_text, printable, redact
from assembler.events import Event, Note, StepFinished, StepOutput, StepProgress, StepStarted

Mode = Literal["auto", "live", "plain", "json", "quiet"]
Clock = Callable[[], float]

_REDRAW_SECONDS = 0.1
_ANNOUNCE_SECONDS = 2.0
_HEARTBEAT_SECONDS = 60.0
_JSON_PROGRESS_SECONDS = 0.5


class Renderer(Protocol):
    """An `Emit` with a beginning and an end."""

    def __call__(self, event: Event, /) -> None: ...
    def start(self) -> None:
        """Begin; harmless when begun."""

    def stop(self, *, failed: bool = False) -> None:
        """Write what is still to be written and leave the stream at the start of a line; may begin again."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def choose_renderer(mode: Mode = "auto", *, verbose: bool = False, stream: TextIO) -> Renderer:
    """The renderer for `stream`. `auto` is live on a terminal that can move its cursor, plain anywhere else."""
    if mode == "json":
        return JsonRenderer(stream, verbose=verbose)
    if mode == "quiet":
        return QuietRenderer(stream)
    is_live = mode == "live" or (mode == "auto" and is_terminal(stream))
    if is_live and os.environ.get("TERM") != "dumb":
        return LiveRenderer(stream, verbose=verbose)
    return PlainRenderer(stream, verbose=verbose)


class _Lifecycle:
    """Context manager by `start` and `stop`."""

    def start(self) -> None:
        """Begin."""

    def stop(self, *, failed: bool = False) -> None:
        """End."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.stop(failed=kind not in (None, Entering))


class QuietRenderer(_Lifecycle):
    """Warnings only."""

    def __init__(self, stream: TextIO) -> None:
        self._sink = Sink(stream)
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Write a warning."""
        if isinstance(event, Note) and event.level == "warning":
            with self._lock:
                self._sink.write(f"{_note_line(event)}\n")


class JsonRenderer(_Lifecycle):
    """One event a line, flushed; the fields are in the docstring of this module."""

    def __init__(self, stream: TextIO, *, verbose: bool = False, clock: Clock = time.monotonic) -> None:
        self._sink = Sink(stream)
        self._verbose = verbose
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._progress_at: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Write one object."""
        with self._lock:
            now = self._clock()
            if isinstance(event, StepStarted):
                self._running[event.step] = Running(event.verb, event.name, now)
                self._write("step_started", asdict(event))
            elif isinstance(event, StepProgress):
                self._write_progress(event, now)
            elif isinstance(event, StepOutput):
                if self._verbose:
                    self._write("step_output", asdict(event))
            elif isinstance(event, StepFinished):
                self._running.pop(event.step, None)
                self._progress_at.pop(event.step, None)
                self._write("step_finished", {**asdict(event), "seconds": round(event.seconds, 3)})
            else:
                self._write("note", asdict(event))

    def _write_progress(self, event: StepProgress, now: float) -> None:
        if running := self._running.get(event.step):
            running.progress(event.done_bytes, event.total_bytes, now)
        is_last = event.done_bytes == event.total_bytes
        if not is_last and now - self._progress_at.get(event.step, -1e9) < _JSON_PROGRESS_SECONDS:
            return
        self._progress_at[event.step] = now
        rate, left = (running.rate(now), running.seconds_left(now)) if running else (None, None)
        measured = {
            "bytes_per_second": None if rate is None else round(rate),
            "seconds_left": None if left is None else round(left),
        }
        self._write("step_progress", {**asdict(event), **measured})

    def stop(self, *, failed: bool = False) -> None:
        """Say which steps did not come to their end."""
        with self._lock:
            stopped = list(self._running.items()) if failed else []
            self._running.clear()
            for step, running in stopped:
                seconds = round(self._clock() - running.started, 3)
                fields = {"step": step, "verb": running.verb, "name": running.name, "seconds": seconds}
                self._write("step_stopped", fields)

    def _write(self, event: str, fields: dict[str, object]) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        clean = {name: redact(value) if isinstance(value, str) else value for name, value in fields.items()}
        # ASCII, so that the stream's encoding is of no importance.
        self._sink.write(json.dumps({"event": event, "time": now, **clean}) + "\n")


class _Ticking(_Lifecycle):
    """Running steps, lines to be written, and a thread that looks at both every `period` seconds.

    Lines are queued by whoever emits and written by the thread alone, so that a terminal stopped with Ctrl-S
    never holds up the work.
    """

    period = _REDRAW_SECONDS

    def __init__(self, stream: TextIO, *, verbose: bool = False, clock: Clock = time.monotonic) -> None:
        self._sink = Sink(stream)
        self._verbose = verbose
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._lines: list[str] = []
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """Take an event; what it gives to read is on the stream within a tenth of a second or so."""
        with self._lock:
            if isinstance(event, StepProgress):
                if running := self._running.get(event.step):
                    running.progress(event.done_bytes, event.total_bytes, self._clock())
            elif isinstance(event, StepStarted):
                self._running[event.step] = Running(event.verb, event.name, self._clock())
            elif isinstance(event, StepFinished):
                self._running.pop(event.step, None)
                self._lines.append(self._finished_line(event))
            elif isinstance(event, StepOutput):
                if self._verbose:
                    name = running.name if (running := self._running.get(event.step)) else event.step
                    self._lines.append(f"{_clean(name)} | {_clean(event.line)}")
            else:
                self._lines.append(self._paint_note(event))

    def start(self) -> None:
        """Start the thread."""
        if self._thread is None:
            self._wake.clear()
            self._thread = threading.Thread(target=self._work, name="progress", daemon=True)
            self._thread.start()

    def stop(self, *, failed: bool = False) -> None:
        """End the thread; after a failure, steps that ran are named with `stopped`."""
        if self._thread is not None:
            self._wake.set()
            self._thread.join()
            self._thread = None
        with self._lock:
            now = self._clock()
            for running in self._running.values() if failed else ():
                self._lines.append(_running_line(running, "stopped", now))
            self._running.clear()
        self._tick()

    def _work(self) -> None:
        while not self._wake.wait(self.period):
            self._tick()

    def _tick(self) -> None:
        raise NotImplementedError

    def _finished_line(self, event: StepFinished) -> str:
        return finished_line(event)

    def _paint_note(self, event: Note) -> str:
        return _note_line(event)


class PlainRenderer(_Ticking):
    """A log: a line at the end of each step, one at the beginning of each slow step, and a sign of life a minute.

    No control characters. Whether a step is slow shows after two seconds; with `verbose`, every step is
    announced at once, because its output follows.
    """

    period = 0.5

    def _tick(self) -> None:
        with self._lock:
            now = self._clock()
            lines, self._lines = self._lines, []
            for running in self._running.values():
                elapsed = now - running.started
                if not running.announced and (self._verbose or elapsed >= _ANNOUNCE_SECONDS):
                    running.announced, running.reminded = True, now
                    lines.append(columns(_clean(running.verb), _clean(running.name), outcome="started"))
                elif running.announced and now - running.reminded >= _HEARTBEAT_SECONDS:
                    running.reminded = now
                    lines.append(_running_line(running, "running", now, running.amount_text(now)))
        if lines:
            self._sink.write("".join(f"{line}\n" for line in lines))

    def __call__(self, event: Event) -> None:
        """Take an event; an announcement goes before the first line of output."""
        super().__call__(event)
        if self._verbose and isinstance(event, StepStarted):
            with self._lock:
                running = self._running[event.step]
                running.announced, running.reminded = True, running.started
                self._lines.append(columns(_clean(event.verb), _clean(event.name), outcome="started"))


class LiveRenderer(_Ticking):
    """A terminal: finished lines scroll by, running steps stand below them and are redrawn ten times a second."""

    def __init__(self, stream: TextIO, *, verbose: bool = False, clock: Clock = time.monotonic) -> None:
        super().__init__(stream, verbose=verbose, clock=clock)
        self._area = LiveArea(self._sink)
        self._paint = Painter(stream)

    def _tick(self) -> None:
        with self._lock:
            now = self._clock()
            lines, self._lines = self._lines, []
            running = [step.live_line(now) for step in self._running.values()]
        self._area.draw(lines, running)

    def _finished_line(self, event: StepFinished) -> str:
        colour: Literal["green", "dim"] = "dim" if event.outcome in ("cached", "present", "skipped") else "green"
        return finished_line(event, lambda text: self._paint(text, colour))

    def _paint_note(self, event: Note) -> str:
        if event.level != "warning":
            return _note_line(event)
        return self._paint("warning", "yellow") + _note_line(event).removeprefix("warning")


def finished_line(event: StepFinished, paint: Callable[[str], str] = str) -> str:
    """The line of a finished step; `paint` colours its outcome."""
    return columns(
        _clean(event.verb),
        _clean(event.name),
        key=event.key.removeprefix("sha256:")[:6] if event.key else "",
        outcome=event.outcome,
        seconds=duration_text(event.seconds) if event.seconds >= 0.05 else "",
        detail=_clean(event.detail),
        paint=paint,
    )


def _running_line(running: Running, outcome: str, now: float, detail: str = "") -> str:
    seconds = duration_text(now - running.started)
    name = _clean(running.name)
    return columns(_clean(running.verb), name, outcome=outcome, seconds=seconds, detail=detail)


def _note_line(event: Note) -> str:
    return f"warning: {_clean(event.text)}" if event.level == "warning" else _clean(event.text)


def _clean(text: str) -> str:
    return redact(printable(text))
