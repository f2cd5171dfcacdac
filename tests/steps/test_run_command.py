"""The command that runs an image: what each program is told of the same wish."""

from __future__ import annotations

from typing import Any

import pytest

from assembler.errors import RequestError
from assembler.manifest.models import RunHints
from assembler.steps.run_command import Engine, Node, RunCommand, Vendor, Wish, run_command

NODE = Node(groups={"video": 44, "render": 105}, cdi=True, tty=False, root=True)


def command(
    engine: Engine, hints: dict[str, Any], vendor: Vendor | None = "nvidia", node: Node = NODE, **more: Any
) -> RunCommand:
    return run_command(engine, Wish(image="i", hints=RunHints(**hints), vendor=vendor, **more), node)


def options(engine: Engine, hints: dict[str, Any], vendor: Vendor | None = "nvidia", **more: Any) -> str:
    """What stands between `run --rm --interactive` and the image."""
    argv = command(engine, hints, vendor, **more).argv
    assert argv[:3] == (engine, "run", "--rm" if engine != "apptainer" else "--cleanenv")
    return " ".join(argv[4 if engine != "apptainer" else 3 : argv.index("i")])


@pytest.mark.parametrize(
    ("gpus", "podman", "docker", "apptainer"),
    [
        ("all", "--device=nvidia.com/gpu=all", "--gpus=all", "--nv"),
        ("2", "--device=nvidia.com/gpu=0 --device=nvidia.com/gpu=1", "--gpus=2", "--nv"),
        ("0,3", "--device=nvidia.com/gpu=0 --device=nvidia.com/gpu=3", '--gpus="device=0,3"', "--nv"),
        ("none", "", "", ""),
        (None, "", "", ""),
    ],
)
def test_gpus_of_nvidia(gpus: str | None, podman: str, docker: str, apptainer: str) -> None:
    assert options("podman", {"gpus": gpus}) == podman
    assert options("docker", {"gpus": gpus}) == docker
    assert options("apptainer", {"gpus": gpus}) == apptainer


def test_apptainer_chooses_gpus_by_a_variable() -> None:
    assert command("apptainer", {"gpus": "2"}).environment == {"APPTAINERENV_CUDA_VISIBLE_DEVICES": "0,1"}
    amd = command("apptainer", {"gpus": "1,3"}, "amd")
    assert amd.environment == {"APPTAINERENV_ROCR_VISIBLE_DEVICES": "1,3"}
    assert "--rocm" in amd.argv


def test_gpus_of_amd_are_devices_and_the_groups_that_own_them() -> None:
    devices = "--device=/dev/kfd --device=/dev/dri"
    assert options("docker", {"gpus": "all"}, "amd") == f"{devices} --group-add=44 --group-add=105"
    assert options("podman", {"gpus": "all"}, "amd", node=Node()) == f"{devices} --group-add=keep-groups"
    assert options("docker", {"gpus": "all"}, "amd", node=Node()) == (
        f"{devices} --group-add=video --group-add=render"
    )


def test_a_host_without_cdi_is_told_how_to_have_it() -> None:
    (note,) = command("podman", {"gpus": "all"}, node=Node(cdi=False)).notes
    assert "nvidia-ctk cdi generate" in note


def test_everything_else_is_passed_in_podmans_words() -> None:
    hints = {
        "shm_size": "8g",
        "device": ("/dev/infiniband",),
        "ulimit": ("memlock=-1",),
        "cap_add": ("SYS_PTRACE",),
        "security_opt": ("seccomp=unconfined",),
        "volume": ("/data:/data:ro",),
        "group_add": ("video",),
    }
    for engine in ("podman", "docker"):
        assert options(engine, hints, None, ports=("80", "53/udp"), user="1000:0") == (
            "--device=/dev/infiniband --group-add=video --shm-size=8g --ulimit=memlock=-1 --cap-add=SYS_PTRACE"
            " --security-opt=seccomp=unconfined --publish=80:80 --publish=53:53/udp --volume=/data:/data:ro"
            " --user=1000:0"
        )
    found = command("apptainer", hints, None, user="1000:0")
    assert " ".join(found.argv) == "apptainer run --cleanenv --bind=/data:/data:ro i"
    assert [note.split("`")[1] for note in found.notes] == ["ulimit", "cap-add", "user"]


def test_namespaces_of_the_host_have_its_ports_and_its_memory() -> None:
    hints = {"network": "host", "ipc": "host", "shm_size": "1g"}
    assert options("podman", hints, None, ports=("80",)) == "--ipc=host --network=host"


def test_a_command_replaces_the_images_own() -> None:
    assert command("podman", {}, command=("nvidia-smi", "-L")).argv[-3:] == ("i", "nvidia-smi", "-L")
    assert command("apptainer", {}, command=("nvidia-smi",)).argv[:2] == ("apptainer", "exec")


def test_a_secret_is_in_no_argument_list() -> None:
    found = command("apptainer", {}, environment=("HF_TOKEN", "A=b"))
    assert found.inherited == {"APPTAINERENV_HF_TOKEN": "HF_TOKEN"}
    assert "--env=A=b" in found.argv
    assert "--env=HF_TOKEN" in command("podman", {}, environment=("HF_TOKEN",)).argv


def test_somebody_who_can_type_gets_a_terminal() -> None:
    assert "--tty" in command("podman", {}, node=Node(tty=True)).argv


@pytest.mark.parametrize("gpus", ["; rm", "--privileged", ""])
def test_what_names_no_gpu_is_refused(gpus: str) -> None:
    with pytest.raises((RequestError, ValueError)):
        command("podman", {"gpus": gpus})
