"""The format of the shared cache: what is written can be read, and nothing else can."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from assembler.errors import UntrustedInputError
from assembler.oci import media_types
from assembler.oci.descriptor import KEY, Descriptor
from assembler.oci.digest import Digest
from assembler.oci.reference import Reference
from assembler.registry.results import RECORD, kind_of, read_result, result_manifest

WHERE = Reference.parse("registry.example.com/team/cache")
STEP = "ab" * 32
LAYER = Descriptor(media_type=media_types.LAYER_ZSTD, digest=Digest.of(b"layer"), size=5)
BUNDLE = Descriptor(media_type=media_types.LAYER, digest=Digest.of(b"bundle"), size=6)
IMAGE = Descriptor(media_type=media_types.MANIFEST, digest=Digest.of(b"image"), size=5)
RECORDS: dict[str, tuple[dict[str, Any], list[Descriptor]]] = {
    "layer": (
        {
            "descriptor": LAYER.to_json(),
            "diff_id": str(Digest.of(b"tar")),
            "uncompressed_bytes": 9,
            "files": 1,
            "inputs": ["private"],
        },
        [LAYER],
    ),
    "compile": ({"bundle": str(BUNDLE.digest), "bytes": 6, "files": 2}, [BUNDLE]),
    "image": ({"manifest": str(IMAGE.digest), "manifest_descriptor": IMAGE.to_json(), "steps": []}, [IMAGE]),
}


def written(kind: str) -> bytes:
    record, blobs = RECORDS[kind]
    return result_manifest(STEP, record, blobs, "2026-01-01T00:00:00Z")


@pytest.mark.parametrize("kind", RECORDS)
def test_what_is_written_is_read(kind: str) -> None:
    data = written(kind)
    result = read_result(data, STEP, WHERE)
    record, blobs = RECORDS[kind]
    assert (result.kind, result.blobs, result.created) == (kind, tuple(blobs), "2026-01-01T00:00:00Z")
    assert result.origin == WHERE.at(Digest.of(data))
    assert dict(result.record).items() <= record.items()
    assert b"private" not in data, "what a step was made of is the business of the store that made it"
    assert data == written(kind)


def test_records_that_mean_nothing_elsewhere_are_no_results() -> None:
    assert kind_of({"image": "localhost/assemble/toolchain:1"}) is None
    with pytest.raises(ValueError, match="no result"):
        result_manifest(STEP, {"image": "x"}, [], "")


def recorded(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """A change of the record, which lies in an annotation."""

    def apply(document: dict[str, Any]) -> None:
        record = json.loads(document["annotations"][RECORD])
        change(record)
        document["annotations"][RECORD] = json.dumps(record)

    return apply


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("layer", lambda document: document.pop("artifactType")),
        ("layer", lambda document: document["annotations"].pop(RECORD)),
        ("layer", lambda document: document["annotations"].update({KEY: "cd" * 32})),
        ("layer", lambda document: document["annotations"].update({RECORD: "[]"})),
        ("layer", lambda document: document["annotations"].update({RECORD: "{"})),
        ("layer", lambda document: document["layers"].clear()),
        ("layer", lambda document: document["layers"][0].update(size=4)),
        ("layer", recorded(lambda record: record.update(diff_id="sha256:short"))),
        ("layer", recorded(lambda record: record.update(files=-1))),
        ("layer", recorded(lambda record: record.update(files=True))),
        ("layer", recorded(lambda record: record.update(descriptor=[]))),
        ("layer", recorded(lambda record: record["descriptor"].update(mediaType="text/html"))),
        ("layer", recorded(lambda record: record["descriptor"].update(digest=str(Digest.of(b"other"))))),
        ("compile", recorded(lambda record: record.update(bundle=str(Digest.of(b"other"))))),
        ("compile", recorded(lambda record: record.update(bundle=7))),
        ("compile", recorded(lambda record: record.update(bytes=7))),
        ("image", recorded(lambda record: record.update(manifest=str(Digest.of(b"other"))))),
        ("image", lambda document: document.update(schemaVersion=1)),
        ("image", lambda document: document.update(annotations=[])),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(written(kind))
    change(document)
    with pytest.raises(UntrustedInputError, match="expected the result of the step abab"):
        read_result(json.dumps(document).encode(), STEP, WHERE)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'{"schemaVersion": 2}', b"\xff\xfe"])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedInputError):
        read_result(data, STEP, WHERE)
