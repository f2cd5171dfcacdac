"""A real Debian base made from packages, and containers of it with plain buildah, for the tests of `build`.

The base is made once for all workers of a test run, under a file lock, in a storage of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from assembler.build import bootstrap
from assembler.build.debs import Package, fetch
from assembler.events import ignore
from assembler.manifest.models import Bootstrap
from assembler.oci.layout import Store
from assembler.oci.platform import Platform
from assembler.process import Completed, run
from assembler.tree.entry import Slice

IMAGE = "localhost/debian-base"
WISH = Bootstrap(suite="bookworm", packages=("ca-certificates",))


@dataclass(frozen=True)
class PlainContainer:
    """A working container: what `assembler.build` needs of one."""

    name: str
    options: tuple[str, ...]

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Any] = (),
        network: Literal["host", "none"] = "none",
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        check: bool = True,
    ) -> Completed:
        """Run a command; without network it has a network namespace of its own that nothing is connected to."""
        command = ["buildah", *self.options, "run", "--isolation", "chroot"]
        for mount in mounts:
            command += ["--volume", f"{mount.source}:{mount.target}:{'ro' if mount.read_only else 'rw'}"]
        for key, value in (env or {}).items():
            command += ["--env", f"{key}={value}"]
        alone = ["unshare", "--net"] if network == "none" else []
        return run([*alone, *command, self.name, "--", *argv], log=log, on_line=on_line, check=check)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """The root file system."""
        yield Path(run(["buildah", *self.options, "mount", self.name]).stdout.strip())
        run(["buildah", *self.options, "umount", self.name])

    def upper_directory(self, mounted: Path) -> Path | None:
        """The overlay's upper directory, or None with another driver."""
        upper = mounted.parent / "diff"
        return upper if upper.is_dir() else None


@dataclass(frozen=True)
class DebianBase:
    """The base: its packages, their files in a store, its tar, and a storage that has it as an image."""

    directory: Path

    @property
    def store(self) -> Store:
        """Holds every .debs that any test has fetched."""
        return Store(self.directory / "store")

    @property
    def packages(self) -> tuple[Package, ...]:
        """What the base is made of."""
        return tuple(
            Package.from_json(value) for value in json.loads((self.directory / "packages.json").read_bytes())
        )

    @property
    def tar(self) -> Path:
        """The root as mmdebstrap left it."""
        return self.directory / "root.tar"

    def options(self, driver: str = "overlay") -> tuple[str, ...]:
        """Global options that lead buildah to the storage."""
        base = self.directory / driver
        return ("--storage-driver", driver, "--root", f"{base}/root", "--runroot", f"{base}/run")

    @contextlib.contextmanager
    def container(self, driver: str = "overlay", image: str = IMAGE) -> Iterator[PlainContainer]:
        """A fresh container."""
        options = self.options(driver)
        name = run(["buildah", *options, "from", "--pull-never", image]).stdout.strip()
        try:
            yield PlainContainer(name, options)
        finally:
            run(["buildah", *options, "rm", name])


@contextlib.contextmanager
def debian_base(directory: Path) -> Iterator[DebianBase]:
    """The base in `directory`; made by the first who comes, removed by the last who goes."""
    directory.mkdir(parents=True, exist_ok=True)
    base = DebianBase(directory)
    with (directory / "making").open("a") as making, (directory / "users").open("a") as users:
        fcntl.flock(making, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        if not (directory / "packages.json").exists():
            _make(base)
        fcntl.flock(making, fcntl.LOCK_UN)
        try:
            yield base
        finally:
            fcntl.flock(making, fcntl.LOCK_EX)
            if _alone(users):
                _remove(base)


def _make(base: DebianBase) -> None:
    platform = Platform.host()
    packages = bootstrap.resolve(WISH, platform)
    paths = fetch(packages, base.store.create(), ignore)
    tar = bootstrap.assemble(WISH, packages, paths, base.directory, platform=platform)
    options = base.options()
    name = run(["buildah", *options, "from", "scratch"]).stdout.strip()
    root = Path(run(["buildah", *options, "mount", name]).stdout.strip())
    unpack_root(tar, root)
    run(["buildah", *options, "umount", name])
    run(["buildah", *options, "commit", "--quiet", "--rm", "--disable-compression", name, IMAGE])
    (base.directory / "packages.json").write_text(json.dumps([package.to_json() for package in packages]))


def unpack_root(tar: Path, root: Path) -> None:
    """Unpack the normalised entries of the root, as the packer and a container engine would: all times are 0."""
    with tarfile.open(root.parent / "entries.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for entry in bootstrap.entries(tar, sources=WISH.apt_sources()):
            info = tarfile.TarInfo(entry.path)
            info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
            info.type = {
                "file": tarfile.REGTYPE,
                "directory": tarfile.DIRTYPE,
                "symlink": tarfile.SYMTYPE,
                "hardlink": tarfile.LNKTYPE,
            }[entry.kind]
            info.linkname, info.size = entry.link, entry.size
            if isinstance(entry.content, bytes) or entry.content is None:
                import io

                archive.addfile(info, io.BytesIO(entry.content or b""))
            elif isinstance(entry.content, Slice):
                with entry.content.path.open("rb") as file:
                    file.seek(entry.content.offset)
                    archive.addfile(info, file)
    run(["tar", "-xpf", str(root.parent / "entries.tar"), "--numeric-owner", "-C", str(root)])
    (root.parent / "entries.tar").unlink()


def _alone(users: IO[Any]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(base: DebianBase) -> None:
    (base.directory / "packages.json").unlink(missing_ok=True)
    base.tar.unlink(missing_ok=True)
    shutil.rmtree(base.directory / "store", ignore_errors=True)
    for driver in ("overlay", "vfs"):
        if (base.directory / driver).exists():
            run(["buildah", *base.options(driver), "rm", "--all"], check=False)
            run(["buildah", *base.options(driver), "rmi", "--all", "--force"], check=False)
            for line in Path("/proc/self/mountinfo").read_text().splitlines():
                place = line.split()[4]
                if place.startswith(f"{base.directory}/{driver}/"):
                    run(["umount", place], check=False)
            shutil.rmtree(base.directory / driver, ignore_errors=True)


def shared_directory(basetemp: Path) -> Path:
    """Where the workers of one test run share the base: a worker's own directory is one level deeper."""
    return (basetemp.parent if "PYTEST_XDIST_WORKER" in os.environ else basetemp) / "debian"
