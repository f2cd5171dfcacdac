"""Text for people: sizes, durations, tables, and what makes foreign text safe to print. Pure functions.

Sizes are binary (KiB, MiB, GiB), because that is what disks, registries and cgroups of this field count in.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from assembler.units import size_text

__all__ = ["display_width", "duration_text", "fit", "pad", "printable", "redact", "size_text", "table"]

# CSI, OSC (ended by BEL or ST), and the two-byte escapes of ECMA-48.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_USER_INFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://)([^/?#\s@]+)@", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(
    r"([?&][^=&#\s]*(?:token|signature|sig|password|passwd|secret|credential|api_?key)[^=&#\s]*=)[^&#\s]+",
    re.IGNORECASE,
)
_HIDDEN = "***"


def duration_text(seconds: float) -> str:
    """A duration in its two largest units, at most six columns wide below a hundred days.

    >>> [duration_text(s) for s in (0, 3.14, 59.94, 59.97, 2462, 3600, 7565, 90_000)]
    ['0.0s', '3.1s', '59.9s', '1m00s', '41m02s', '1h00m', '2h06m', '1d01h']
    """
    if seconds < 59.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02}h"


def display_width(text: str) -> int:
    """How many columns a terminal gives to `text`: two for wide characters, none for combining ones.

    >>> display_width("abc"), display_width("日本"), display_width("e\\u0301")
    (3, 4, 1)
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def pad(text: str, width: int, *, right: bool = False) -> str:
    """`text` filled with spaces to `width` columns; longer text stays as it is.

    >>> pad("ab", 4), pad("ab", 4, right=True), pad("abcde", 4)
    ('ab  ', '  ab', 'abcde')
    """
    space = " " * max(width - display_width(text), 0)
    return space + text if right else text + space


def fit(text: str, width: int) -> str:
    """`text` cut to `width` columns, with an ellipsis when something was cut.

    >>> fit("flash-attn", 20), fit("flash-attn", 6), fit("日本語", 4), fit("ab", 0)
    ('flash-attn', 'flash…', '日…', '')
    """
    if display_width(text) <= width:
        return text
    kept, used = "", 0
    for character in text:
        used += display_width(character)
        if used > width - 1:
            break
        kept += character
    return kept + "…" if width > 0 else ""


def table(rows: Sequence[Sequence[str]], headers: Sequence[str] = (), *, right: Collection[int] = ()) -> str:
    """Columns two spaces apart, those in `right` aligned to the right; never wrapped or cut, no trailing spaces.

    >>> print(table([["ucx", "9.1 MiB"], ["torch", "812 MiB"]], ["layer", "size"], right={1}))
    layer     size
    ucx    9.1 MiB
    torch  812 MiB
    """
    lines = [headers, *rows] if headers else list(rows)
    columns = max((len(line) for line in lines), default=0)
    widths = [max(display_width(line[i]) for line in lines if i < len(line)) for i in range(columns)]
    return "\n".join(
        "  ".join(pad(cell, widths[i], right=i in right) for i, cell in enumerate(line)).rstrip() for line in lines
    )


def printable(text: str) -> str:
    """`text` on one line and without anything that moves a cursor or rings a bell.

    Names out of images and lines out of compilers are foreign: an escape sequence in them must not reach the
    terminal. Of a line that a tool drew over with carriage returns, the last state is kept.

    >>> printable("\\x1b[31mred\\x1b[0m\\ttext\\x07"), printable("10%\\r20%\\r"), printable("a\\nb")
    ('red text', '20%', 'a b')
    """
    if text.isascii() and text.isprintable():
        return text
    last = text.rstrip("\r\n").rpartition("\r")[2]
    without = _ESCAPES.sub("", last)
    spaced = (" " if character in "\t\n\v\f\x85\u2028\u2029" else character for character in without)
    # Cc: controls, Cf: bidirectional overrides and the like, Cs: what could not be decoded.
    return "".join(c if unicodedata.category(c) != "Cs" else "?" for c in spaced if not _is_control(c))


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf")


def redact(text: str) -> str:
    """`text` without credentials in its URLs; the login name of an ssh URL is none.

    >>> redact("clone https://me:hunter2@example.org/a.git and ssh://git@example.org/b")
    'clone https://***@example.org/a.git and ssh://git@example.org/b'
    >>> redact("GET https://example.org/blob?X-Amz-Signature=abc&part=1")
    'GET https://example.org/blob?X-Amz-Signature=***&part=1'
    """
    if "://" not in text:
        return text
    text = _USER_INFO.sub(_hide_user_info, text)
    return _SECRET_PARAMETER.sub(rf"\g<1>{_HIDDEN}", text)


def _hide_user_info(match: re.Match[str]) -> str:
    scheme, user = match[1], match[2]
    if "ssh" in scheme.lower() and ":" not in user:
        return match[0]
    return f"{scheme}{_HIDDEN}@"
