"""What `gc` frees beside the store: containers and images of buildah, unpacked sources, old logs, memories.

Everything here is made again when it is needed. Nothing is touched while another run is alive, except logs and
memories, which no run reads back in the middle of its work.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from assembler.errors import NodeError
from assembler.oci.hold import exclusive
from assembler.oci.layout import Store


def clear(cache: Path, keep_seconds: float) -> int:
    """Free what is older than `keep_seconds`; the number of bytes that went."""
    before = time.time() - keep_seconds
    freed = sum(_old_files(cache / name, before) for name in ("logs", "memory", "locks", "stat"))
    store = Store(cache / "store")
    if not store.root.exists():
        return freed
    with exclusive(store) as alone:
        if alone:
            freed += _old_sources(cache / "sources", before)
            _containers(cache, everything=keep_seconds == 0)
    return freed


def _old_files(directory: Path, before: float) -> int:
    freed = 0
    for path in directory.glob("*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            if path.is_file() and status.st_mtime < before:
                path.unlink()
                freed += status.st_size
    return freed


def _old_sources(directory: Path, before: float) -> int:
    """Unpacked sources; the time of the record beside each is when it was last used."""
    freed = 0
    for record in directory.glob("*.json"):
        with contextlib.suppress(OSError):
            if record.stat().st_mtime >= before:
                continue
            tree = record.with_suffix("")
            freed += sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file())
            record.unlink()
            shutil.rmtree(tree, ignore_errors=True)
    return freed


def _containers(cache: Path, *, everything: bool) -> None:
    """Working containers that dead runs left; with `everything`, also every image that buildah keeps for us."""
    if not (cache / "containers").exists():
        return
    from assembler.build.container import Buildah
    from assembler.build.node import probe_storage
    from assembler.build.runs import RunDirectory

    with contextlib.suppress(NodeError), RunDirectory.create(cache) as run:
        buildah = Buildah(probe_storage(cache), run)
        if everything:
            for name in buildah.images():
                buildah.remove_image(name)
