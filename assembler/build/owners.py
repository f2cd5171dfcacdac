"""Whose the files of a container are, where the storage gives all of them to one id.

The owners that the image's layers say are marked on a new container's files, so that what runs there sees them;
what is given to somebody later is marked by the supervisor (`recorder.py`). `difference` then reads the marks of
both roots in place of the owners that the file system has.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from assembler.build import launcher
from assembler.build.recorder import ATTRIBUTE, Journal, RecordedOwners, Status, give, owner_text
from assembler.build.system_calls import machine
from assembler.errors import NodeError, StepError, refused

Owner: TypeAlias = tuple[int, int]
"""User and group."""

OwnersOf: TypeAlias = Callable[[], Mapping[str, Owner]]
"""Gives what an image says of owners: path → owner, of all that is not root's, and of what is in directories that
hand their group on."""

ReadOwner: TypeAlias = Callable[[str, os.stat_result], Owner | None]
"""The owner of what is at a path; None when nobody has said it."""

_NO_RANGES: Final = (
    "with a range in /etc/subuid and /etc/subgid it can be assembled here; or on a host where you are root"
)


def owner_on_disk(_path: str, status: os.stat_result) -> Owner:
    """The owner that the file system has."""
    return status.st_uid, status.st_gid


@dataclass(frozen=True, slots=True)
class Recorded:
    """The marks of one container: `journal` is beside it on the host."""

    journal: Path

    @classmethod
    def begin(cls, root: Path, owners: Mapping[str, Owner], directory: Path) -> Recorded:
        """Mark the files of a new container. NodeError when the storage cannot hold marks."""
        recorded = cls(directory / "owners.json")
        journal = recorded._open()
        try:
            known = Status(machine())
            for path, (uid, gid) in owners.items():
                place = os.fspath(root / path)
                if stat.S_ISLNK(os.lstat(place).st_mode):
                    give(place, uid, gid, follow=False, status=known, journal=journal)
                else:  # without the chown, which would take setuid bits away
                    os.setxattr(place, ATTRIBUTE, owner_text(uid, gid), follow_symlinks=False)
        except OSError as error:
            raise NodeError(f"owners cannot be written down: {refused(error)}", place=str(root)) from error
        finally:
            journal.close()
        return recorded

    def _open(self) -> Journal:
        return Journal(os.fspath(self.journal))

    @property
    def mode(self) -> str:
        """What `launcher.py` is told."""
        return f"recorded:{self.journal}"

    @property
    def everywhere(self) -> tuple[str, ...]:
        """What is put before a command that makes a root itself, so that it sees the owners that it sets."""
        return (sys.executable, "-I", str(Path(launcher.__file__)), "host", f"everywhere:{self.journal}")

    @property
    def reader(self) -> ReadOwner:
        """Reads the marks as they are now."""
        journal = self._open()
        journal.close()
        return RecordedOwners(journal, machine())

    def check(self) -> None:
        """StepError when something became another user: what it made from then on was that user's."""
        journal = self._open()
        journal.close()
        if journal.identities:
            raise StepError(
                "a program becomes another user, and this host has one id for us: the layer would be another one",
                detail=sorted(journal.identities),
                hint=_NO_RANGES,
            )


def unknown_owners(paths: list[str]) -> StepError:
    """The error of files that were made in directories that hand their group on, and may have got it or not."""
    shown = sorted(paths)
    return StepError(
        "with one id it is not known whose these files are: their directories hand on their group, or did not",
        detail=[*shown[:20], *([f"and {len(shown) - 20} more"] if len(shown) > 20 else [])],
        hint=f"a `chown` of them says whose they are; {_NO_RANGES}",
    )
