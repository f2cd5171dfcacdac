"""YAML with positions: text stays text, everything has a place, and no bytes do harm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assembler.errors import ManifestError
from assembler.manifest.source import DEPTH_LIMIT, SIZE_LIMIT_BYTES, Document, Mark, parse_document, read_document
from assembler.manifest.source import show_steps as show


def test_scalars_are_the_text_that_was_written() -> None:
    tree = parse_document(b"a: 3.10\nb: on\nc: 0x1F\nd: 1_000\ne: 2024-01-01\nf: 010\ng: 'null'\nh: =\n", "f").tree
    assert tree == {
        "a": "3.10",
        "b": "on",
        "c": "0x1F",
        "d": "1_000",
        "e": "2024-01-01",
        "f": "010",
        "g": "null",
        "h": "=",
    }


@pytest.mark.parametrize("text", ["", "~", "null", "Null", "NULL"])
def test_nothing_is_none(text: str) -> None:
    assert parse_document(f"a: {text}\n".encode(), "f").tree == {"a": None}


def test_every_key_and_value_has_a_place() -> None:
    document = parse_document("a: 1\nlayers:\n  - uses: x\n    with: {ä: y, b: [1, 2]}\n".encode(), "m.yaml")
    assert document.values[("layers", 0, "with", "b", 1)] == Mark(4, 25)
    assert document.keys[("layers", 0, "with", "b")] == Mark(4, 18)
    assert document.place(("layers", 0, "with", "b", 1)) == "m.yaml:4:25: layers[0].with.b[1]"
    assert document.place(("layers", 0, "with", "b"), of_key=True) == "m.yaml:4:18: layers[0].with.b"
    assert document.position(("layers", 0)) == "m.yaml:3:5"
    assert document.place() == "m.yaml:1:1"


def test_what_is_not_there_is_placed_at_its_nearest_ancestor() -> None:
    document = parse_document(b"image:\n  stop_signal: x\n", "m.yaml")
    assert document.place(("image", "cmd", 3)) == "m.yaml:2:3: image"
    assert document.place(("image", "stop-signal")) == "m.yaml:2:16: image.stop_signal"


def test_steps_are_shown_as_people_write_them() -> None:
    assert show(("layers", 0, "with", "verbs")) == "layers[0].with.verbs"


def test_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse_document(b"\xef\xbb\xbfa: 1\n", "f").tree == {"a": "1"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: \xff\n", "f:1:4: expected UTF-8, got the byte `0xff`"),
        ("ä: 1\nö: ".encode() + b"\xc3", "f:2:4: expected UTF-8, got the byte `0xc3`"),
        ("a: 1".encode("utf-16"), "f:1:1: expected UTF-8, got the byte `0xff`"),
        (b"a: 1\nb: \x00", "f:2:4: expected printable text, got a control character"),
        (b"[" * 100_000, f"f:1:{DEPTH_LIMIT + 1}: expected at most {DEPTH_LIMIT} levels, got more"),
        (b"- " * 100_000, f"f:1:{2 * DEPTH_LIMIT + 1}: expected at most {DEPTH_LIMIT} levels, got more"),
        (b"a" * (SIZE_LIMIT_BYTES + 1), f"f: expected at most {SIZE_LIMIT_BYTES} bytes, got more"),
        (b"a: &x [1]\n", "f:1:4: anchors are not supported, got `&x`"),
        (b"a: *x\n", "f:1:4: aliases are not supported, got `*x`"),
        (
            b"a: !!python/object:os.system 1\n",
            "f:1:4: tags are not supported, got `!!python/object:os.system`",
        ),
        (b"a:\n  b: 1\n  b: 2\n", "f:3:3: a.b: this key stands in line 2 already"),
        (b"? [a]\n: b\n", "f:1:3: expected a text as key, got a mapping or a list"),
        (b"~: b\n", "f:1:1: expected a text as key, got nothing"),
        (b"a: 1\n---\nb: 1\n", "f:2:1: expected one YAML document, got a second one"),
        (b"a", "f:1:1: expected a mapping, got `a`"),
        (b"a: 'b\n", "f:2:1: a quoted text is not closed"),
        (b"a: [b\n", "f:2:1: expected `,` or `]`"),
        (b"a:\n  - b\n\tc: d\n", "f:3:1: expected spaces, got a tab"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_document(data, "f")
    assert str(caught.value) == message


_YAMLISH = st.text(alphabet="ab:-[]{},#&*!|>'\"%@`? \t\n\r\x85\u2028ä😀\0~<=.0", max_size=80)


class TestArbitraryBytes:
    """The loader answers arbitrary bytes with a value or a ManifestError with a place, nothing else."""

    @staticmethod
    def answer(data: bytes) -> None:
        try:
            document = parse_document(data, "f")
        except ManifestError as error:
            assert error.place is not None and error.place.startswith("f")
        else:
            assert isinstance(document, Document)
            assert set(document.keys) < set(document.values)

    @settings(deadline=None)
    @given(st.binary(max_size=200))
    def test_bytes(self, data: bytes) -> None:
        self.answer(data)

    @settings(deadline=None)
    @given(_YAMLISH)
    def test_texts_of_yaml_s_own_characters(self, text: str) -> None:
        self.answer(text.encode())


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^m.yaml: no such file or directory$"):
        read_document(tmp_path / "m.yaml", "m.yaml")
    with pytest.raises(ManifestError, match=r"^m: is a directory$"):
        read_document(tmp_path, "m")


def test_source_and_lock_do_without_pydantic() -> None:
    script = "import sys, assembler.manifest.source, assembler.manifest.lock; sys.exit('pydantic' in sys.modules)"
    root = str(Path(__file__).parents[2])
    assert (
        subprocess.run([sys.executable, "-c", script], cwd=root, env={**os.environ}, check=False).returncode == 0
    )
