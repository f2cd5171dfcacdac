"""Sources: what a compile step or a layer starts from, pinned by the lock and identified by content.

    kind      the lock remembers            identified by
    git       the commit                    the commit
    archive   SHA-256, size                 the SHA-256
    sdist     project, file, SHA-256, size  the SHA-256 (any index may serve it)
    path      nothing                       the digest of the tree, through the stat cache

Patches are part of the identity, by their content.

Checkouts are made by `assembler.build.checkout`. Nothing here reads the network unless it says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assembler.build import git
from assembler.build.checkout import (
    FORMAT,
    WEB,
    Making,
    Means,
    archive_path,
    describe,
    made,
    tree_path,
    wants_submodules,
)
from assembler.build.download import Patience, open_session
from assembler.build.patches import apply_patches, patch_digests
from assembler.errors import LockError, ManifestError, RequestError
from assembler.events import Emit, ignore
from assembler.oci.digest import Digest, canonical_json
from assembler.oci.layout import Store
from assembler.tree.directory import StatCache, read_directory, tree_state
from assembler.tree.entry import Entry

if TYPE_CHECKING:
    from assembler.manifest.models import Source

__all__ = [
    "Checkout",
    "describe",
    "fetch_source",
    "lock_source",
    "request_of",
    "source_digest",
    "source_entries",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A source on disk, to be read only: the directory that is used, and the digest that stands in keys."""

    path: Path
    digest: Digest


def request_of(source: Source) -> dict[str, Any]:
    """What the lock's answer depends on. A path asks for nothing."""
    if source.git:
        return {"git": source.git, "ref": source.ref}
    if source.archive:
        return {"archive": source.archive, **({"sha256": source.sha256} if source.sha256 else {})}
    return {"sdist": source.sdist} if source.sdist else {}


def lock_source(
    source: Source,
    directory: Path,
    *,
    cache: Path,
    store: Store | None = None,
    emit: Emit = ignore,
    offline: bool = False,
    patience: Patience | None = None,
) -> dict[str, Any]:
    """Ask the world what the source means now; the JSON answer goes into the lock.

    `directory` is where relative paths start. An archive without a hash is downloaded (into `store`, by default
    the one in `cache`) to learn it. Raises ManifestError when there is no such ref, file or version, RequestError
    when that needs the network and `offline` forbids it, RegistryError when the network fails.
    """
    means = Means(
        store=store or Store(cache / "store").create(), cache=cache, emit=emit, offline=offline, patience=patience
    )
    if source.git:
        url = git.repository_url(source.git, directory)
        ref = source.ref or ""
        if not git.is_commit(ref) and not git.is_local(url):
            means.need_network(source)
        return {"commit": git.resolve(url, ref)}
    if source.sdist:
        return _lock_sdist(source, means)
    if not source.archive:
        return {}
    if source.sha256:
        return {"sha256": source.sha256.removeprefix("sha256:")}
    if not source.archive.startswith(WEB):
        path = archive_path(source, directory)
        with path.open("rb") as file:
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}
    means.need_network(source)
    try:
        got = means.download(source, source.archive, None, None)
    except LockError as error:
        raise ManifestError(error.fact, place=error.place) from error
    return {"sha256": got.digest.hex, "size": got.size}


def source_digest(
    source: Source, answer: Mapping[str, Any], directory: Path, cache: StatCache | None = None
) -> Digest:
    """The identity of what a checkout of this source contains, for keys. Reads no network.

    The URL has no part in it: the same commit or file from a mirror is the same source. Raises LockError when the
    answer is damaged, and for a path what `tree_digest` raises.
    """
    if source.path:
        return tree_state(tree_path(source, directory), ignore=source.ignore, cache=cache).digest
    content = _content(source, answer, directory)
    return Digest.of(canonical_json({**content, "subdirectory": source.subdirectory or ""}))


def source_entries(
    source: Source,
    answer: Mapping[str, Any],
    directory: Path,
    *,
    store: Store,
    cache: Path,
    emit: Emit = ignore,
    offline: bool = False,
) -> tuple[Entry, ...]:
    """The files of a source, for a layer. A path is read where it is, everything else from its checkout."""
    if source.path:
        return read_directory(tree_path(source, directory), ignore=source.ignore)
    checkout = fetch_source(source, answer, directory, store=store, cache=cache, emit=emit, offline=offline)
    return read_directory(checkout.path, ignore=["!.git"])


def fetch_source(
    source: Source,
    answer: Mapping[str, Any],
    directory: Path,
    *,
    store: Store,
    cache: Path,
    emit: Emit = ignore,
    offline: bool = False,
    patience: Patience | None = None,
) -> Checkout:
    """Have the source on disk, exactly as the lock's answer says.

    Raises LockError when what the lock names is gone, UntrustedInputError when it is something else than it was
    or does what it must not, RequestError when `offline` forbids what is needed, RegistryError when the network
    fails.
    """
    digest = source_digest(source, answer, directory, StatCache(cache / "stat"))
    content = {"path": str(digest)} if source.path else _content(source, answer, directory)
    identifier = hashlib.sha256(canonical_json(content)).hexdigest()[:32]
    tree = cache / "sources" / identifier
    with made(tree, {**content, "from": describe(source)}) as temporary:
        if temporary:
            means = Means(store=store, cache=cache, emit=emit, offline=offline, patience=patience)
            Making(source, directory, means).make(answer, temporary, temporary / "tree")
            apply_patches(source.patches, directory, temporary / "tree")
            if source.path and tree_state(temporary / "tree", ignore=["!.git"]).digest != digest:
                raise RequestError(
                    "the directory was changed while it was copied", place=describe(source), hint="run it again"
                )
    if source.path:  # the copy holds the used part only
        return Checkout(path=tree, digest=digest)
    path = tree / (source.subdirectory or ".")
    inside = path.resolve().is_relative_to(tree.resolve())
    if not inside or not path.is_dir():
        raise ManifestError(f"expected a directory `{source.subdirectory}` in the source", place=describe(source))
    return Checkout(path=path, digest=digest)


def _content(source: Source, answer: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """What decides about the files of a checkout, the used subdirectory apart."""
    field = "commit" if source.git else "sha256"
    value = answer.get(field)
    if not isinstance(value, str) or not (git.is_commit(value) if source.git else len(value) == 64):
        raise LockError(f"expected `{field}` in the lock's answer, found `{value}`", place=describe(source))
    content: dict[str, Any] = {"format": FORMAT, field: value, "ignore": list(source.ignore)}
    if source.git:
        content["submodules"] = wants_submodules(source)
    else:
        content["strip"] = source.strip
    if source.patches:
        content["patches"] = patch_digests(source.patches, directory)
    return content


def _lock_sdist(source: Source, means: Means) -> dict[str, Any]:
    from assembler.build.python_index import find_sdist

    means.need_network(source)
    requirement = source.sdist or ""
    with open_session() as session:
        file = find_sdist(session, requirement, patience=means.patience)
    answer: dict[str, Any] = {"project": requirement.partition("==")[0], "file": file.name}
    if file.digest is None:
        got = means.download(source, file.url, None, None)
        return {**answer, "sha256": got.digest.hex, "size": got.size}
    return {**answer, "sha256": file.digest.hex, **({"size": file.size} if file.size is not None else {})}
