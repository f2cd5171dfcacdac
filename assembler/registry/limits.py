"""The largest layer that a registry takes, as far as its vendor says so, checked before gigabytes were sent.

- GitHub, `ghcr.io`: 10 GB a layer, and ten minutes for an upload (docs.github.com, "Working with the Container
  registry", "Troubleshooting").
- Amazon ECR: 52,000 MiB a layer (docs.aws.amazon.com, "Amazon ECR service quotas", not adjustable).
- Amazon ECR Public, `public.ecr.aws`: 10,000 MiB a layer (docs.aws.amazon.com, "Amazon ECR Public service
  quotas").
- Azure, `*.azurecr.io`: 200 GiB a layer in every tier (learn.microsoft.com, "Azure Container Registry SKU features
  and limits").

We found none documented by Docker Hub, Google Artifact Registry and quay.io. Red Hat Quay has 20 GB unless its
administrator says otherwise (`MAXIMUM_LAYER_SIZE`), which its name does not tell. Those refuse by themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from assembler.errors import RegistryError
from assembler.oci.descriptor import Descriptor
from assembler.oci.reference import Reference
from assembler.units import size_text


@dataclass(frozen=True, slots=True)
class _Limit:
    """Registries whose host `pattern` matches, and the bytes that a layer may have there."""

    pattern: re.Pattern[str]
    layer_bytes: int


_LIMITS: Final = (
    _Limit(re.compile(r"ghcr\.io"), 10 * 10**9),
    _Limit(re.compile(r"\d+\.dkr[.-]ecr(-fips)?\..+\.(amazonaws\.com(\.cn)?|on\.aws)"), 52_000 << 20),
    _Limit(re.compile(r"public\.ecr\.aws"), 10_000 << 20),
    _Limit(re.compile(r".+\.azurecr\.(io|cn|us)"), 200 << 30),
)


def layer_limit(registry: str) -> int | None:
    """Bytes that a layer may have in this registry, or None when no limit is known."""
    return next((limit.layer_bytes for limit in _LIMITS if limit.pattern.fullmatch(registry)), None)


def check_size(target: Reference, blob: Descriptor) -> None:
    """RegistryError when the registry would refuse a blob for its size."""
    limit = layer_limit(target.registry)
    if limit is None or blob.size <= limit:
        return
    raise RegistryError(
        f"expected layers of at most {size_text(limit)} there, {blob.digest.short} has {size_text(blob.size)}",
        place=str(target),
        hint="split the layer: its wheels or files over several entries of `layers:`, or another registry",
    )
