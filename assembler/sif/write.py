"""The whole way: an image's layers become a SIF for Apptainer, or a squashfs for enroot, as an ordinary user.

Layers are read twice, once for their headers and once for the files that survive, and nothing of them is put on
disk. The file grows beside its target under another name and gets its own when it is whole; no other space is
taken. The file system lies where it belongs from the beginning (mksquashfs) or is moved up in place (tar2sqfs).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from assembler.errors import NodeError, RequestError
from assembler.oci.digest import canonical_json
from assembler.sif import apptainer, archive, enroot, squashfs
from assembler.sif.format import ARCHITECTURES, DataObject, front, partition_offset
from assembler.sif.rootfs import ImageInput, RootFilesystem, add, fix_permissions, give_to_root, merged
from assembler.sif.settings import SifSettings
from assembler.units import size_text

Kind: TypeAlias = Literal["sif", "sqsh"]

_SMALLEST: Final = 40 << 10
_SURELY: Final = 0.7
"""The part of the estimated size below which no disk can do. Estimates are of other compressors' work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An image whose layers were read once. `estimate` is about how large the file becomes, in bytes."""

    kind: Kind
    image: ImageInput
    rootfs: RootFilesystem
    settings: SifSettings
    tool: squashfs.Tool

    @property
    def estimate(self) -> int:
        """About as much as the layers take, as far as their files survive, and the smallest file that there is."""
        return self.rootfs.packed_bytes + _SMALLEST


def check(kind: Kind, image: ImageInput) -> squashfs.Tool:
    """What can be known before any layer is read: the program to use.

    NodeError without one, RequestError for an architecture that a SIF cannot name.
    """
    architecture = image.config.platform.architecture
    if kind == "sif" and architecture not in ARCHITECTURES:
        raise RequestError(f"a SIF cannot be of the architecture `{architecture}`")
    return squashfs.find_tool()


def prepare(kind: Kind, image: ImageInput, settings: SifSettings) -> Prepared:
    """Read the layers' headers and decide what is in the file system. Errors as `check` and `merged`."""
    tool = check(kind, image)
    rootfs = merged(image.layers)
    if kind == "sqsh":
        # enroot's images have one owner, who may read and enter everything.
        give_to_root(rootfs.tree)
        fix_permissions(rootfs.tree)
        add(rootfs, enroot.additions(image.config), settings.epoch)
    else:
        add(rootfs, apptainer.additions(image), settings.epoch)
        if settings.fix_permissions:
            fix_permissions(rootfs.tree)
    return Prepared(kind=kind, image=image, rootfs=rootfs, settings=settings, tool=tool)


def check_space(prepared: Prepared, target: Path) -> int:
    """The bytes that are free where the file is to be; NodeError when they surely are not enough."""
    free = shutil.disk_usage(target.absolute().parent).free
    if free < prepared.estimate * _SURELY:
        fact = f"expected about {size_text(prepared.estimate)} of free disk, there are {size_text(free)}"
        raise NodeError(fact, place=str(target), hint="write it to another file system")
    return free


def write(prepared: Prepared, target: Path, progress: Callable[[int], None] | None = None) -> int:
    """Write the file, and replace `target` when it is whole; its size in bytes.

    `progress` is told the bytes of files so far, of `rootfs.content_bytes`. StepError when the program that makes
    the squashfs fails, UntrustedInputError when a layer is not what it was.
    """
    objects = apptainer.data_objects(prepared.image) if prepared.kind == "sif" else []
    offset = partition_offset(objects) if prepared.kind == "sif" else 0
    with _beside(target, 0o755 if prepared.kind == "sif" else 0o644) as temporary:
        size = squashfs.write(
            prepared.tool,
            archive.tar(prepared.rootfs, root=prepared.tool.name == "tar2sqfs", progress=progress),
            temporary,
            offset=offset,
            expected=archive.expected(prepared.rootfs),
            root=prepared.rootfs.tree.root,
            settings=prepared.settings,
        )
        if prepared.kind == "sif":
            _put_front(prepared, temporary, objects, size)
    return offset + size


def _put_front(prepared: Prepared, path: Path, objects: list[DataObject], size: int) -> None:
    data = front(
        objects,
        size,
        architecture=prepared.image.config.platform.architecture,
        identity=_identity(prepared),
        epoch=prepared.settings.epoch,
    )
    with path.open("r+b") as file:
        file.write(data)


def _identity(prepared: Prepared) -> bytes:
    """The UUID: what the file is made of, in the form that RFC 9562 keeps for such (version 8)."""
    said = {"image": str(prepared.image.identity), "settings": asdict(prepared.settings)}
    found = bytearray(hashlib.sha256(b"assemble-sif-1" + canonical_json(said)).digest()[:16])
    found[6] = found[6] & 0x0F | 0x80
    found[8] = found[8] & 0x3F | 0x80
    return bytes(found)


@contextlib.contextmanager
def _beside(target: Path, mode: int) -> Iterator[Path]:
    """A file in the directory of `target` that takes its place when the block ends well."""
    descriptor, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}-")
    os.close(descriptor)
    path = Path(name)
    try:
        yield path
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.chmod(mode)
        path.replace(target)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
