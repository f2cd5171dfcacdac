"""RECORD files: the list of what a wheel holds and of what is installed (recording installed projects, PyPA)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import NamedTuple

from assembler.errors import UntrustedInputError
from assembler.pack.members import HASHES


class Row(NamedTuple):
    """A line: a path as written, `ALGORITHM=DIGEST` or nothing, a size or None."""

    path: str
    expected: str
    size: int | None


def parse_record(data: bytes, archive: str) -> dict[str, Row]:
    """The rows of a wheel's RECORD by path. UntrustedInputError naming the wheel when it is not one."""
    rows: dict[str, Row] = {}
    try:
        for number, fields in enumerate(csv.reader(io.StringIO(data.decode(), newline=""), strict=True), 1):
            if not fields:
                continue
            if len(fields) != 3:
                raise _refused(archive, f"line {number} has {len(fields)} fields; expected path, hash and size")
            path, expected, size = fields
            algorithm, _, digest = expected.partition("=")
            if expected and (algorithm not in HASHES or not digest):
                raise _refused(archive, f"`{path}` has the hash `{expected}`; expected one of {', '.join(HASHES)}")
            if size and not (size.isascii() and size.isdigit()):
                raise _refused(archive, f"`{path}` has the size `{size}`")
            row = Row(path, expected.rstrip("="), int(size) if size else None)
            if rows.setdefault(path, row) != row:
                raise _refused(archive, f"`{path}` is there twice and differs")
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refused(archive, str(error)) from error
    return rows


def format_record(rows: Iterable[Row]) -> bytes:
    """RECORD as it is installed: sorted, so that it follows from what it lists."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows((row.path, row.expected, "" if row.size is None else row.size) for row in sorted(rows))
    return text.getvalue().encode()


def _refused(archive: str, what: str) -> UntrustedInputError:
    return UntrustedInputError(f"RECORD: {what}", place=archive)
