"""Which wheels share a layer: large ones have their own, the others fall into a fixed number of buckets.

A bucket follows from the project's name alone, so a wheel that comes, goes or changes touches one layer and moves
no other wheel. When an image has few layers left there are half as many buckets, each the union of two; when that
is not enough, fewer wheels count as large.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from assembler.errors import ManifestError
from assembler.manifest.wheels import LockedWheel
from assembler.pack.wheel_environment import Environment

LAYER_LIMIT: Final = 8 << 30
"""Bytes of wheels in a layer. Registries begin to refuse at 10 GB, and a pull restarts with its layer."""

THRESHOLD: Final = 4 << 20
"""Bytes from which a wheel has a layer of its own, unless told otherwise."""

_BITS: Final = 4  # sixteen buckets
_FEWEST_BITS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelGroup:
    """The wheels of one layer. `name` is unique in a plan; the group without wheels is the environment itself."""

    name: str
    wheels: tuple[LockedWheel, ...]


def layer_plan(
    wheels: Sequence[LockedWheel], environment: Environment, *, threshold: int = THRESHOLD, available_layers: int
) -> tuple[WheelGroup, ...]:
    """The layers of these wheels, lowest first, at most `available_layers`. The first one of a virtual environment
    is the environment itself, without wheels.

    Wheels of `threshold` bytes and more stand alone where there are layers enough. ManifestError when a wheel is
    larger than a layer may be, or when there are no layers left for them.
    """
    for wheel in wheels:
        if wheel.size > LAYER_LIMIT:
            raise ManifestError(
                f"the wheel `{wheel.filename}` has {wheel.size} bytes; a layer may have {LAYER_LIMIT}",
                hint="leave it out with `exclude`, or mount it",
            )
    ordered = sorted(wheels, key=lambda wheel: (wheel.name, wheel.version, wheel.sha256))
    first = (WheelGroup(name="venv", wheels=()),) if environment.venv else ()
    room = available_layers - len(first)
    bits, limit = _BITS, max(1, threshold)
    while True:
        single = [wheel for wheel in ordered if wheel.size >= limit]
        buckets = _buckets([wheel for wheel in ordered if wheel.size < limit], bits)
        if len(single) + len(buckets) <= room:
            return (
                *first,
                *(WheelGroup(name=wheel.label, wheels=(wheel,)) for wheel in single),
                *(WheelGroup(name=f"group {name}", wheels=tuple(members)) for name, members in buckets),
            )
        if bits > _FEWEST_BITS or (bits and not single):
            bits -= 1
        elif single:
            limit *= 2
        else:
            raise ManifestError(
                f"{len(ordered)} wheels need {len(buckets) + len(first)} layers or more; "
                f"{max(0, available_layers)} are left"
            )


def _buckets(wheels: Iterable[LockedWheel], bits: int) -> list[tuple[str, list[LockedWheel]]]:
    """Wheels by the first bits of their name's hash; what is too large for a layer is split by the next bits."""
    found: dict[str, list[LockedWheel]] = {}
    for wheel in wheels:
        digest = hashlib.sha256(wheel.name.encode()).digest()
        found.setdefault(f"{int.from_bytes(digest):0256b}"[:bits], []).append(wheel)
    buckets = []
    for name, members in sorted(found.items()):
        if sum(wheel.size for wheel in members) > LAYER_LIMIT and bits < 256:
            buckets += [(part, some) for part, some in _buckets(members, bits + 1)]
        else:
            buckets.append((name or "all", members))
    return buckets
