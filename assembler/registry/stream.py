"""Blobs on their way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import VerifiedReader
from assembler.oci.reference import Reference
from assembler.registry.refusal import TransientError

if TYPE_CHECKING:
    import requests


class BlobStream:
    """A blob on its way in: verified at its end, and never longer than promised."""

    def __init__(self, response: requests.Response, reference: Reference, descriptor: Descriptor) -> None:
        self._response = response
        wire = _Wire(response, f"{reference.name}@{descriptor.digest}")
        self._verified = VerifiedReader(wire, descriptor.digest, descriptor.size, f"blob of {reference.name}")

    def __enter__(self) -> BlobStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, amount: int = -1, /) -> bytes:
        """Read like a file; VerifyError at the end, TransientError when the connection breaks."""
        return self._verified.read(amount)

    def close(self) -> None:
        """Let go of the connection."""
        self._response.close()


class _Wire:
    """The raw bytes of an answer, with urllib3's errors turned into ours."""

    def __init__(self, response: requests.Response, place: str) -> None:
        self._raw: Any = response.raw
        self._place = place

    def close(self) -> None:
        self._raw.close()

    def read(self, amount: int = -1, /) -> bytes:
        import urllib3.exceptions

        try:
            data: bytes = self._raw.read(None if amount < 0 else amount, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransientError(f"the download broke off: {type(error).__name__}", place=self._place) from None
        return data
