"""Secrets of a compile step: files of the user, seen in the container at `/run/secrets/NAME` while commands run.

They are on no command line and in no key. What is printed of them is taken out of logs and messages, and an
artifact that has one in it is refused. The agent of ssh comes in as a socket, `SSH_AUTH_SOCK`.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from assembler.build.harvest import Harvest
from assembler.build.mounting import Mount
from assembler.errors import RequestError, StepError
from assembler.oci.layout import write_atomically

DIRECTORY: Final = "/run/secrets"
AGENT: Final = "/run/ssh-agent.sock"
_SHOWN: Final = b"***"
_SHORTEST: Final = 8
_LARGEST: Final = 1 << 20
_NO_SECRETS: Final = frozenset((b"password", b"protocol"))
"""Words of .netrc and of git's credential files that are long enough to be taken for one."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a step's commands get beside everything else, and the words that nobody may see."""

    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    words: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], given: Mapping[str, Path], *, ssh: bool, step: str) -> Secrets:
        """The secrets of these names; RequestError when one was not given, or there is no agent of ssh."""
        mounts, words = [], set()
        for name in names:
            if name not in given:
                raise RequestError(
                    f"the secret `{name}` is needed", place=step, hint=f"pass it: `--secret {name}=FILE`"
                )
            data = _read(given[name], name)
            mounts.append(Mount(source=given[name], target=f"{DIRECTORY}/{name}"))
            words |= {data.strip(), *(word for word in data.split() if word not in _NO_SECRETS)}
        environment = {}
        if ssh:
            agent = os.environ.get("SSH_AUTH_SOCK", "")
            if not Path(agent).is_socket():
                raise RequestError(
                    "the step needs an ssh agent, and there is none",
                    place=step,
                    hint="start one: `eval $(ssh-agent); ssh-add`",
                )
            mounts.append(Mount(source=Path(agent), target=AGENT))
            environment["SSH_AUTH_SOCK"] = AGENT
        longest_first = sorted((word for word in words if len(word) >= _SHORTEST), key=len, reverse=True)
        return cls(tuple(mounts), environment, tuple(longest_first))

    def hide(self, text: str) -> str:
        """The text without them."""
        return self._hidden(text.encode(errors="surrogateescape")).decode(errors="surrogateescape")

    def clean(self, log: Path) -> None:
        """Take them out of a log."""
        if self.words and log.exists():
            before = log.read_bytes()
            after = self._hidden(before)
            if after != before:
                write_atomically(log, after)

    def check(self, harvest: Harvest, step: str) -> None:
        """StepError when a file of an artifact has one in it."""
        if not self.words:
            return
        pattern = re.compile(b"|".join(map(re.escape, self.words)))
        for name, items in harvest.items():
            for item in items:
                if item.is_file and item.status.st_size and _has(item.source, pattern):
                    raise StepError(f"artifact `{name}` has a secret in `{item.path}`", place=step)

    def _hidden(self, data: bytes) -> bytes:
        for word in self.words:
            data = data.replace(word, _SHOWN)
        return data


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise RequestError(f"the secret `{name}` cannot be read: {error.strerror}", place=str(path)) from error


def _has(path: Path, pattern: re.Pattern[bytes]) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return pattern.search(data) is not None
