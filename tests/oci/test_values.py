"""The values of the specifications: digests, references, platforms, descriptors."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assembler.errors import VerifyError
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest, DigestingWriter, VerifiedReader, canonical_json
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

component = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,2})[a-z0-9]{1,8}){0,2}", fullmatch=True)
host = st.one_of(
    st.from_regex(r"[a-z0-9]{1,10}(\.[a-z0-9]{1,5}){1,2}(:[0-9]{1,5})?", fullmatch=True),
    st.sampled_from(["localhost", "localhost:5000", "[::1]:5000", "127.0.0.1:5000"]),
)
digest = st.binary(max_size=8).map(Digest.of)
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
reference = st.builds(
    Reference,
    host,
    st.lists(component, min_size=1, max_size=4).map("/".join),
    st.none() | tag,
    st.none() | digest,
)


@given(reference)
def test_reference_survives_its_text(value: Reference) -> None:
    assert Reference.parse(str(value)) == value


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("ubuntu", "docker.io/library/ubuntu"),
        ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
        ("nvidia/cuda:12", "docker.io/nvidia/cuda:12"),
        ("localhost/x", "localhost/x"),
        ("localhost:5000/x:1", "localhost:5000/x:1"),
        ("ghcr.io/a/b@" + EMPTY, "ghcr.io/a/b@" + EMPTY),
    ],
)
def test_reference_customs(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full


@pytest.mark.parametrize(
    "text", ["", "A/b", "a//b", "a:", "a@sha256:1", "-a.b/c", "a/b:-x", "ghcr.io/" + "a" * 256]
)
def test_wrong_references(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no|expected"):
        Reference.parse(text)


def test_digest_of_nothing() -> None:
    assert Digest.of(b"") == EMPTY
    assert Digest.parse(EMPTY).short == "e3b0c44298fc"


@pytest.mark.parametrize(
    "value", [None, 3, "sha256:", EMPTY.upper(), EMPTY + "0", "sha512:" + "0" * 64, EMPTY + "\n"]
)
def test_wrong_digests(value: object) -> None:
    with pytest.raises(ValueError, match="expected a digest"):
        Digest.parse(value)


@given(st.lists(st.binary()))
def test_writer_knows_what_went_through(blocks: list[bytes]) -> None:
    sink = io.BytesIO()
    writer = DigestingWriter(sink)
    for block in blocks:
        writer.write(block)
    assert (writer.digest, writer.size) == (Digest.of(sink.getvalue()), len(sink.getvalue()))


@given(st.binary(max_size=100), st.integers(min_value=1, max_value=40))
def test_verified_reader_passes_the_right_bytes(data: bytes, amount: int) -> None:
    reader = VerifiedReader(io.BytesIO(data), Digest.of(data), len(data))
    assert b"".join(iter(lambda: reader.read(amount), b"")) == data


@pytest.mark.parametrize("found", [b"", b"dat", b"daty", b"data and more"])
@pytest.mark.parametrize("amount", [1, 4, -1])
def test_verified_reader_refuses_other_bytes(found: bytes, amount: int) -> None:
    reader = VerifiedReader(io.BytesIO(found), Digest.of(b"data"), 4)
    with pytest.raises(VerifyError):
        while reader.read(amount):
            pass


def test_canonical_json_does_not_depend_on_order() -> None:
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'.encode() == canonical_json({"a": "ü", "b": 1})


def test_platforms() -> None:
    arm = Platform.parse("linux/arm64")
    assert arm.matches(Platform("linux", "arm64", "v8"))
    assert not arm.matches(Platform("linux", "amd64"))
    assert not Platform("linux", "arm", "v6").matches(Platform("linux", "arm", "v7"))
    assert Platform.from_json(Platform.parse("linux/arm/v7").to_json()) == Platform("linux", "arm", "v7")
    assert str(Platform.parse("linux/arm64/v8")) == "linux/arm64/v8"


@pytest.mark.parametrize("text", ["", "linux", "linux/", "a/b/c/d", "Linux/amd64"])
def test_wrong_platforms(text: str) -> None:
    with pytest.raises(ValueError, match="expected os/architecture"):
        Platform.parse(text)


def test_descriptor_keeps_what_it_does_not_know() -> None:
    value = {
        "mediaType": media_types.LAYER,
        "digest": EMPTY,
        "size": 0,
        "annotations": {"a": "b"},
        "platform": {"architecture": "amd64", "os": "linux"},
        "urls": ["https://example.org"],
    }
    assert Descriptor.from_json(value).to_json() == value
    assert Descriptor.from_json(value).annotated({"c": "d"}).annotations == {"a": "b", "c": "d"}


@pytest.mark.parametrize(
    "change", [{"size": -1}, {"size": True}, {"size": "1"}, {"digest": "x"}, {"mediaType": None}]
)
def test_wrong_descriptors(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Descriptor.from_json({"mediaType": media_types.LAYER, "digest": EMPTY, "size": 0, **change})
