"""Settings of pip and cargo in a container: where to fetch from, and nothing that changes what is built."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

from assembler.build.indexes import index_settings

CARGO = """\
[build]
rustflags = ["-Ctarget-cpu=native"]
[target.x86_64-unknown-linux-gnu]
linker = "clang"
[source.crates-io]
replace-with = "mirror"
[source.mirror]
registry = "sparse+https://mirror.example/\\"index\\"/"
[net]
retry = 5
git-fetch-with-cli = true
[http]
cainfo = "/etc/my-ca.pem"
multiplexing = false
"""


def test_nothing_to_say(tmp_path: Path) -> None:
    assert (
        index_settings(
            tmp_path, {"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null", "UV_CONFIG_FILE": "/dev/null"}
        )
        == ()
    )


def test_indexes_of_pip(tmp_path: Path) -> None:
    env = {
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": "/dev/null",
        "UV_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "https://me:secret@mirror.example/simple/",
        "PIP_EXTRA_INDEX_URL": "https://one.example/simple https://two.example/simple",
    }
    (mount,) = index_settings(tmp_path, env)
    assert (mount.target, mount.source.stat().st_mode & 0o777) == ("/etc/pip.conf", 0o600)
    parser = configparser.RawConfigParser()
    parser.read(mount.source)
    assert parser["global"]["index-url"] == "https://me:secret@mirror.example/simple"
    assert parser["global"]["extra-index-url"].split() == [
        "https://one.example/simple",
        "https://two.example/simple",
    ]


def test_registries_of_cargo(tmp_path: Path) -> None:
    (tmp_path / ".cargo").mkdir()
    (tmp_path / ".cargo/config.toml").write_text(CARGO)
    (mount,) = index_settings(
        tmp_path, {"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null", "UV_CONFIG_FILE": "/dev/null"}
    )
    assert mount.target == "/.cargo/config.toml"
    assert tomllib.loads(mount.source.read_text()) == {
        "source": {
            "crates-io": {"replace-with": "mirror"},
            "mirror": {"registry": 'sparse+https://mirror.example/"index"/'},
        },
        "net": {"retry": 5, "git-fetch-with-cli": True},
        "http": {"multiplexing": False},
    }


def test_settings_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("no = toml = at all")
    env = {
        "CARGO_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": "/dev/null",
        "UV_CONFIG_FILE": "/dev/null",
    }
    assert index_settings(tmp_path, env) == ()
