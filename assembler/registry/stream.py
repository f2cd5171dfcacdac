"""Blobs on their way in: resumed where they broke off, verified at their end.

Every byte goes through one hash, whichever connection brought it: a blob that was put together from several
answers is as well verified as one that came at once (`Range` and `Content-Range`: RFC 9110, 14).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from assembler.errors import RegistryError, VerifyError
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import VerifiedReader
from assembler.oci.reference import Reference
from assembler.registry.receiving import Inflow
from assembler.registry.refusal import TransientError
from assembler.registry.retry import RetryPolicy, Tries

if TYPE_CHECKING:
    import requests

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_BLOCK = 1 << 20


class BlobStream:
    """A blob on its way in: verified at its end, and never longer than promised.

    `open_at` asks for the blob from an offset on; it is called at once, and again after each break. It answers 200
    with the whole, 206 with the rest, or 416 when the registry has no more.
    """

    def __init__(
        self,
        open_at: Callable[[int], requests.Response],
        reference: Reference,
        descriptor: Descriptor,
        policy: RetryPolicy,
    ) -> None:
        self._wire = _Wire(open_at, descriptor, f"{reference.name}@{descriptor.digest}", policy)
        name = f"blob of {reference.name}"
        self._verified = VerifiedReader(self._wire, descriptor.digest, descriptor.size, name)

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, amount: int = -1, /) -> bytes:
        """Read like a file; VerifyError at the end, RegistryError when it breaks off again and again."""
        return self._verified.read(amount)

    def close(self) -> None:
        """Let go of the connection."""
        self._wire.close()


class _Wire:
    """The bytes of a blob, from as many answers as it takes."""

    def __init__(
        self,
        open_at: Callable[[int], requests.Response],
        descriptor: Descriptor,
        place: str,
        policy: RetryPolicy,
    ) -> None:
        self._open_at = open_at
        self._size = descriptor.size
        self._place = place
        self._policy = policy
        self._tries = Tries(policy)
        self._at = 0
        self._closed = False
        self._begin()

    def close(self) -> None:
        self._closed = True
        self._response.close()

    def read(self, amount: int = -1, /) -> bytes:
        """As many bytes as asked for, fewer only at the end, like a file."""
        wanted = self._size - self._at + 1 if amount < 0 else amount
        parts: list[bytes] = []
        while wanted > 0 and not self._closed and (data := self._some(wanted)):
            parts.append(data)
            wanted -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _some(self, most: int) -> bytes:
        while True:
            try:
                data = self._inflow.some(most)
                if data or self._at >= self._size:
                    self._at += len(data)
                    return data
                trouble = f"it ended after {self._at} of {self._size} bytes"
            except OSError as error:
                trouble = str(error)
                if self._at >= self._size:  # all there is; whether it is the right thing, the digest tells
                    return b""
            self._go_on(trouble)

    def _go_on(self, trouble: str) -> None:
        """Ask for the rest, as often as the policy has patience."""
        self._response.close()
        while True:
            error = TransientError(f"the download broke off: {trouble}", place=self._place)
            try:
                self._tries.failed(error, self._at)
            except TransientError as last:
                # Whoever sends this blob on need not try again: we did.
                raise RegistryError(last.fact, place=last.place, detail=last.detail) from None
            try:
                self._begin()
            except OSError as broken:
                trouble = str(broken)
            else:
                return

    def _begin(self) -> None:
        """Open it where we are. OSError when what we have already cannot be skipped."""
        self._response = self._open_at(self._at)
        self._inflow = Inflow(self._response, self._policy.slowest)
        if self._response.status_code == 200:
            self._check_length(self._response.headers)
        if self._at == 0:
            return
        if self._response.status_code == 206:
            self._check_range(self._response.headers.get("Content-Range", ""))
        elif self._response.status_code == 416:
            self._response.close()
            raise VerifyError(f"expected {self._size} bytes, the registry has {self._at}", place=self._place)
        else:  # it knows no ranges, and begins at the start
            left = self._at
            while left:
                data = self._inflow.some(min(left, _BLOCK))
                if not data:
                    raise ConnectionError(f"it ended after {self._at - left} of {self._size} bytes")
                left -= len(data)

    def _check_length(self, headers: Mapping[str, str]) -> None:
        """A length that cannot be right is told before gigabytes have come."""
        length = headers.get("Content-Length", "")
        if length.isdecimal() and "Content-Encoding" not in headers and int(length) != self._size:
            self._response.close()
            raise VerifyError(f"expected {self._size} bytes, the registry announces {length}", place=self._place)

    def _check_range(self, header: str) -> None:
        match = _CONTENT_RANGE.fullmatch(header.strip())
        if match and int(match[1]) == self._at and match[3] in ("*", str(self._size)):
            return
        self._response.close()
        asked = f"expected bytes {self._at} to {self._size - 1} of {self._size}"
        raise RegistryError(f"{asked}, the registry sent `{header}`", place=self._place)
