"""Digests: parsing, computing while writing, checking while reading, and the JSON that is hashed.

OCI image specification, "Digests" of descriptor.md. SHA-256 only: registries agree on nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Protocol

from assembler.errors import VerifyError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Digest(str):
    """`sha256:` and 64 lower-case hexadecimal digits. Made by `parse`, `of` or a hashing writer."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Return `text` as a digest; ValueError says what is wrong with it."""
        if not isinstance(text, str) or not _DIGEST.fullmatch(text):
            raise ValueError(f"expected a digest `sha256:` + 64 hexadecimal digits, got `{text}`")
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The digest of these bytes."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @classmethod
    def from_hex(cls, hexadecimal: str) -> Digest:
        """The digest with these 64 hexadecimal digits."""
        return cls.parse("sha256:" + hexadecimal)

    @property
    def hex(self) -> str:
        """The part after the colon."""
        return self[7:]

    @property
    def short(self) -> str:
        """Twelve digits, for people."""
        return self[7:19]


def canonical_json(value: object) -> bytes:
    """Serialise with sorted keys, no spaces and UTF-8, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Writable(Protocol):
    """What a hashing writer writes to."""

    def write(self, data: bytes, /) -> object: ...


class Readable(Protocol):
    """Bytes to be read once, to their end. An open file is one, and so is a download."""

    def read(self, amount: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


class DigestingWriter:
    """Passes bytes on to `sink` and knows digest and size of what went through."""

    __slots__ = ("_hash", "_sink", "size")

    def __init__(self, sink: Writable) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        """Hash and pass on."""
        self._hash.update(data)
        self._sink.write(data)
        self.size += len(data)
        return len(data)

    @property
    def digest(self) -> Digest:
        """Digest of everything written so far."""
        return Digest("sha256:" + self._hash.hexdigest())


class VerifiedReader:
    """A reader that ends with an error unless it delivered exactly `size` bytes of `digest`.

    The check happens when the end is reached, and reading past `size` fails at once, so that a lying source
    cannot fill a disk. Whoever stops early has verified nothing.
    """

    __slots__ = ("_digest", "_hash", "_name", "_read", "_size", "_stream")

    def __init__(self, stream: Readable, digest: Digest, size: int, name: str = "blob") -> None:
        self._stream = stream
        self._digest = digest
        self._size = size
        self._name = name
        self._hash = hashlib.sha256()
        self._read = 0

    def read(self, amount: int = -1) -> bytes:
        """Read like a file; raises VerifyError at the end when the bytes were not the promised ones."""
        wanted = self._size - self._read + 1 if amount < 0 else amount
        data = self._stream.read(wanted)
        self._hash.update(data)
        self._read += len(data)
        if self._read > self._size:
            raise VerifyError(f"expected {self._size} bytes, got more", place=f"{self._name} {self._digest}")
        ended = not data or (amount < 0)
        if ended and wanted:
            self.finish()
        return data

    def finish(self) -> None:
        """Check what was read; raises VerifyError on a wrong size or digest."""
        place = f"{self._name} {self._digest}"
        if self._read != self._size:
            raise VerifyError(f"expected {self._size} bytes, got {self._read}", place=place)
        found = "sha256:" + self._hash.hexdigest()
        if found != self._digest:
            raise VerifyError(f"the bytes give {found}", place=place)
