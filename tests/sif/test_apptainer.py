"""The scripts of a SIF, run by real shells: what an image says arrives as it is, nothing of it is evaluated."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.needs import need
from support.sif import image_input

from assembler.errors import UntrustedInputError
from assembler.sif import apptainer, enroot
from assembler.sif.rootfs import ImageInput, add, merged

SHELLS = ["dash", "bash"]
NASTY = ["it's", 'say "hi"', "$HOME `id` $(id)", "back\\slash", "two\nlines", "%s %d", "", "-n", "}", "${x}"]


def image(tmp_path: Path, **config: Any) -> ImageInput:
    return image_input(tmp_path / "layers", config=config)


def script(found: ImageInput, path: str) -> str:
    data = {item.path: item.data for item in apptainer.additions(found)}[f".singularity.d/{path}"]
    assert data is not None
    return data.decode()


def ran(shell: str, text: str, *arguments: str, env: dict[str, str] | None = None) -> list[str]:
    """The words that a program was called with, by a script of this text."""
    whole = text.replace('exec "$@"', 'for word in "$@"; do printf "%s\\0" "$word"; done')
    done = subprocess.run(
        [need(shell), "-c", whole, "script", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/bin:/usr/bin", **(env or {})},
    )
    assert done.stderr == ""
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("entrypoint", "command", "arguments", "called"),
    [
        (["/e", *NASTY], ["c"], [], ["/e", *NASTY, "c"]),
        (["/e"], ["c", *NASTY], [], ["/e", "c", *NASTY]),
        (["/e"], ["c"], NASTY, ["/e", *NASTY]),
        (["/e"], None, ["x"], ["/e", "x"]),
        (["/e"], None, [], ["/e"]),
        (None, ["c", "d e"], [], ["c", "d e"]),
        (None, ["c"], NASTY[:3], NASTY[:3]),
        (None, None, [], ["/bin/sh"]),
        (None, None, ["x", "y z"], ["x", "y z"]),
    ],
)
def test_a_runscript_calls_what_an_oci_runtime_would(
    tmp_path: Path,
    shell: str,
    entrypoint: list[str] | None,
    command: list[str] | None,
    arguments: list[str],
    called: list[str],
) -> None:
    text = script(image(tmp_path, Entrypoint=entrypoint, Cmd=command), "runscript")
    assert ran(shell, text, *arguments) == called


@pytest.mark.parametrize("shell", SHELLS)
def test_variables_arrive_as_the_image_has_them(tmp_path: Path, shell: str) -> None:
    env = [f"V{number}={text}" for number, text in enumerate(NASTY)]
    found = image(tmp_path, Env=[*env, "PATH=/a b:$HOME:/c", "BARE", "1BAD=x", "BAD;id=x", "EQ=a=b"])
    text = script(found, "env/10-docker2singularity.sh")
    show = 'set -- "$PATH" "$EQ" ' + " ".join(f'"$V{number}"' for number in range(len(NASTY)))
    assert ran(shell, f'{text}\n{show}\nexec "$@"') == ["/a b:$HOME:/c", "a=b", *NASTY]
    assert "BAD" not in text


@pytest.mark.parametrize("shell", SHELLS)
def test_what_the_host_sets_goes_first_but_for_path(tmp_path: Path, shell: str) -> None:
    text = script(image(tmp_path, Env=["A=image", "B=image", "PATH=/image"]), "env/10-docker2singularity.sh")
    assert ran(shell, f'{text}\nset -- "$A" "$B" "$PATH"\nexec "$@"', env={"A": "host", "B": ""}) == [
        "host",
        "image",
        "/image",
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_environment_scripts_end_well_one_after_the_other(tmp_path: Path, shell: str) -> None:
    found = image(tmp_path, Env=["PATH=/image", "LD_LIBRARY_PATH=/opt/lib"])
    names = sorted(item.path for item in apptainer.additions(found) if item.path.startswith(".singularity.d/env/"))
    text = "set -eu\n" + "".join(script(found, name.removeprefix(".singularity.d/")) for name in names)
    env = {"SING_USER_DEFINED_PREPEND_PATH": "/first", "SING_USER_DEFINED_APPEND_PATH": "/last"}
    shown = ran(shell, f'{text}\nset -- "$PATH" "$LD_LIBRARY_PATH"\nexec "$@"', env=env)
    assert shown == ["/first:/image:/last", "/opt/lib:/.singularity.d/libs"]


def test_what_no_process_can_be_given_is_refused(tmp_path: Path) -> None:
    for config in ({"Cmd": ["a\0b"]}, {"Env": ["A=a\0b"]}):
        with pytest.raises(UntrustedInputError, match="NUL"):
            apptainer.additions(image(tmp_path, **config))


def test_a_config_of_other_types_than_it_should_be_does_no_harm(tmp_path: Path) -> None:
    found = image(
        tmp_path, Env="PATH=/x", Cmd={"a": 1}, Entrypoint=[1, None, "/e"], Labels=["x"], Volumes=3, WorkingDir=7
    )
    assert "set -- '/e'" in script(found, "runscript")
    assert enroot.additions(found.config)
    assert apptainer.data_objects(found)


def test_json_beside_the_file_system_says_what_inspect_shows(tmp_path: Path) -> None:
    found = image(tmp_path, Labels={"maintainer": "me"}, Cmd=["x"], Env=["A=1"])
    definition, metadata, config = apptainer.data_objects(found)
    value = json.loads(metadata.data)
    assert value["type"] == "container"
    attributes = value["data"]["attributes"]
    assert attributes["labels"]["maintainer"] == "me"
    assert attributes["labels"]["org.label-schema.build-arch"] == "amd64"
    assert attributes["runscript"] == script(found, "runscript")
    assert attributes["environment"]["/.singularity.d/env/10-docker2singularity.sh"].endswith("export A\n")
    assert str(found.identity).encode() in definition.data
    assert json.loads(config.data)["Cmd"] == ["x"]
    assert [item.name for item in (metadata, config)] == ["inspect-metadata.json", "oci-config.json"]


def test_additions_do_not_leave_the_image_and_replace_no_directory(tmp_path: Path) -> None:
    """Links of an image are followed inside of it; what is in the way stays."""
    from support.layers import Put, directory, symlink

    layer = [
        symlink("tmp", "/var/tmp"),
        directory("var/tmp", mode=0o1777),
        symlink("etc", "../../../usr/etc"),
        directory("usr/etc"),
        symlink("usr/etc/resolv.conf", "/run/nothing"),
        Put("usr/etc/hosts", b"127.0.0.1"),
        Put("environment/kept", b"1"),
        symlink(".run", "/bin/evil"),
        Put("home", b"a file"),
        symlink(".singularity.d", "/usr"),
    ]
    found = image_input(tmp_path / "layers", layer)
    rootfs = merged(found.layers)
    add(rootfs, apptainer.additions(found), 0)
    tree = rootfs.tree
    kinds = {path: node.kind for path, node in tree.walk()}
    assert kinds["tmp"] == "symlink"
    assert kinds["home"] == "file"
    assert kinds["environment"] == "directory"
    assert kinds["usr/etc/resolv.conf"] == "file"  # Apptainer could mount nothing over a link to nowhere
    hosts = tree.find("etc/hosts")
    assert hosts is not None
    assert hosts.size == len(b"127.0.0.1")
    run = tree.find(".run")
    assert run is not None
    assert rootfs.data[run].startswith(b"#!/bin/sh\n")
    assert kinds["usr/runscript"] == "file"


@pytest.mark.parametrize("shell", SHELLS)
def test_enroot_gets_its_rc_environment_and_fstab(tmp_path: Path, shell: str) -> None:
    workdir = tmp_path / "it's work"
    found = image(
        tmp_path,
        Entrypoint=["/e"],
        Cmd=["c d"],
        WorkingDir=str(workdir),
        Env=["A=1", "B=two\nlines"],
        Volumes={"/data": {}, "/a b": {}},
    )
    files = {item.path: (item.data or b"").decode() for item in enroot.additions(found.config)}
    text = files["etc/rc"].replace("exec '/e' \"$@\"", 'set -- \'/e\' "$PWD" "$@"\nexec "$@"')
    assert ran(shell, text) == ["/e", str(workdir), "c d"]
    assert ran(shell, text, "x") == ["/e", str(workdir), "x"]
    assert files["etc/environment"] == "A=1\n"
    assert files["etc/fstab"] == "${ENROOT_ROOTFS}/data /data none x-create=dir,bind,rw,nosuid,nodev\n"
    assert str(workdir).strip("/") in files
