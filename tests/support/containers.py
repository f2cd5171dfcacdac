"""Containers for tests: a base that is one static busybox, in storage of its own, made in a second.

The busybox is Debian's package, downloaded once for all workers of a test run.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.images import image_of, layer_of, saved
from support.needs import lacking, need

from assembler.build.container import Buildah
from assembler.build.node import probe_storage
from assembler.build.runs import RunDirectory, mounts_below
from assembler.events import Event
from assembler.oci.digest import Digest
from assembler.oci.image import append
from assembler.oci.layout import Store
from assembler.process import run, which

TINY = "localhost/assemble/image:tiny"
_APPLETS = (
    "sh cat ls touch rm mkdir rmdir ln id env sleep kill "
    "true false nc setsid ps hostname echo mount cut wc mv cp chmod"
)


@dataclass(frozen=True)
class Room:
    """A cache directory with buildah's storage in it, one run, and the tiny base as `TINY`.

    `manifest` is the image manifest of the base, in the store.
    """

    cache: Path
    store: Store
    run: RunDirectory
    buildah: Buildah
    events: list[Event]
    manifest: Digest

    def another_run(self) -> Buildah:
        """The same storage for another run of this process, which nobody closes."""
        return Buildah(self.buildah.storage, RunDirectory.create(self.cache), self.events.append)


def shared_directory(basetemp: Path, name: str) -> Path:
    """Where the workers of one test run share something: a worker's own directory is one level deeper."""
    path = (basetemp.parent if "PYTEST_XDIST_WORKER" in os.environ else basetemp) / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def busybox(directory: Path) -> bytes:
    """The static busybox, kept in a directory that may be shared; skips the test where it cannot be had."""
    with (directory / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        places = [directory / "root" / place / "busybox" for place in ("bin", "usr/bin")]  # Debian 12, and newer
        if not any(place.exists() for place in places):
            if (
                which("apt-get") is None
                or run(["apt-get", "-q", "download", "busybox-static"], cwd=directory, check=False).returncode
            ):
                lacking("the package `busybox-static` cannot be downloaded")
            (package,) = directory.glob("busybox-static_*.deb")
            run(["dpkg-deb", "--extract", str(package), str(directory / "root")])
        return next(place for place in places if place.exists()).read_bytes()


def tiny_tar(program: bytes) -> bytes:
    """The root file system of the tiny base."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in ("bin", "etc", "root", "tmp", "usr", "usr/share"):
            member = tarfile.TarInfo(path)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        member = tarfile.TarInfo("bin/busybox")
        member.mode, member.size = 0o755, len(program)
        tar.addfile(member, io.BytesIO(program))
        for applet in _APPLETS.split():
            member = tarfile.TarInfo(f"bin/{applet}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(member)
    return buffer.getvalue()


@contextlib.contextmanager
def running_room(cache: Path, program: bytes) -> Iterator[Room]:
    """A room in this cache directory; its storage is emptied at the end."""
    need("buildah")
    store = Store(cache / "store").create()
    events: list[Event] = []
    with empty_storage_at_the_end(cache), RunDirectory.create(cache) as directory:
        buildah = Buildah(probe_storage(cache), directory, events.append)
        image = append(image_of(store), [layer_of(store, tiny_tar(program), compression="zstd")])
        manifest = saved(store, image).digest
        buildah.import_image(store, manifest, TINY)
        yield Room(cache, store, directory, buildah, events, manifest)


@contextlib.contextmanager
def empty_storage_at_the_end(cache: Path) -> Iterator[None]:
    """Unmount and delete what buildah keeps for this cache when the block is left."""
    try:
        yield
    finally:
        storage = probe_storage(cache)
        if storage.root.exists():
            run(["buildah", *storage.arguments, "rm", "--all"], check=False)
            run(["buildah", *storage.arguments, "rmi", "--all", "--force"], check=False)
        for mount in mounts_below(cache.resolve()):
            run(["umount", "--lazy", str(mount)], check=False)
        run(["rm", "-rf", str(cache / "containers"), str(storage.runroot.parent)], check=False)
