"""The tags of a repository: to list them, and to delete what they name (distribution-spec, "Listing tags")."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from assembler.errors import RegistryError
from assembler.oci.reference import Reference
from assembler.registry.authentication import delete, pull
from assembler.registry.client import MANIFEST_LIMIT, Client
from assembler.registry.receiving import bounded_body, discard
from assembler.registry.refusal import TransientError

_PAGE: Final = 1000
_MOST_PAGES: Final = 1000


def list_tags(client: Client, reference: Reference) -> Iterator[str]:
    """The tags of the reference's repository, page by page; none of a repository that is not there.

    RegistryError when it cannot be asked, or answers something else.
    """
    path: str | None = f"tags/list?n={_PAGE}"
    for _ in range(_MOST_PAGES):
        if path is None:
            return
        scopes = (pull(reference.repository),)
        response = client.request("GET", reference, path, scopes=scopes, expect=(200, 404))
        if response.status_code == 404:
            discard(response)
            return
        try:
            tags = json.loads(bounded_body(response, MANIFEST_LIMIT)).get("tags") or []
        except (ValueError, AttributeError, RecursionError):
            raise RegistryError("expected a list of tags, got something else", place=reference.name) from None
        except OSError as error:
            raise TransientError(f"the list of tags broke off: {error}", place=reference.name) from None
        yield from (str(tag) for tag in tags)
        path = response.links.get("next", {}).get("url")


def delete_manifest(client: Client, reference: Reference) -> bool:
    """Delete what a digest names. False when it was gone; RefusedError where that is forbidden."""
    scopes = (delete(reference.repository),)
    path = f"manifests/{reference.digest}"
    response = client.request("DELETE", reference, path, scopes=scopes, expect=(200, 202, 404))
    discard(response)
    return response.status_code != 404
