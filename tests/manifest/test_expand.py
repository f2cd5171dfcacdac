"""`${name}` in scalars."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assembler.errors import InvalidManifestError, ManifestError
from assembler.manifest.expand import Expander, overlay
from assembler.manifest.problems import Problems
from assembler.manifest.source import parse_document

_DOCUMENT = parse_document(b"a: b\n", "f")


def _expand(text: str, **values: str) -> str:
    problems = Problems()
    result = Expander(problems).text(text, values, _DOCUMENT, ("a",))
    problems.raise_any()
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v${version}", "v1.2"),
        ("${version}${version}", "1.21.2"),
        ("$${version}", "${version}"),
        ("$$${version}", "$${version}"),
        ("$version $ $$ $HOME", "$version $ $$ $HOME"),
        ("{version}", "{version}"),
        ("a$${b}${version}", "a${b}1.2"),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    assert _expand(text, version="1.2") == expected


def test_a_value_is_not_expanded_again() -> None:
    assert _expand("${a}", a="${b}", b="c") == "${b}"


@settings(deadline=None)
@given(st.text() | st.text(alphabet="${}a"))
def test_escaping_every_marker_gives_the_text_back(text: str) -> None:
    assert _expand(text.replace("${", "$${")) == text


@pytest.mark.parametrize("text", ["${b}", "${", "x${version", "${}", "${a b}"])
def test_wrong(text: str) -> None:
    with pytest.raises(InvalidManifestError):
        _expand(text, version="1")


def test_values_that_double_each_other_end() -> None:
    expander = Expander(Problems())
    value = "x"
    with pytest.raises(ManifestError, match="characters of expanded values"):
        for _ in range(100):
            value = expander.text("${v}${v}", {"v": value}, _DOCUMENT, ("a",))


class TestEnvironment:
    """Contributions are stacked like ENV lines; the base's values come last."""

    def test_prepending_twice(self) -> None:
        layers = [{"P": "/a:${P}"}, {"P": "/b:${P}", "Q": "${P}"}, {"R": "${Q}"}]
        assert overlay(layers) == {"P": "/b:/a:${P}", "Q": "/a:${P}", "R": "/a:${P}"}

    def test_an_escape_survives(self) -> None:
        assert overlay([{"A": "$${P}"}, {"P": "x", "B": "${A}"}])["B"] == "$${P}"

    def test_growth_is_bounded(self) -> None:
        with pytest.raises(ManifestError, match="environment of at most"):
            overlay([{"X": "x"}, *[{"X": "${X}${X}"}] * 100])
