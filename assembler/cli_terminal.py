"""The terminal underneath the progress display: a stream that never fails, colours, and an area drawn over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TextIO

from assembler.cli_text import display_width, fit

Colour = Literal["green", "yellow", "dim"]

_CODES: dict[Colour, str] = {"green": "32", "yellow": "33", "dim": "2"}
_ASCII = str.maketrans({"→": "->", "…": "...", "\N{EM DASH}": "-", "\N{MULTIPLICATION SIGN}": "x"})
_MOST_ROWS = 16


def is_terminal(stream: TextIO) -> bool:
    """Is this a terminal? A closed stream is none."""
    try:
        return stream.isatty()
    except ValueError:
        return False


class Sink:
    """Writes and flushes; silent for ever after the first failure. What the encoding lacks is spelled in ASCII."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._failed = False

    def write(self, text: str) -> None:
        """Write a whole text at once."""
        if self._failed:
            return
        try:
            self._stream.write(self._encodable(text))
            self._stream.flush()
        except (OSError, ValueError):
            self._failed = True

    def _encodable(self, text: str) -> str:
        try:
            text.encode(self._encoding)
        except UnicodeEncodeError:
            return text.translate(_ASCII).encode(self._encoding, "replace").decode(self._encoding)
        return text

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal at this moment; 80 and 24 when it does not say."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return 80, 24
        return size.columns or 80, size.lines or 24


class Painter:
    """Colours text where colours are wanted: a terminal, and no `NO_COLOR` (no-color.org)."""

    def __init__(self, stream: TextIO) -> None:
        self._is_on = is_terminal(stream) and not os.environ.get("NO_COLOR")

    def __call__(self, text: str, colour: Colour) -> str:
        """`text`, coloured or as it is."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self._is_on and text else text


class LiveArea:
    """Rows at the bottom of what was written, which are drawn over; lines above them scroll away for good."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._drawn: list[str] = []

    def draw(self, lines: Sequence[str], rows: Sequence[str]) -> None:
        """Write `lines` above the area and `rows` in it, in one write; nothing when nothing is different."""
        width, height = self._sink.size()
        # The last column stays free, lest the terminal wraps, and two more for an ellipsis spelled in ASCII.
        shown = [fit(row, width - 3) for row in _shortened(rows, min(_MOST_ROWS, height - 2))]
        if not lines and shown == self._drawn:
            return
        # A terminal that became narrower has wrapped the old rows, so that they fill more of them.
        old_rows = sum(max(1, -(-display_width(row) // max(width, 1))) for row in self._drawn)
        up = f"\x1b[{old_rows}A" if old_rows else ""
        text = "".join(f"{line}\x1b[K\n" for line in (*lines, *shown))
        # Below the new rows there may be old ones, if there were more of them.
        self._sink.write(f"\r{up}{text}\x1b[J" if old_rows else text.replace("\x1b[K", ""))
        self._drawn = shown


def _shortened(rows: Sequence[str], most: int) -> list[str]:
    if len(rows) <= most:
        return list(rows)
    kept = max(most - 1, 0)
    return [*rows[:kept], f"… and {len(rows) - kept} more"]
