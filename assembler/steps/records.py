"""Records of the store: what a step's key gave, as JSON, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import BlobLayer
from assembler.oci.layout import Store
from assembler.pack.tarball import PackedLayer


def layer_record(packed: PackedLayer, inputs: Sequence[str] = ()) -> dict[str, Any]:
    """What is kept of a packed layer, which was made of `inputs`."""
    return {
        **input_fields(inputs),
        "descriptor": packed.layer.descriptor.to_json(),
        "diff_id": str(packed.layer.diff_id),
        "uncompressed_bytes": packed.uncompressed_bytes,
        "files": packed.files,
    }


def input_fields(digests: Sequence[str]) -> dict[str, Any]:
    """What a record says about the blobs that a step was made of: hexadecimal SHA-256 digests.

    These are what somebody else may have deleted when it is made again: packages, archives. So `assembler.gc`
    keeps them for as long as the image is kept.
    """
    return {"inputs": sorted({str(Digest.from_hex(digest)) for digest in digests})} if digests else {}


def layer_from_record(store: Store, key: str, created_by: str = "") -> BlobLayer | None:
    """The layer of this key, if its blob is still in the store; its line of history is the manifest's."""
    record = store.record(key)
    if record is None or "diff_id" not in record:
        return None
    descriptor = Descriptor.from_json(record["descriptor"])
    if not store.has(descriptor.digest):
        return None
    return BlobLayer(descriptor=descriptor, diff_id=Digest.parse(record["diff_id"]), created_by=created_by)


def known(store: Store, key: str) -> bool:
    """Is everything that this key gave still in the store? Of an image, the layers that are ours."""
    record = store.record(key)
    if record is None or not all(store.has(Digest.parse(digest)) for digest in record.get("layers", ())):
        return False
    named = record.get("bundle") or record.get("manifest") or (record.get("descriptor") or {}).get("digest")
    return named is None or store.has(Digest.parse(named))
