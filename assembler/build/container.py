"""The door to buildah: images in its storage, working containers, commands in them.

Every container belongs to a run and goes when its block is left, however that happens. Commands run under chroot
isolation, which needs no rights beyond those that storage needs anyway. Values of environment variables are on
buildah's command line for everybody on the host to see: secrets are mounted, never passed so.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from assembler.build import launcher
from assembler.build.answers import answer
from assembler.build.mounting import CERTIFICATE_VARIABLES, CERTIFICATES, Mount, Places, host_certificates
from assembler.build.namespace import entrance
from assembler.build.node import Storage, surroundings
from assembler.build.noise import Listener, quiet
from assembler.build.outcome import failure, judged
from assembler.build.owners import OwnersOf, ReadOwner, Recorded, owner_on_disk
from assembler.build.runs import RunDirectory, end_inhabitants, is_over, run_of_container, started, sweep
from assembler.errors import NodeError
from assembler.events import Emit, Note, ignore
from assembler.oci.descriptor import REF_NAME
from assembler.oci.digest import Digest, canonical_json
from assembler.oci.image import ImageIndex
from assembler.oci.layout import Store
from assembler.oci.media_types import MANIFEST
from assembler.process import TAIL_LINES, Completed, Group, run, which

__all__ = ["Buildah", "Container", "Mount", "Network", "toolchain_image"]

Network = Literal["none", "host"]

HOSTNAME: Final = "assemble"
ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "SOURCE_DATE_EPOCH": "0",
    "DEBIAN_FRONTEND": "noninteractive",
}
"""What every command finds, beside the image's own environment (whose PATH stays) and what its step says."""

_LIMITS: Final = (("nofile", resource.RLIMIT_NOFILE, 1 << 20), ("nproc", resource.RLIMIT_NPROC, 1 << 15))
"""How many files and processes at most, by name. 32,768 processes are what older buildahs set themselves."""
_KEPT: Final = "kept-"


class Buildah:
    """buildah on one storage, for one run. Making it takes away what dead runs left in that storage.

    NodeError from any method means that buildah itself failed, not what it ran.
    """

    def __init__(self, storage: Storage, run_directory: RunDirectory, emit: Emit = ignore) -> None:
        self.storage = storage
        self.run_directory = run_directory
        self._emit = emit
        self.group = Group()
        """The commands that run in containers: they can be ended from any thread."""
        self._temporary = run_directory.scratch("buildah")
        self.sweep()

    @property
    def squashes(self) -> bool:
        """Does the storage give all files to the one id there is?"""
        return self.storage.identity == "one"

    def command(self, *arguments: str) -> tuple[str, ...]:
        """The argument list of a buildah command on this storage."""
        return (which("buildah") or "buildah", *self.storage.arguments, *arguments)

    def call(self, *arguments: str, check: bool = True, cwd: Path | None = None) -> Completed:
        """Run a buildah command that starts nothing in a container; NodeError when it fails, if `check`."""
        environment = {**surroundings(), "TMPDIR": str(self._temporary)}
        completed = run(self.command(*arguments), env=environment, cwd=cwd, check=False)
        if check and completed.returncode:
            raise failure(arguments[0], completed)
        return completed

    # images

    def has_image(self, name: str) -> bool:
        """Is there an image of this name?"""
        return (
            self.call("inspect", "--type", "image", "--format", "{{.FromImageID}}", name, check=False).returncode
            == 0
        )

    def images(self) -> tuple[str, ...]:
        """The names of all images, sorted."""
        listed = json.loads(self.call("images", "--json").stdout or "[]") or []
        return tuple(sorted({name for image in listed for name in image.get("names") or ()}))

    def last_used(self, name: str) -> float:
        """When an image was last used, in seconds since 1970; 0 when nobody has written that down."""
        return last_used(self.storage.root.parent, name)

    def remove_image(self, name: str) -> bool:
        """Take a name away, and the image with its last one; False when there was none."""
        removed = self.call("rmi", name, check=False).returncode == 0
        if removed:
            _marker(self.storage.root.parent, name).unlink(missing_ok=True)
        return removed

    def import_image(self, store: Store, manifest: Digest, name: str) -> None:
        """Give the image with this manifest, whose blobs are all in the store, a name in buildah's storage.

        buildah reads an OCI layout that is nothing but an index of one image and a link to the store's blobs.
        """
        layout = self.run_directory.scratch("import")
        try:
            size = store.blob_path(manifest).stat().st_size
            descriptor = {
                "mediaType": MANIFEST,
                "digest": manifest,
                "size": size,
                # Newer versions of buildah name the image by this; older ones by the layout's path.
                "annotations": {REF_NAME: name},
            }
            index = {"schemaVersion": 2, "manifests": [descriptor]}
            (layout / "blobs").symlink_to((store.root / "blobs").resolve())
            (layout / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
            (layout / "index.json").write_bytes(ImageIndex.from_bytes(canonical_json(index)).to_bytes())
            self._pull(f"oci:{layout.name}:{name}", name, cwd=layout.parent)
        finally:
            shutil.rmtree(layout, ignore_errors=True)

    def pull(self, reference: str, name: str) -> None:
        """Pull `REGISTRY/REPOSITORY@DIGEST` and name it. Logins and mirrors are those of containers' own."""
        self._pull(f"docker://{reference}", name)

    def _pull(self, source: str, name: str, cwd: Path | None = None) -> None:
        lines = self.call("pull", "--quiet", source, cwd=cwd).stdout.split()
        if not lines:
            raise NodeError(f"`buildah pull {source}` named no image")
        self.call("tag", lines[-1], name)
        # The name that older versions of buildah made up from a layout's path.
        if source.startswith("oci:"):
            self.call("rmi", f"localhost/{source.split(':')[1]}", check=False)

    def commit(self, container: Container, name: str) -> None:
        """Make an image of a container's file system."""
        self.call("commit", "--quiet", "--format", "oci", "--disable-compression", container.name, name)

    # containers

    @contextlib.contextmanager
    def container(
        self, image: str, label: str, *, keep: bool = False, owners: OwnersOf | None = None
    ) -> Iterator[Container]:
        """A working container of an image; removed when the block is left, with all that still runs in it.

        With `keep` it stays when the block fails, under a name that no sweep touches, which is told. `owners` are
        asked for where the storage gives all files to one id, and whose files are is to be known all the same.
        """
        name = self.run_directory.container_name(label)
        temporary = self.run_directory.scratch(label)
        try:
            options = ("--pull-never", "--security-opt", "label=disable", *_limits(), "--name", name)
            self.call("from", *options, image)
            _mark_used(self.storage.root.parent, image)
            root = Path(self.call("mount", name).stdout.strip())
            recorded = Recorded.begin(root, owners(), temporary) if owners and self.squashes else None
            yield Container(
                buildah=self, name=name, image=image, root=root, temporary=temporary, recorded=recorded
            )
        except Exception:
            if keep:
                self._keep(name)
            raise
        finally:
            end_inhabitants(temporary)
            self._remove(name)
            shutil.rmtree(temporary, ignore_errors=True)

    def containers(self) -> tuple[str, ...]:
        """The names of all working containers, those of other runs too."""
        listed = json.loads(self.call("containers", "--json").stdout or "[]") or []
        return tuple(sorted(one["containername"] for one in listed))

    def remove_container(self, name: str) -> bool:
        """Take a working container away; False when that cannot be."""
        return self.call("rm", name, check=False).returncode == 0

    def _keep(self, name: str) -> None:
        kept = kept_name(name)
        if self.call("rename", name, kept, check=False).returncode == 0:
            command = self.command("run", "--isolation", "chroot", "--terminal", kept, "sh")
            if self.squashes:
                command = (sys.executable, "-I", str(Path(launcher.__file__)), "host", "faked", *command)
            shell = " ".join([*filter(None, [entrance()]), *command])
            self._emit(Note(text=f"the container is kept; `{shell}` goes into it"))

    def _remove(self, name: str) -> None:
        if self.call("rm", name, check=False).returncode and name in self.containers():
            self._emit(Note(text=f"the container `{name}` could not be removed", level="warning"))

    def sweep(self) -> None:
        """Take away containers and whatever else runs of this host that are dead left."""
        cache = self.run_directory.cache
        names = self.containers()

        def remove(identifier: str) -> None:
            for name in names:
                if run_of_container(name) == identifier:
                    self.call("rm", name, check=False)

        swept = sweep(cache, remove)
        # A run's directory may be gone, and its container not.
        for identifier in {run_of_container(name) for name in names} - {None, *swept}:
            if identifier and is_over(cache, identifier):
                remove(identifier)


def last_used(graph: Path, name: str) -> float:
    """When a container of an image was last made in the storage below `graph` (seconds since 1970); 0: unknown."""
    try:
        return _marker(graph, name).stat().st_mtime
    except OSError:
        return 0.0


def _mark_used(graph: Path, name: str) -> None:
    marker = _marker(graph, name)
    with contextlib.suppress(OSError):
        marker.parent.mkdir(exist_ok=True)
        marker.touch()


def _marker(graph: Path, name: str) -> Path:
    return graph / "used" / hashlib.sha256(name.encode()).hexdigest()[:32]


def kept_name(name: str) -> str:
    """The name under which a container outlives its run; no sweep touches it."""
    return _KEPT + name


def kept_since(name: str) -> float | None:
    """When the run began that kept the container of this name (seconds since 1970); None for any other."""
    run_id = run_of_container(name.removeprefix(_KEPT)) if name.startswith(_KEPT) else None
    return started(run_id) if run_id else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A working container. `root` is where its file system is mounted on the host, for as long as it lives."""

    buildah: Buildah
    name: str
    image: str
    root: Path
    temporary: Path
    recorded: Recorded | None = None

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        workdir: str = "/",
        network: Network = "none",
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        check: bool = True,
    ) -> Completed:
        """Run a command as root of the container, to its end; what it left in the background is ended then.

        With `log` or `on_line`, stdout and stderr are merged, else captured. With `network="host"` the host's
        certificates are there, and its network; with `none` there is only a loopback of the command's own.

        `returncode` is the command's, 128 + n when a signal ended it. Raises StepError with its last lines when
        `check` is set and it failed, or when the container has no such program; NodeError when buildah failed, or
        when something became another user, where that cannot be.
        """
        outer = self.command(argv, env=env, mounts=mounts, workdir=workdir, network=network)
        places = Places(self.root, [*(mount.target for mount in mounts), CERTIFICATES])
        listener = Listener(on_line) if log or on_line else None
        try:
            completed = run(
                outer,
                env={**surroundings(), "TMPDIR": str(self.temporary)},
                log=log,
                on_line=listener,
                check=False,
                group=self.buildah.group,
            )
        finally:
            places.remove()
        if self.recorded:
            self.recorded.check()
        tail = listener.tail if listener else quiet(completed.stdout + completed.stderr)
        ending = "\n".join(listener.raw if listener else completed.stderr.splitlines()[-TAIL_LINES:])
        return judged(argv, completed, ending, tail, check=check)

    @property
    def owner_reader(self) -> ReadOwner:
        """Says whose a file of this container is, also where its file system does not know."""
        return self.recorded.reader if self.recorded else owner_on_disk

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        """The root of the container's file system on the host, valid inside the block."""
        yield self.root

    def upper_directory(self, mounted: Path) -> Path | None:
        """The directory that holds only what differs from the image, where the driver has one."""
        upper = mounted.parent / "diff"
        return upper if self.buildah.storage.driver == "overlay" and upper.is_dir() else None

    def command(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        workdir: str = "/",
        network: Network = "none",
    ) -> tuple[str, ...]:
        """The argument list, on the host, that `run` uses."""
        certificates = host_certificates() if network == "host" else None
        if certificates:
            mounts = (*mounts, Mount(source=certificates, target=CERTIFICATES))
            env = {**dict.fromkeys(CERTIFICATE_VARIABLES, CERTIFICATES), **(env or {})}
        options = ["--isolation", "chroot", "--user", "0:0", "--hostname", HOSTNAME, "--workingdir", workdir]
        for mount in mounts:
            options += ["--volume", mount.option]
        for key, value in sorted({**ENVIRONMENT, **(env or {})}.items()):
            options += ["--env", f"{key}={value}"]
        command = self.buildah.command("run", *options, self.name, "--", *argv)
        owners = self.recorded.mode if self.recorded else "faked" if self.buildah.squashes else "own"
        return (sys.executable, "-I", str(Path(launcher.__file__)), network, owners, *command)

    def programs(self, names: Sequence[str]) -> frozenset[str]:
        """Which of these programs are on the container's PATH."""
        return frozenset(
            self.ask('for name; do if command -v "$name" >/dev/null; then echo "$name"; fi; done', *names)
        )

    def ask(self, script: str, *arguments: str) -> list[str]:
        """The lines that a shell script prints; it must change nothing, since it may run several times.

        StepError when it fails.
        """
        command = ["sh", "-c", script, "sh", *arguments]
        return answer(lambda argv: self.run(argv, check=False), command).stdout.splitlines()


def _limits() -> Iterator[str]:
    """Options for limits within our own. Otherwise newer buildahs ask for more, which not every root may have."""
    for name, number, most in _LIMITS:
        hard = resource.getrlimit(number)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(hard, most)
        yield f"--ulimit={name}={limit}:{limit}"


def toolchain_image(
    buildah: Buildah, base: str | Callable[[], str], key: str, install: Callable[[Container], None]
) -> tuple[str, bool]:
    """The name of the image of this key, and whether it was made now: from `base`, by `install`.

    `base` may be a function, so that a base is brought here only if it is needed. Runs that want the same
    image wait for the first.
    """
    name = f"localhost/assemble/toolchain:{key[:40]}"
    if buildah.has_image(name):
        return name, False
    locks = buildah.storage.root.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / key[:40]).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if buildah.has_image(name):
            return name, False
        with buildah.container(base if isinstance(base, str) else base(), "toolchain") as container:
            install(container)
            buildah.commit(container, name)
    return name, True
