"""Which toolchain a compile step has, and what memory one of its jobs needs. A new toolchain is entered here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from assembler.build import toolchains
from assembler.build.budget import JobNeeds
from assembler.build.toolchain_cargo import cargo
from assembler.build.toolchain_configured import autotools, meson
from assembler.build.toolchain_kernels import hipcc, nvcc
from assembler.build.toolchain_wheel import wheel
from assembler.build.toolchains import Toolchain
from assembler.errors import StepError

if TYPE_CHECKING:
    from assembler.manifest.models import Accelerator, CompileStep

_GIB: Final = 1 << 30
_JOB_BYTES: Final = {
    "cmake": 2 * _GIB,  # C++ with many templates
    "cargo": 3 * _GIB // 2,
    "nvcc": 4 * _GIB,  # cicc and ptxas of kernels with many templates
    "hipcc": 3 * _GIB,
    "autotools": _GIB,
    "meson": 2 * _GIB,
    "wheel": 2 * _GIB,
    "script": 2 * _GIB,
}
"""What one job is thought to need when nobody says."""
_KERNEL_JOB_BYTES: Final = 4 * _GIB
_NVCC_THREADS: Final = "NVCC_THREADS"


def toolchain_of(description: CompileStep, accelerator: Accelerator | None, jobs: int, source: Path) -> Toolchain:
    """The commands of a compile step. `source` is where its source is on this host.

    ManifestError when the options do not fit the source, StepError when a pattern matches nothing in it.
    """
    if description.cmake is not None:
        return toolchains.cmake(description.cmake, accelerator, jobs)
    if description.cargo is not None:
        return cargo(description.cargo, accelerator, jobs, source)
    if description.nvcc is not None:
        behind = "env" if description.compiler_cache == "none" else description.compiler_cache
        return nvcc(description.nvcc, accelerator, jobs, source, behind=behind)
    if description.hipcc is not None:
        return hipcc(description.hipcc, accelerator, jobs, source)
    if description.autotools is not None:
        return autotools(description.autotools, accelerator, jobs)
    if description.meson is not None:
        return meson(description.meson, accelerator, jobs)
    if description.wheel is not None:
        return wheel(description.wheel, accelerator, jobs, strip=description.strip)
    if description.script is not None:
        return toolchains.script(description.script, accelerator, jobs)
    raise StepError(f"the toolchain `{description.toolchain}` has no options")


def needs_of(description: CompileStep, accelerator: Accelerator | None) -> JobNeeds:
    """What one job of the step needs: where nvcc is told to run several threads, as many processors."""
    threads = description.env.get(_NVCC_THREADS, "")
    return JobNeeds(
        processors=max(1, int(threads)) if threads.isdecimal() else 1,
        memory=description.jobs_memory_bytes or _job_bytes(description, accelerator),
    )


def _job_bytes(description: CompileStep, accelerator: Accelerator | None) -> int:
    usual = _JOB_BYTES[description.toolchain]
    compiles_kernels = accelerator is not None and description.toolchain in ("cmake", "wheel", "script")
    return max(usual, _KERNEL_JOB_BYTES) if compiles_kernels else usual
