"""Checkouts: a source's files in the cache, made once, whole, by one process.

CACHE/sources/ID/ appears by a rename and counts only with its record ID.json, whose modification time is when the
source was last used; ID.lock keeps two processes from making it twice. A path is copied there too before it is
compiled, so that what was compiled is what the key says, whatever the user's editor does meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from assembler.build import git
from assembler.build.download import Downloaded, Patience, download, open_session, without_credentials
from assembler.errors import LockError, ManifestError, RequestError, UntrustedInputError
from assembler.events import Emit, StepFinished, StepProgress, StepStarted
from assembler.oci.digest import Digest, canonical_json
from assembler.oci.layout import CHUNK, Store, write_atomically
from assembler.tree.archive import SOURCE_TIME, Strip, unpack
from assembler.tree.directory import read_directory

if TYPE_CHECKING:
    from assembler.manifest.models import Source

FORMAT: Final = "source-1"
WEB: Final = ("http://", "https://")
_SUBMODULE_DEPTH: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """With what sources are fetched: where bytes go, whom to tell, and whether the network may be used."""

    store: Store
    cache: Path
    emit: Emit
    offline: bool
    patience: Patience | None = None

    def need_network(self, source: Source) -> None:
        """RequestError when the network is forbidden."""
        if self.offline:
            raise RequestError(
                f"`{describe(source)}` is needed, and `--offline` forbids to fetch it",
                hint="run once without `--offline`, or give it with `--source NAME=PATH`",
            )

    def download(self, source: Source, url: str, digest: Digest | None, size: int | None) -> Downloaded:
        """Fetch into the store, reported as a step of its own. Errors as of `assembler.build.download`."""
        name = describe(source)
        step = f"fetch:{name}"
        started = time.monotonic()
        self.emit(StepStarted(step=step, verb="fetch", name=name))

        def progress(done: int, total: int | None) -> None:
            self.emit(StepProgress(step=step, done_bytes=done, total_bytes=total))

        with open_session() as session:
            got = download(
                session, url, self.store, digest=digest, size=size, progress=progress, patience=self.patience
            )
        self.emit(
            StepFinished(
                step=step,
                verb="fetch",
                name=name,
                outcome="pulled",
                seconds=time.monotonic() - started,
                detail=f"{got.size / (1 << 20):.1f} MiB",
            )
        )
        return got


def describe(source: Source) -> str:
    """What the source is, for people: a URL without credentials, a requirement or a path."""
    if source.git:
        return f"{without_credentials(source.git)} {source.ref}"
    if source.archive:
        return without_credentials(source.archive) if source.archive.startswith(WEB) else source.archive
    return source.sdist or str(source.path)


def wants_submodules(source: Source) -> bool:
    return source.submodules


def tree_path(source: Source, directory: Path) -> Path:
    """The directory of a path source. ManifestError when it is none."""
    path = directory / Path(source.path or ".").expanduser() / (source.subdirectory or ".")
    if path.is_file():
        raise ManifestError(
            "expected a directory, found a file", place=str(path), hint="use `archive` for archives"
        )
    if not path.is_dir():
        raise ManifestError("expected a directory, found none", place=str(path))
    return path


def archive_path(source: Source, directory: Path) -> Path:
    text = (source.archive or "").removeprefix("file://")
    if "://" in text:
        scheme = urlsplit(text).scheme
        raise ManifestError(f"expected an http or https URL, or a path, got `{scheme}`", place=describe(source))
    path = directory / Path(text).expanduser()
    if not path.is_file():
        raise ManifestError("expected an archive, found no such file", place=str(path))
    return path


@contextlib.contextmanager
def made(tree: Path, record: Mapping[str, Any]) -> Iterator[Path | None]:
    """A directory in which to make `tree` (as `tree` in it), or None when it is there already."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    marker = tree.with_suffix(".json")
    with tree.with_suffix(".lock").open("a") as lock:
        if not _complete(tree, marker):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _complete(tree, marker):
            with contextlib.suppress(OSError):
                os.utime(marker)
            yield None
            return
        for stale in [tree, *tree.parent.glob(f".{tree.name}-*")]:  # of a process that died; the lock is ours
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=tree.parent, prefix=f".{tree.name}-"))
        try:
            yield temporary
            (temporary / "tree").rename(tree)
            write_atomically(marker, canonical_json({"format": FORMAT, **record}))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _complete(tree: Path, marker: Path) -> bool:
    return marker.exists() and tree.is_dir()


@dataclass(frozen=True, slots=True)
class Making:
    """The making of one checkout."""

    source: Source
    directory: Path
    means: Means

    def make(self, answer: Mapping[str, Any], temporary: Path, tree: Path) -> None:
        """Put the files of the source into the new directory `tree`."""
        if self.source.git:
            url = git.repository_url(self.source.git, self.directory)
            self._export(url, str(answer["commit"]), self.source.ref or "", temporary, tree, depth=0)
        elif self.source.path:
            _copy(tree_path(self.source, self.directory), tree, self.source.ignore)
        else:
            strip: Strip = "single" if self.source.strip is None else self.source.strip
            unpack(self._archive(answer), tree, strip=strip, ignore=self.source.ignore, name=describe(self.source))

    def _archive(self, answer: Mapping[str, Any]) -> Path:
        """The archive with the locked hash: a local file, or a blob of the store."""
        digest = Digest.from_hex(answer["sha256"])
        if self.means.store.has(digest):
            return self.means.store.blob_path(digest)
        if self.source.archive and not self.source.archive.startswith(WEB):
            path = archive_path(self.source, self.directory)
            with path.open("rb") as file:
                found = Digest.from_hex(hashlib.file_digest(file, "sha256").hexdigest())
            if found != digest:
                raise UntrustedInputError(
                    f"expected `{digest}`, got `{found}`",
                    place=str(path),
                    hint="if you changed the archive, update its hash or the lock",
                )
            return path
        self.means.need_network(self.source)
        url = self.source.archive or self._sdist_url(answer)
        size = answer.get("size")
        self.means.download(self.source, url, digest, size)
        return self.means.store.blob_path(digest)

    def _sdist_url(self, answer: Mapping[str, Any]) -> str:
        from assembler.build.python_index import find_sdist

        try:
            with open_session() as session:
                file = find_sdist(
                    session, self.source.sdist or "", file_name=str(answer["file"]), patience=self.means.patience
                )
        except ManifestError as error:
            raise LockError(error.fact, place=error.place, hint="does this index mirror the project?") from error
        return file.url

    def _export(self, url: str, commit: str, ref: str, temporary: Path, tree: Path, *, depth: int) -> None:
        """Write the files of a commit, and of its submodules when they are wanted, as they are in git."""
        if depth > _SUBMODULE_DEPTH:
            raise UntrustedInputError("expected submodules at most 8 deep", place=without_credentials(url))
        name = f"{without_credentials(url)} {commit[:12]}"
        archive = temporary / f"{depth}.tar"
        with git.Repository(self.means.cache, url).opened() as repository:
            if not repository.has(commit):
                if not git.is_local(url):
                    self.means.need_network(self.source)
                repository.fetch(commit, ref)
            repository.export(commit, archive)
            wanted = repository.submodules(commit) if wants_submodules(self.source) else ()
        unpack(archive, tree, ignore=self.source.ignore if depth == 0 else (), name=name)
        archive.unlink()
        for submodule in wanted:
            if (tree / submodule.path).is_dir():  # unless it is ignored
                self._export(
                    submodule.url, submodule.commit, "", temporary, tree / submodule.path, depth=depth + 1
                )


def _copy(root: Path, tree: Path, ignored: tuple[str, ...]) -> None:
    """Copy what is not ignored, with the modes and times of every checkout; hard links stay."""
    tree.mkdir()
    directories = [tree]
    for entry in read_directory(root, ignore=ignored):
        target = tree / entry.path
        if entry.kind == "directory":
            target.mkdir()
            directories.append(target)
            continue
        if entry.kind == "hardlink":
            target.hardlink_to(tree / entry.link)
            continue
        if entry.kind == "symlink":
            target.symlink_to(entry.link)
        elif isinstance(entry.content, Path):
            descriptor = os.open(entry.content, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, CHUNK)
            target.chmod(entry.mode)
        os.utime(target, (SOURCE_TIME, SOURCE_TIME), follow_symlinks=False)
    for path in directories:
        path.chmod(0o755)
        os.utime(path, (SOURCE_TIME, SOURCE_TIME))
