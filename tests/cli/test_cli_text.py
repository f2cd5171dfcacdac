"""Sizes, durations, tables, and foreign text made safe."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assembler import cli_running, cli_text
from assembler.cli_text import display_width, duration_text, fit, printable, redact, size_text, table


@pytest.mark.parametrize("module", [cli_text, cli_running])
def test_examples_in_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted
    assert not result.failed


@given(st.integers(0, 1 << 60))
def test_a_size_has_at_most_eight_columns(size: int) -> None:
    assert len(size_text(size)) <= 8


@given(st.floats(0, 100 * 86_400 - 3600))
def test_a_duration_has_at_most_six_columns(seconds: float) -> None:
    text = duration_text(seconds)
    assert len(text) <= 6
    assert "60" not in text.replace("h", "m").split("m")[1:]


@given(st.text(), st.integers(0, 20))
def test_what_is_cut_fits(text: str, width: int) -> None:
    assert display_width(fit(text, width)) <= max(width, 0)


@given(st.text())
def test_what_is_printed_moves_no_cursor(text: str) -> None:
    clean = printable(text)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in clean)
    assert printable(clean) == clean
    clean.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07ls", "ls"),
        ("\x1b[2J\x1b[1;1Hfree", "free"),
        ("a\u202etxt.exe", "atxt.exe"),  # a bidirectional override
        ("\udcff", "?"),  # a file name that is no UTF-8
    ],
)
def test_escapes_are_dropped(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_a_table_keeps_its_columns() -> None:
    text = table([["a", "日本", "x"], ["bbb", "1", ""]], ["h", "wide", "end"], right={1})
    assert text == "h    wide  end\na    日本  x\nbbb     1"
    assert table([]) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no address", "no address"),
        ("https://token@example.org/x", "https://***@example.org/x"),
        ("git+ssh://git@example.org/x", "git+ssh://git@example.org/x"),
        ("ssh://git:pw@example.org/x", "ssh://***@example.org/x"),
        ("https://example.org/a@b", "https://example.org/a@b"),
        ("https://example.org/?access_token=1#f", "https://example.org/?access_token=***#f"),
    ],
)
def test_credentials_are_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected
