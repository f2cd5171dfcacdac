"""Sizes as people read them: binary units, which disks, registries and cgroups of this field count in."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_text(size_bytes: float) -> str:
    """A number of bytes, at most eight columns wide.

    >>> [size_text(n) for n in (0, 999, 1000, 1536, 131 << 20, 1000 << 20, 13_314_398_618)]
    ['0 B', '999 B', '1.0 KiB', '1.5 KiB', '131 MiB', '1.0 GiB', '12.4 GiB']
    """
    value, unit = float(size_bytes), 0
    # 999.5 would be rounded to a fourth digit, so the next unit starts there and not at 1024.
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 1 if unit and value < 99.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"
