"""Architectures of GPU code in ELF files, laid out as nvcc and clang do; whatever they hold, nothing is raised."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fatbins import cuda_container, elf, hip_bundle

from assembler.build.gpu_check import check_architectures
from assembler.build.gpu_code import architectures_in, gpu_architectures
from assembler.build.harvest import Found
from assembler.errors import StepError
from assembler.manifest.models import Accelerator

CUDA = elf(
    {
        ".text": b"\xc3",
        ".nv_fatbin": cuda_container([("sm", 80, "")])
        + bytes(16)
        + cuda_container([("compute", 90, ""), ("sm", 90, "a")]),
        "__nv_relfatbin": cuda_container([("sm", 100, "f")]),
        ".nvFatBinSegment": bytes(24),
    }
)
HIP = elf({".hip_fatbin": hip_bundle(["gfx90a"]) + bytes(4096) + hip_bundle(["gfx90a", "gfx942:sramecc+:xnack-"])})


def test_cuda() -> None:
    assert architectures_in(CUDA) == frozenset({"sm_80", "sm_90a", "compute_90", "sm_100f"})


def test_hip() -> None:
    assert architectures_in(HIP) == frozenset({"gfx90a", "gfx942:sramecc+:xnack-"})


@pytest.mark.parametrize("compressed", ["zlib-1", "zstd-1", "zlib-2", "zstd-2", "zstd-3"])
def test_compressed_bundles(compressed: str) -> None:
    bundles = [hip_bundle([name], compressed=compressed) for name in ("gfx90a", "gfx1100", "gfx9-4-generic")]
    assert architectures_in(elf({".hip_fatbin": b"".join(bundles)})) == frozenset(
        {"gfx90a", "gfx1100", "gfx9-4-generic"}
    )


def test_both_in_one_file() -> None:
    data = elf({".nv_fatbin": cuda_container([("sm", 75, "")]), ".hip_fatbin": hip_bundle(["gfx1030"])})
    assert architectures_in(data) == frozenset({"sm_75", "gfx1030"})


@pytest.mark.parametrize("data", [b"", b"text", b"\x7fELF", elf({".text": b"\xc3"})])
def test_files_without_gpu_code(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    assert gpu_architectures(tmp_path / "file") in (frozenset(), None)


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert gpu_architectures(tmp_path / "pipe") == frozenset()
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(OSError, match="symbolic"):
        gpu_architectures(tmp_path / "link")


@pytest.mark.parametrize(
    "section",
    [
        {".nv_fatbin": cuda_container([("sm", 80, "")])[:-8]},
        {".hip_fatbin": b"__CLANG_OFFLOAD_BUNDLE__" + b"\xff" * 8},
        {".hip_fatbin": b"CCOB" + b"\x09\0\x01\0" + bytes(64)},
        {".hip_fatbin": b"CCOB" + b"\x02\0\x01\0" + b"\xff" * 64},
        {".hip_fatbin": b"CCOB" + b"\x01\0\x01\0" + bytes(64)},
    ],
)
def test_damaged_code_is_said_to_be_damaged(section: dict[str, bytes]) -> None:
    assert architectures_in(elf(section)) is None


@given(
    st.sampled_from([CUDA, HIP]), st.lists(st.tuples(st.integers(0, 20_000), st.binary(max_size=9)), max_size=6)
)
def test_whatever_is_in_a_file_nothing_is_raised(data: bytes, changes: list[tuple[int, bytes]]) -> None:
    changed = bytearray(data)
    for place, part in changes:
        changed[place : place + len(part)] = part
    found = architectures_in(bytes(changed))
    assert found is None or all(isinstance(name, str) for name in found)


# the check


def harvest(tmp_path: Path, **files: bytes) -> dict[str, tuple[Found, ...]]:
    items = []
    for name, data in files.items():
        path = tmp_path / name.replace("_", ".")
        path.write_bytes(data)
        items.append(Found(path.name, path, path.lstat()))
    return {"libraries": tuple(items)}


ASKED = Accelerator(cuda=("sm_80", "sm_90a"))
EXACT = elf({".nv_fatbin": cuda_container([("sm", 80, ""), ("sm", 90, "a")])})
LESS = elf({".nv_fatbin": cuda_container([("sm", 80, ""), ("sm", 90, "")])})
MORE = elf({".nv_fatbin": cuda_container([("sm", 52, ""), ("sm", 80, ""), ("sm", 90, "a"), ("compute", 90, "a")])})


def test_what_was_asked_for_is_there(tmp_path: Path) -> None:
    found = check_architectures(harvest(tmp_path, a_so=EXACT, b_txt=b"text"), ASKED, "step", required=True)
    assert found == ("sm_80", "sm_90a")


def test_what_is_missing_and_what_nobody_asked_for(tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        check_architectures(harvest(tmp_path, a_so=LESS, b_so=MORE, c_so=EXACT), ASKED, "step")
    assert caught.value.detail == (
        "libraries: a.so: has code for `sm_90`, which nobody asked for",
        "libraries: a.so: has no code for `sm_90a`, only for `sm_80`, `sm_90`",
        "libraries: b.so: has code for `compute_90a`, `sm_52`, which nobody asked for",
    )
    assert "architectures:" in str(caught.value.hint)


def test_more_may_be_allowed_and_less_too(tmp_path: Path) -> None:
    check_architectures(harvest(tmp_path, b_so=MORE), ASKED, "step", strictness="at-least")
    check_architectures(harvest(tmp_path, a_so=LESS), ASKED, "step", strictness="any")
    check_architectures(harvest(tmp_path, a_so=LESS), None, "step")
    with pytest.raises(StepError):
        check_architectures(harvest(tmp_path, a_so=LESS), ASKED, "step", strictness="at-least")


def test_code_of_one_kind_is_not_asked_for_the_other(tmp_path: Path) -> None:
    both = Accelerator(cuda=("sm_80", "sm_90a"), rocm=("gfx90a",))
    check_architectures(harvest(tmp_path, a_so=EXACT), both, "step")
    with pytest.raises(StepError, match="GPU code"):
        check_architectures(harvest(tmp_path, a_so=HIP), ASKED, "step")


def test_portable_code_is_asked_for_by_ptx(tmp_path: Path) -> None:
    data = elf({".nv_fatbin": cuda_container([("sm", 90, ""), ("compute", 90, "")])})
    check_architectures(harvest(tmp_path, a_so=data), Accelerator(cuda=("sm_90+ptx",)), "step")
    with pytest.raises(StepError):
        check_architectures(harvest(tmp_path, a_so=data), Accelerator(cuda=("sm_90",)), "step")


def test_no_code_at_all(tmp_path: Path) -> None:
    plain = harvest(tmp_path, a_so=elf({".text": b"\xc3"}))
    check_architectures(plain, ASKED, "step")
    with pytest.raises(StepError, match="no GPU code"):
        check_architectures(plain, ASKED, "step", required=True)


def test_code_that_cannot_be_read(tmp_path: Path) -> None:
    damaged = elf({".nv_fatbin": cuda_container([("sm", 80, "")])[:-8]})
    with pytest.raises(StepError) as caught:
        check_architectures(harvest(tmp_path, a_so=damaged), ASKED, "step")
    assert caught.value.detail == ("libraries: a.so: its GPU code cannot be read",)


def test_wheels_are_looked_into(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr("kernels/_C.cpython-311.so", LESS)
        wheel.writestr("kernels/__init__.py", "")
    with pytest.raises(StepError) as caught:
        check_architectures(harvest(tmp_path, kernels_whl=buffer.getvalue()), ASKED, "step")
    assert any("kernels.whl: kernels/_C.cpython-311.so" in line for line in caught.value.detail)
