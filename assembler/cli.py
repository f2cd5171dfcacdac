"""argv in, exit code out; the only place that prints."""

from __future__ import annotations


def main() -> int:
    """Run the command line."""
    return 0
