"""Owners of an image's files, by the headers of its layers."""

from __future__ import annotations

import io
import tarfile
from types import SimpleNamespace
from typing import Any

from support.images import image_of, layer_of

from assembler.oci.image import append
from assembler.oci.layout import Store
from assembler.steps.owners import owners_of


def tar(*members: tuple[str, bytes, int, int, int]) -> bytes:
    """A layer of entries: path, type, mode, user, group."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, kind, mode, uid, gid in members:
            member = tarfile.TarInfo(path)
            member.type, member.mode, member.uid, member.gid = kind, mode, uid, gid
            member.linkname = "x" if kind == tarfile.SYMTYPE else ""
            archive.addfile(member)
    return buffer.getvalue()


FILE, DIRECTORY, LINK, FIFO = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE


def test_the_uppermost_layer_says_whose_a_file_is(store: Store) -> None:
    below = tar(
        ("etc", DIRECTORY, 0o755, 0, 0),
        ("etc/shadow", FILE, 0o640, 0, 42),
        ("etc/replaced", FILE, 0o644, 5, 5),
        ("etc/gone", FILE, 0o644, 5, 5),
        ("etc/plain", FILE, 0o644, 0, 0),
        ("etc/pipe", FIFO, 0o644, 5, 5),
        ("etc/link", LINK, 0o777, 7, 8),
    )
    above = tar(("etc/replaced", FILE, 0o644, 0, 0), ("etc/.wh.gone", FILE, 0o644, 0, 0))
    layers = [layer_of(store, below, compression="gzip"), layer_of(store, above, compression="zstd")]
    session: Any = SimpleNamespace(store=store)
    image = append(image_of(store), layers)
    assert owners_of(session, image) == {"etc/shadow": (0, 42), "etc/link": (7, 8)}
    for layer in layers:
        store.blob_path(layer.descriptor.digest).unlink()
    assert owners_of(session, image) == {"etc/shadow": (0, 42), "etc/link": (7, 8)}, "it is remembered"


def test_what_is_in_a_directory_that_hands_its_group_on_is_told_too(store: Store) -> None:
    data = tar(
        ("var/local", DIRECTORY, 0o2775, 0, 50),
        ("var/local/plain", FILE, 0o644, 0, 0),
        ("var/local/below", DIRECTORY, 0o755, 0, 0),
        ("var/local/below/far", FILE, 0o644, 0, 0),
        ("var/other", FILE, 0o644, 0, 0),
    )
    session: Any = SimpleNamespace(store=store)
    found = owners_of(session, append(image_of(store), [layer_of(store, data, compression="gzip")]))
    assert found == {"var/local": (0, 50), "var/local/plain": (0, 0), "var/local/below": (0, 0)}
