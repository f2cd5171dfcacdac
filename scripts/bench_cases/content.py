"""A tree like an installed torch: 12,000 files, 700 MB, the same on every machine, compressing to about a quarter.

Nine tenths of the bytes are a few large binaries, nine tenths of the files are small texts. Nothing repeats within
the window of a compressor beyond what code and machine code repeat.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

FILES: Final = 12_000
BYTES: Final = 700_000_000
DIRECTORIES: Final = tuple(f"part{number}" for number in range(8))
CHANGED: Final = DIRECTORIES[-1]

_PIECE: Final = 16 << 10
_LARGE: Final = (300_000_000, 120_000_000, 60_000_000, 40_000_000, 30_000_000, 20_000_000, 15_000_000, 10_000_000)
_WORDS: Final = 6000


class Content:
    """Bytes of two kinds, from a fixed seed."""

    def __init__(self, seed: int = 7) -> None:
        self._random = random.Random(seed)  # noqa: S311  (the same bytes everywhere)
        self._text = self._texts(8 << 20)
        self._binary = self._binaries(32 << 20)

    def _texts(self, size: int) -> bytes:
        letters = "etaoinshrdlucmfwypvbgkqjxz_"
        weights = [2.0 ** (-index / 6) for index in range(len(letters))]
        pick = self._random.choices
        words = ["".join(pick(letters, weights, k=self._random.randint(2, 11))) for _ in range(_WORDS)]
        joints = [" ", " ", " ", "(", ")", ", ", ".", " = ", ":\n        ", "\n    ", "\n"]
        phrases = self._phrases([word + joint for word in words for joint in pick(joints, k=2)], 30_000)
        return "".join(phrases(size // 8)).encode()[:size]

    def _binaries(self, size: int) -> bytes:
        octets = self._random.randbytes
        codes = [octets(self._random.choice((1, 2, 2, 3, 3, 4, 5, 7))) for _ in range(1200)] + [bytes(4)] * 40
        phrases = self._phrases([code.decode("latin-1") for code in codes], 12_000)
        tails = [octets(1).decode("latin-1") for _ in range(64)] + [""] * 160
        count = size // 5
        pairs = zip(phrases(count), self._random.choices(tails, k=count), strict=True)
        return "".join(phrase + tail for phrase, tail in pairs).encode("latin-1")[:size]

    def _phrases(self, parts: Sequence[str], count: int) -> Callable[[int], list[str]]:
        """A chooser among `count` phrases of a few parts each, some of them much more frequent than others."""
        pick = self._random.choices
        use = [1.0 / (rank + 3) for rank in range(len(parts))]
        phrases = ["".join(pick(parts, use, k=self._random.randint(1, 5))) for _ in range(count)]
        weights = list(itertools.accumulate(1.0 / (rank + 20) for rank in range(count)))
        return lambda amount: pick(phrases, cum_weights=weights, k=amount)

    def text(self, size: int) -> bytes:
        """`size` bytes that look like source code."""
        return self._cut(self._text, size)

    def binary(self, size: int) -> bytes:
        """`size` bytes that look like machine code."""
        return self._cut(self._binary, size)

    def _cut(self, pool: bytes, size: int) -> bytes:
        last = len(pool) - _PIECE
        starts = (self._random.randrange(last) for _ in range(-(-size // _PIECE)))
        return b"".join(pool[start : start + _PIECE] for start in starts)[:size]


def write_tree(root: Path, *, files: int = FILES, size: int = BYTES) -> int:
    """Write the tree below `root` and return its bytes. A smaller tree keeps the proportions."""
    content = Content()
    scale = size / BYTES
    large = [int(length * scale) for length in _LARGE]
    for number, length in enumerate(large):
        path = root / DIRECTORIES[number % len(DIRECTORIES)] / "lib" / f"libbench_{number}.so"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, length, 1 << 24):
                file.write(content.binary(min(1 << 24, length - start)))
    return sum(large) + _write_small(root, content, files - len(large), size - sum(large))


def _write_small(root: Path, content: Content, files: int, size: int) -> int:
    """The small files: sizes spread over three orders of magnitude, adding up to about `size`."""
    shape = random.Random(11)  # noqa: S311
    weights = [shape.lognormvariate(0.0, 1.3) for _ in range(files)]
    unit = size / sum(weights)
    written = 0
    for number, weight in enumerate(weights):
        part, place = DIRECTORIES[number % len(DIRECTORIES)], number // len(DIRECTORIES)
        folder = root / part / f"package_{place % 25:02}" / f"module_{place % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        length = int(weight * unit)
        binary = number % 3 == 0
        name = f"unit_{number:05}" + (".pyc" if binary else ".py")
        (folder / name).write_bytes(content.binary(length) if binary else content.text(length))
        written += length
    return written


def change_one(root: Path, number: int) -> None:
    """Change one small file of the last directory; another `number` is another change."""
    path = next(path for path in sorted((root / CHANGED).rglob("*.py")) if path.stat().st_size > 1000)
    data = path.read_bytes()
    path.write_bytes(f"# change {number:08}\n".encode() + data[18:])


if __name__ == "__main__":
    write_tree(Path(sys.argv[1]))
