"""The memory of transfers is flat: ten times the bytes, the same memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from support.registry import RunningRegistry, running_registry

from assembler.oci.digest import Digest

pytestmark = pytest.mark.registry

MEBIBYTE = 1 << 20
_CHILD = """
import sys
from pathlib import Path
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.settings import Settings
client, target, path = Client(Settings()), Reference.parse(sys.argv[1]), Path(sys.argv[2])
size, digest = path.stat().st_size, Digest.parse(sys.argv[3])
blob = Descriptor(media_type="application/octet-stream", digest=digest, size=size)
if sys.argv[4] == "there":
    client.upload(target, blob, lambda: path.open("rb"))
else:
    with client.open_blob(target, blob) as stream:
        while stream.read(1 << 20):
            pass
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


def _peak_bytes(registry: RunningRegistry, path: Path, digest: str, way: str) -> int:
    """The peak memory of a process that moves the file `there` or `back`."""
    arguments = [f"{registry.host}/t/memory", str(path), digest, way]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True, check=True, timeout=300
    )
    return int(done.stdout) * 1024


def test_memory_does_not_grow_with_a_blob(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    peaks: dict[tuple[int, str], int] = {}
    with running_registry(tmp_path / "registry") as registry:
        for size in (30 * MEBIBYTE, 300 * MEBIBYTE):
            with path.open("wb") as file:
                file.truncate(size)
            with path.open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            for way in ("there", "back"):
                peaks[size, way] = _peak_bytes(registry, path, digest, way)
            registry.blob_path(Digest.parse(digest)).unlink()
    for way in ("there", "back"):
        small, large = peaks[30 * MEBIBYTE, way], peaks[300 * MEBIBYTE, way]
        assert large < small + 8 * MEBIBYTE, peaks
