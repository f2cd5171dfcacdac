"""How to log in to the registries of clouds, whose passwords live for hours: the words for a hint."""

from __future__ import annotations

import re

_ECR = re.compile(r"[0-9]{12}\.dkr[.-]ecr(?:-fips)?\.(?P<region>[a-z0-9-]+)\.[a-z0-9.-]+")
_AZURE = re.compile(r"(?P<name>[a-z0-9-]+)\.azurecr\.[a-z]+")
_GOOGLE = re.compile(r"(?:[a-z0-9-]+\.)?(?:gcr\.io|pkg\.dev)")


def login_hint(registry: str) -> str:
    """The next step for somebody who has no credentials for a registry, or old ones."""
    if registry == "public.ecr.aws":
        return _ecr(registry, "aws ecr-public get-login-password --region us-east-1")
    if found := _ECR.fullmatch(registry):
        return _ecr(registry, f"aws ecr get-login-password --region {found['region']}")
    if _GOOGLE.fullmatch(registry):
        return (
            f"`gcloud auth configure-docker {registry}` has docker-credential-gcloud asked for it; "
            "or for an hour: `gcloud auth print-access-token | "
            f"podman login --username oauth2accesstoken --password-stdin {registry}`"
        )
    if found := _AZURE.fullmatch(registry):
        return (
            f"`az acr login --name {found['name']} --expose-token --output tsv --query accessToken | podman login "
            f"--username 00000000-0000-0000-0000-000000000000 --password-stdin {registry}`; or the helper "
            f'docker-credential-acr-env: `"credHelpers": {{"{registry}": "acr-env"}}` in ~/.docker/config.json'
        )
    if registry == "nvcr.io":
        return "`podman login --username '$oauthtoken' nvcr.io`, with an API key of NGC as the password"
    return f"log in: `podman login {registry}` (or docker, skopeo, buildah); a robot sets REGISTRY_AUTH_FILE"


def _ecr(registry: str, command: str) -> str:
    return (
        f'install docker-credential-ecr-login and put `"credHelpers": {{"{registry}": "ecr-login"}}` into '
        f"~/.docker/config.json; or for 12 hours: `{command} | "
        f"podman login --username AWS --password-stdin {registry}`"
    )
