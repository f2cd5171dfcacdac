"""The files of locked wheels: where each may be had, in which order.

The lock says an address that was right for who locked. For others it may be a mirror that they cannot reach, or
PyPI from behind a firewall, so a file is looked for by project, name and hash in the indexes of the manifest and
of the user's own settings as well: first there, where the user has an index of his own and the address is
elsewhere, otherwise only when the address fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from assembler.build.download import Patience, open_session
from assembler.build.fetching import Item
from assembler.build.index_settings import IndexSettings
from assembler.build.python_index import project_files
from assembler.errors import AssembleError
from assembler.manifest.wheels import LockedWheel

if TYPE_CHECKING:
    import requests

_PYPI: Final = frozenset({"pypi.org", "files.pythonhosted.org"})


class WheelPlaces:
    """Addresses of wheels. `indexes` are the manifest's own, `directories` its wheelhouses."""

    def __init__(
        self,
        settings: IndexSettings,
        *,
        indexes: Sequence[str] = (),
        directories: Sequence[Path] = (),
        patience: Patience | None = None,
    ) -> None:
        self._settings = settings
        self._indexes = tuple(dict.fromkeys((*indexes, *settings.urls())))
        self._directories = (*directories, *settings.local_directories())
        self._patience = patience
        self._session: requests.Session | None = None

    def item(self, wheel: LockedWheel) -> Item:
        """The wheel as something to fetch."""
        return Item(
            label=wheel.label, digest=wheel.digest, size=wheel.size, addresses=partial(self.addresses, wheel)
        )

    def addresses(self, wheel: LockedWheel) -> Iterator[str]:
        """Where the file may be; URLs with the credentials that they need."""
        for directory in self._directories:
            path = directory / wheel.filename
            if path.is_file():
                yield path.absolute().as_uri()
        own = [self._settings.with_credentials(wheel.url)] if wheel.url else []
        searched = self._searched(wheel)
        if wheel.url and self._is_elsewhere(wheel.url):
            yield from searched
            yield from own
        else:
            yield from own
            yield from (address for address in searched if address not in own)

    def _is_elsewhere(self, url: str) -> bool:
        """Has the user an index of his own, and is this address on another host?"""
        hosts = {urlsplit(index).hostname for index in (self._settings.default, *self._settings.extra) if index}
        return bool(hosts - _PYPI) and urlsplit(url).hostname not in hosts

    def _searched(self, wheel: LockedWheel) -> Iterator[str]:
        if self._session is None:
            self._session = open_session()
        for index in self._indexes:
            try:
                files = project_files(
                    self._session, self._settings.with_credentials(index), wheel.name, patience=self._patience
                )
            except AssembleError:  # another index, or the address itself, may be well
                continue
            for file in files:
                if file.name == wheel.filename and file.digest in {None, wheel.digest}:
                    yield self._settings.with_credentials(file.url)

    def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            self._session.close()
