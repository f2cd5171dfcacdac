"""What the manifest's `image:` section makes of a base's config. Pure; image-spec config.md, docker's customs.

Setting an entrypoint drops the base's command, as in a Dockerfile; environment values may use the base's value
of any variable as `${NAME}`; ports, volumes and labels add to the base's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from assembler.manifest.models import ImageSettings, Manifest
from assembler.oci.image import ImageConfig

_VARIABLE = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)\}")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def settings_facts(settings: ImageSettings) -> dict[str, Any]:
    """The settings as they go into the image's key."""
    return settings.model_dump(mode="json", exclude_none=True)


def run_facts(manifest: Manifest) -> dict[str, Any]:
    """How the image wants to be run, as is written into it: `run:`, and `vendor`, whose GPUs it is for.

    Empty when the manifest says nothing of it.
    """
    facts: dict[str, Any] = manifest.run.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if manifest.accelerator:
        facts["vendor"] = manifest.accelerator.vendor
    return facts


def apply_settings(config: ImageConfig, settings: ImageSettings) -> ImageConfig:
    """The config with the settings applied."""
    runtime: dict[str, Any] = dict(config.config)
    environment = expand_environment(config.environment, settings.env)
    if environment:
        runtime["Env"] = [f"{name}={value}" for name, value in environment.items()]
    if settings.entrypoint is not None:
        runtime.pop("Cmd", None)
    for name, words in (("Entrypoint", settings.entrypoint), ("Cmd", settings.cmd)):
        if words is not None:
            runtime.pop(name, None)
            if words:
                runtime[name] = list(words)
    simple = {"User": settings.user, "WorkingDir": settings.workdir, "StopSignal": settings.stop_signal}
    runtime.update({name: value for name, value in simple.items() if value is not None})
    for name, additions in (
        ("ExposedPorts", dict.fromkeys(settings.ports)),
        ("Volumes", dict.fromkeys(settings.volumes)),
    ):
        if additions:
            runtime[name] = {**(runtime.get(name) or {}), **{key: {} for key in additions}}
    if settings.labels:
        runtime["Labels"] = {**(runtime.get("Labels") or {}), **settings.labels}
    if settings.healthcheck is not None:
        runtime["Healthcheck"] = settings.healthcheck.to_json()
    return replace(config, config=runtime)


def expand_environment(base: Mapping[str, str], additions: Mapping[str, str]) -> dict[str, str]:
    """The base's environment with additions; `${NAME}` in an addition is the base's value, or nothing.

    A base without PATH (scratch, distroless) has the value that every runtime assumes then.

    >>> expand_environment({"PATH": "/bin"}, {"PATH": "/opt/venv/bin:${PATH}"})
    {'PATH': '/opt/venv/bin:/bin'}
    >>> expand_environment({}, {"A": "$${B}"})
    {'A': '${B}'}
    """
    known = {"PATH": _DEFAULT_PATH, **base}

    def value_of(match: re.Match[str]) -> str:
        return match.group(0)[1:] if match.group(1) else known.get(match.group(2), "")

    return {**base, **{name: _VARIABLE.sub(value_of, value) for name, value in additions.items()}}
