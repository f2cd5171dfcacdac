"""Podman, another implementation, which runs what was pushed."""

from __future__ import annotations

import subprocess
import tempfile

from support.needs import need


def output_of_image(reference: str) -> str:
    """What the image's command prints when podman pulls and runs it, in storage of its own that goes away.

    runc, and limits that are stated, work on hosts with mixed cgroups where nobody may raise limits, as in CI.
    """
    with tempfile.TemporaryDirectory(prefix="pr-") as short:  # podman refuses a run root of over 50 characters
        storage = ["--root", f"{short}/root", "--runroot", f"{short}/run", "--storage-driver", "vfs"]
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        done = subprocess.run(
            [need("podman"), *storage, "--cgroup-manager", "cgroupfs", "--runtime", need("runc"),
             "run", "--rm", "--network", "host", *limits, "--tls-verify=false", reference],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
