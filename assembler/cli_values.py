"""Values of the command line's options: read, or refused in our own words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable


def one_of(*choices: str) -> Callable[[str], str]:
    """A word that is one of these."""

    def check(text: str) -> str:
        if text not in choices:
            expected = ", ".join(f"`{choice}`" for choice in choices)
            raise argparse.ArgumentTypeError(f"expected one of {expected}, got `{text}`")
        return text

    return check


def number(text: str) -> int:
    """A whole number from 1 upward."""
    if not re.fullmatch(r"[0-9]{1,6}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number from 1 upward, got `{text}`")
    return int(text)


def days(text: str) -> float:
    """A number of days."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"expected a number of days, got `{text}`")
    return float(text)


def host(text: str) -> str:
    """The host of a registry, with its port if it has one."""
    if not text or "/" in text:
        raise argparse.ArgumentTypeError(f"expected a host, with its port if it has one, got `{text}`")
    return text
