"""What enroot, and so pyxis, expects in the root file system of a squashfs (its doc/image-format.md).

`/etc/rc` runs the entrypoint, `/etc/environment` has the variables, `/etc/fstab` the volumes. These replace what
the image has under those names, as `enroot import` does. `${NAME}` in the two latter is enroot's, of the host;
what an image says is kept as it is, since that program has no way to quote it.
"""

from __future__ import annotations

import posixpath
from typing import Final

from assembler.oci.image import ImageConfig
from assembler.sif.apptainer import strings
from assembler.sif.rootfs import Added
from assembler.sif.shell import quoted, words

_LOCAL: Final = "# /etc/rc sources this when the container starts.\n"


def additions(config: ImageConfig) -> list[Added]:
    """What is to be in the root file system."""
    found = [
        Added(path="etc"),
        Added(path="etc/rc", mode=0o644, data=_rc(config).encode()),
        Added(path="etc/rc.local", mode=0o644, data=_LOCAL.encode()),
        Added(path="etc/environment", mode=0o644, data=_lines(strings(config, "Env")).encode()),
        Added(path="etc/fstab", mode=0o644, data=_lines(_volumes(config)).encode()),
    ]
    workdir = posixpath.normpath("/" + _workdir(config)).strip("/")
    return [*found, Added(path=workdir)] if workdir else found


def _rc(config: ImageConfig) -> str:
    entrypoint, command = strings(config, "Entrypoint"), strings(config, "Cmd")
    command = command if entrypoint or command else ["/bin/sh"]
    workdir = quoted(_workdir(config))
    return "".join(
        (
            *(f"mkdir -p {workdir} 2>/dev/null\n", f"cd {workdir} && unset OLDPWD || exit 1\n"),
            "if [ -s /etc/rc.local ]; then . /etc/rc.local; fi\n",
            *([f"if [ $# -eq 0 ]; then set -- {words(command)}; fi\n"] if command else []),
            f'exec {words(entrypoint)} "$@"\n' if entrypoint else 'exec "$@"\n',
        )
    )


def _workdir(config: ImageConfig) -> str:
    value = config.config.get("WorkingDir")
    return value if isinstance(value, str) and value.startswith("/") else "/"


def _volumes(config: ImageConfig) -> list[str]:
    """A bind mount of each volume onto itself, so that it can be written to."""
    volumes = config.config.get("Volumes")
    paths = sorted(path for path in volumes if isinstance(path, str)) if isinstance(volumes, dict) else []
    return [
        f"${{ENROOT_ROOTFS}}{path} {path} none x-create=dir,bind,rw,nosuid,nodev"
        for path in paths
        if path.startswith("/") and not set(path) & set(" \t\n#\\")
    ]


def _lines(texts: list[str]) -> str:
    """A line each; a value of several lines cannot be said."""
    return "".join(f"{text}\n" for text in texts if "\n" not in text and "\0" not in text)
