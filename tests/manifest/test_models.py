"""The words of a manifest: what they mean, and that text becomes the right Python value."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from assembler.manifest.fields import duration_nanoseconds, size_bytes
from assembler.manifest.models import (
    Base,
    Bootstrap,
    CompileStep,
    Copy,
    FileEntry,
    Healthcheck,
    ImageSettings,
    Input,
    LayerEntry,
    Manifest,
    Packages,
    RunHints,
    Source,
)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("scratch", "scratch", Base(scratch=True)),
        ("oci:../out/base", "oci", Base(oci="../out/base")),
        ("debian:12", "reference", Base(reference="debian:12")),
        ("bases/debian.yaml", "manifest", Base(manifest="bases/debian.yaml")),
        ({"scratch": "true"}, "scratch", Base(scratch=True)),
        ({"bootstrap": {"suite": "bookworm"}}, "bootstrap", Base(bootstrap=Bootstrap(suite="bookworm"))),
        (
            {"manifest": "a.yaml", "with": {"cuda": "13"}},
            "manifest",
            Base(manifest="a.yaml", with_={"cuda": "13"}),
        ),
    ],
)
def test_base(value: object, kind: str, expected: Base) -> None:
    base = Base.model_validate(value)
    assert base == expected
    assert base.kind == kind


def test_bootstrap_knows_the_usual_mirrors() -> None:
    assert Bootstrap(suite="bookworm").apt_sources() == (
        "deb http://deb.debian.org/debian bookworm main",
        "deb http://deb.debian.org/debian bookworm-updates main",
        "deb http://deb.debian.org/debian-security bookworm-security main",
    )
    assert Bootstrap(suite="sid").apt_sources() == ("deb http://deb.debian.org/debian sid main",)
    jammy = Bootstrap(distribution="ubuntu", suite="jammy", components=("main", "universe"))
    assert jammy.apt_sources()[2] == "deb http://security.ubuntu.com/ubuntu jammy-security main universe"
    assert jammy.apt_sources("arm64")[0] == "deb http://ports.ubuntu.com/ubuntu-ports jammy main universe"
    own = Bootstrap(suite="bookworm", mirrors=("http://mirror/debian", "deb [trusted=yes] file:/repo ./"))
    assert own.apt_sources() == ("deb http://mirror/debian bookworm main", "deb [trusted=yes] file:/repo ./")


@pytest.mark.parametrize(("text", "expected"), [("30s", 30 * 10**9), ("1m30s", 90 * 10**9), ("1.5ms", 1_500_000)])
def test_duration(text: str, expected: int) -> None:
    assert duration_nanoseconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("64", 64), ("1g", 1 << 30), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("2kb", 2048)]
)
def test_size(text: str, expected: int) -> None:
    assert size_bytes(text) == expected


def test_healthcheck_is_what_the_image_config_wants() -> None:
    check = Healthcheck.model_validate(
        {"test": "curl -f localhost", "interval": "30s", "start-period": "1m", "retries": "3"}
    )
    assert check.to_json() == {
        "Test": ["CMD-SHELL", "curl -f localhost"],
        "Interval": 30 * 10**9,
        "StartPeriod": 60 * 10**9,
        "Retries": 3,
    }
    assert (check.interval_nanoseconds, check.timeout_nanoseconds) == (30 * 10**9, None)
    assert check.start_period_nanoseconds == 60 * 10**9
    assert Healthcheck(test=("serve", "--check"), timeout="1s").to_json() == {
        "Test": ["CMD", "serve", "--check"],
        "Timeout": 10**9,
    }
    assert Healthcheck(test=("NONE",)).to_json() == {"Test": ["NONE"]}


def test_ports_have_a_protocol() -> None:
    assert ImageSettings.model_validate({"ports": ["80", "0053/udp"]}).ports == ("80/tcp", "53/udp")


@pytest.mark.parametrize(("text", "mode"), [("0755", 0o755), ("755", 0o755), ("0o644", 0o644), ("4755", 0o4755)])
def test_mode_is_octal(text: str, mode: int) -> None:
    assert Copy.model_validate({"image": "a", "path": "b", "to": "/c", "mode": text}).mode == mode


def test_keys_have_dashes_and_may_have_underscores() -> None:
    assert RunHints.model_validate({"shm-size": "1g"}) == RunHints.model_validate({"shm_size": "1g"})
    assert RunHints(shm_size="1g").shm_size_bytes == 1 << 30


def test_an_empty_file_is_a_file() -> None:
    assert FileEntry.model_validate({"path": "/a", "content": ""}).content == ""


def test_an_input_may_be_its_default() -> None:
    assert Input.model_validate("1.18") == Input(default="1.18")
    assert Input.model_validate(None) == Input()


def test_one_pattern_stands_for_a_list() -> None:
    step = CompileStep.model_validate(
        {"toolchain": "cmake", "source": "s", "artifacts": {"a": "x", "b": ["y", "z"]}}
    )
    assert step.artifacts == {"a": ("x",), "b": ("y", "z")}
    assert step.cmake is not None and step.cmake.generator == "Ninja"
    assert step.jobs_memory_bytes is None
    assert CompileStep.model_validate({**step.model_dump(), "jobs_memory": "2g"}).jobs_memory_bytes == 2 << 30


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"git": "https://a/b", "ref": "v1"}, "git"),
        ({"archive": "https://a/b.tar.gz", "sha256": "sha256:" + "0" * 64, "strip": "1"}, "archive"),
        ({"sdist": "flash-attn==2.8.3"}, "sdist"),
        ({"path": "../src", "subdirectory": "server"}, "path"),
    ],
)
def test_source_kind(fields: dict[str, str], kind: str) -> None:
    assert Source.model_validate(fields).kind == kind


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"packages": {"apt": ["a=1:2.0-1~b"]}}, "packages"),
        ({"wheels": {"file": "requirements.txt", "python": "3.11"}}, "wheels"),
        ({"copy": {"artifact": "a.b", "to": "/c"}}, "copy"),
        ({"files": [{"path": "/a", "link": "b"}]}, "files"),
        ({"run": {"command": ["ldconfig"]}}, "run"),
        ({"uses": "ucx", "with": {"a": "b"}}, "uses"),
    ],
)
def test_layer_kind(fields: dict[str, Any], kind: str) -> None:
    assert LayerEntry.model_validate(fields).kind == kind


def test_nothing_depends_on_the_host() -> None:
    manifest = Manifest.model_validate({"manifest": "1", "name": "x", "runtime": "scratch"})
    assert (manifest.platforms, manifest.epoch, manifest.compression) == (("linux/amd64",), 0, "zstd")
    assert manifest.image == ImageSettings()
    assert not Packages()


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (Manifest, {"manifest": True, "name": "x", "runtime": "scratch"}),
        (FileEntry, {"path": "/a", "directory": 1}),
        (FileEntry, {"path": "/a", "content": "b", "user": -1}),
        (FileEntry, {"path": "/a", "content": "b", "mode": 0o10000}),
        (FileEntry, {"path": "/a\0b", "content": "b"}),
        (Copy, {"image": "a", "path": "../b", "to": "/c"}),
        (CompileStep, {"toolchain": "cmake", "source": "s", "artifacts": {}}),
        (CompileStep, {"toolchain": "cmake", "source": "s", "artifacts": {"a": []}}),
        (CompileStep, {"toolchain": "script", "source": "s", "script": {"commands": []}, "artifacts": {"a": "b"}}),
        (
            CompileStep,
            {"toolchain": "script", "source": "s", "script": {"commands": [[]]}, "artifacts": {"a": "b"}},
        ),
        (Healthcheck, {"test": []}),
        (Base, {"reference": "a", "with": {"b": "c"}}),
    ],
)
def test_refused(model: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(fields)
