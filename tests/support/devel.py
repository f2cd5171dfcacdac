"""A devel base with a compiler, CMake and ccache, made from Debian packages, in a room of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from support.containers import empty_storage_at_the_end
from support.images import saved

from assembler.build import bootstrap
from assembler.build.container import Buildah
from assembler.build.debs import fetch
from assembler.build.node import probe_storage
from assembler.build.runs import RunDirectory
from assembler.events import Event, ignore
from assembler.manifest.models import Bootstrap
from assembler.oci.image import Image, append
from assembler.oci.layout import Store
from assembler.oci.platform import Platform
from assembler.pack.tarball import pack

DEVEL = "localhost/assemble/image:devel"
WISH = Bootstrap(suite="bookworm", packages=("ccache", "cmake", "g++", "gcc", "libc6-dev", "make", "ninja-build"))


class DevelRoom:
    """A cache directory whose buildah storage has the devel base as `DEVEL`, and one run."""

    def __init__(self, cache: Path, run: RunDirectory) -> None:
        self.cache = cache
        self.store = Store(cache / "store").create()
        self.run = run
        self.events: list[Event] = []
        self.buildah = Buildah(probe_storage(cache), run, self.events.append)

    def make_base(self) -> None:
        """Resolve, fetch, bootstrap, import."""
        platform = Platform.host()
        packages = bootstrap.resolve(WISH, platform)
        paths = fetch(packages, self.store, ignore)
        with bootstrap.assembled(
            WISH, packages, paths, self.run.scratch("bootstrap"), platform=platform
        ) as entries:
            packed = pack(entries, self.store, level=1)
        manifest = saved(self.store, append(Image.scratch(platform), [packed.layer])).digest
        self.buildah.import_image(self.store, manifest, DEVEL)


@contextlib.contextmanager
def devel_room(cache: Path) -> Iterator[DevelRoom]:
    """The room in this cache directory; its storage is emptied at the end."""
    with empty_storage_at_the_end(cache), RunDirectory.create(cache) as run:
        room = DevelRoom(cache, run)
        room.make_base()
        yield room
