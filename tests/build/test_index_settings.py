"""Indexes from uv's and pip's own settings, and what uv is told of pip's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from assembler.build.index_settings import read_settings, uv_environment


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A user whose pip.conf has everything."""
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://me:secret@pip.example/simple\nextra-index-url =\n  https://extra.example/1\n"
        f"  https://extra.example/2\nfind-links = {tmp_path}/links {tmp_path}/none\ncert = /ca.pem\n"
        "trusted-host = pip.example\n"
    )
    return {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "none")}


def test_pip_alone(home: dict[str, str]) -> None:
    settings = read_settings(home)
    assert settings.urls() == (
        "https://extra.example/1",
        "https://extra.example/2",
        "https://me:secret@pip.example/simple",
    )
    assert (settings.certificates, settings.trusted) == ("/ca.pem", ("pip.example",))
    told = uv_environment(home)
    assert told["UV_DEFAULT_INDEX"] == "https://me:secret@pip.example/simple"
    assert told["UV_INDEX"] == "https://extra.example/1 https://extra.example/2"
    assert told["UV_FIND_LINKS"] == f"{home['HOME']}/links", "a directory that is not there would be uv's error"
    assert (told["SSL_CERT_FILE"], told["UV_INSECURE_HOST"]) == ("/ca.pem", "pip.example")


def test_uv_comes_before_pip(home: dict[str, str]) -> None:
    uv = {
        **home,
        "UV_DEFAULT_INDEX": "https://uv.example/simple",
        "UV_INDEX": "inner=https://inner.example/simple",
        "UV_INDEX_INNER_USERNAME": "me",
        "UV_INDEX_INNER_PASSWORD": "p@ss",
        "UV_FIND_LINKS": "/a,/b",
        "SSL_CERT_FILE": "/uv.pem",
        "UV_INSECURE_HOST": "uv.example",
    }
    assert uv_environment(uv) == {}
    settings = read_settings(uv)
    assert settings.urls()[0] == "https://me:p%40ss@inner.example/simple"
    assert settings.urls()[-1] == "https://uv.example/simple"
    assert settings.with_credentials("https://inner.example/files/a.whl").startswith("https://me:p%40ss@inner")
    assert settings.with_credentials("https://uv.example/files/a.whl") == "https://uv.example/files/a.whl"


def test_uv_files(home: dict[str, str]) -> None:
    directory = Path(home["HOME"]) / ".config/uv"
    directory.mkdir()
    (directory / "uv.toml").write_text(
        'find-links = ["/from-uv"]\n[[index]]\nurl = "https://a.example"\n'
        '[[index]]\nurl = "https://b.example"\ndefault = true\n'
        '[[index]]\nname = "c"\nurl = "https://c.example"\nexplicit = true\n'
    )
    bare = {**home, "PIP_CONFIG_FILE": os.devnull}
    assert read_settings(bare).urls() == ("https://a.example", "https://b.example")
    assert read_settings(bare).find_links == ("/from-uv",)
    assert "UV_DEFAULT_INDEX" not in uv_environment(home)


def test_no_index(home: dict[str, str]) -> None:
    settings = read_settings({**home, "PIP_NO_INDEX": "1"})
    assert settings.urls() == ()
    assert uv_environment({**home, "PIP_NO_INDEX": "1"})["UV_NO_INDEX"] == "1"
    assert [str(path) for path in settings.local_directories()] == [
        f"{home['HOME']}/links",
        f"{home['HOME']}/none",
    ]


def test_nothing_is_set(tmp_path: Path) -> None:
    bare = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull, "XDG_CONFIG_HOME": str(tmp_path)}
    assert uv_environment(bare) == {}
    assert read_settings(bare).urls() == ("https://pypi.org/simple",)
