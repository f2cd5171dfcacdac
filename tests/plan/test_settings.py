"""What the manifest's `image:` makes of a base's config."""

from __future__ import annotations

from typing import Any

import pytest

from assembler.manifest.models import ImageSettings
from assembler.oci.image import ImageConfig
from assembler.oci.platform import Platform
from assembler.plan.settings import apply_settings

BASE = ImageConfig(
    platform=Platform("linux", "amd64"),
    config={
        "Env": ["PATH=/usr/bin:/bin", "LANG=C"],
        "Entrypoint": ["/base"],
        "Cmd": ["serve"],
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"a": "base"},
        "WorkingDir": "/",
    },
)


def applied(**fields: Any) -> dict[str, Any]:
    return dict(apply_settings(BASE, ImageSettings.model_validate(fields)).config)


def test_nothing_said_changes_nothing() -> None:
    assert applied() == dict(BASE.config)


@pytest.mark.parametrize(
    ("fields", "name", "expected"),
    [
        ({"env": {"PATH": "/app:${PATH}"}}, "Env", ["PATH=/app:/usr/bin:/bin", "LANG=C"]),
        ({"env": {"NEW": "x${LANG}y${NONE}"}}, "Env", ["PATH=/usr/bin:/bin", "LANG=C", "NEW=xCy"]),
        ({"entrypoint": ["/new"]}, "Cmd", None),
        ({"entrypoint": ["/new"], "cmd": ["x"]}, "Cmd", ["x"]),
        ({"cmd": ["x"]}, "Entrypoint", ["/base"]),
        ({"entrypoint": []}, "Entrypoint", None),
        ({"ports": ["8080"]}, "ExposedPorts", {"80/tcp": {}, "8080/tcp": {}}),
        ({"volumes": ["/data"]}, "Volumes", {"/data": {}}),
        ({"labels": {"b": "ours"}}, "Labels", {"a": "base", "b": "ours"}),
        ({"workdir": "/app"}, "WorkingDir", "/app"),
        ({"user": "1000:0"}, "User", "1000:0"),
        ({"stop_signal": "SIGINT"}, "StopSignal", "SIGINT"),
        (
            {"healthcheck": {"test": "true", "interval": "30s", "retries": "3"}},
            "Healthcheck",
            {"Test": ["CMD-SHELL", "true"], "Interval": 30_000_000_000, "Retries": 3},
        ),
    ],
)
def test_each_setting(fields: dict[str, Any], name: str, expected: object) -> None:
    assert applied(**fields).get(name) == expected
