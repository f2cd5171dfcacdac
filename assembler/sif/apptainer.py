"""What Apptainer expects in a root file system, and in a SIF beside it, of an image that was an OCI image.

The names and what they are for follow Apptainer 1.5 (internal/pkg/build/sources and assemblers); the scripts are
our own. Three things are other than there:

- The runscript passes words on as they are, as OCI runtimes do. Apptainer's evaluates them once more by the shell,
  unless SINGULARITY_NO_EVAL is set, so that a quotation mark in an argument is lost.
- There is no support for SCIF apps, which images from OCI layers do not have.
- Nothing says when or from where it was converted, since equal images are to give equal files; the definition
  names
  the image by the digest of its config.

WORKDIR, USER, ports and volumes have no meaning to Apptainer; they are kept in `oci-config.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from assembler.oci.digest import canonical_json
from assembler.oci.image import ImageConfig
from assembler.sif.format import DEFINITION, JSON, DataObject
from assembler.sif.rootfs import Added, ImageInput
from assembler.sif.shell import quoted, words

HOME: Final = ".singularity.d"
_VARIABLE: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_SHELL: Final = "#!/bin/sh\n"

_SOURCE_ALL: Final = """\
#!/bin/sh
for file in /.singularity.d/env/*.sh; do
    if [ -f "$file" ]; then . "$file"; fi
done
"""
_ACTIONS: Final = {
    "exec": 'exec "$@"\n',
    "run": 'exec /.singularity.d/runscript "$@"\n',
    "start": "exec /.singularity.d/startscript\n",
    "test": 'exec /.singularity.d/test "$@"\n',
    "shell": """\
for shell in "${SINGULARITY_SHELL:-}" /bin/bash /bin/sh; do
    if [ -x "$shell" ]; then export SHELL="$shell"; exec "$shell" "$@"; fi
done
echo "there is no /bin/sh in this image" >&2
exit 1
""",
}
_LIBRARIES: Final = """\
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
PS1="${PS1:-Apptainer> }"
export LD_LIBRARY_PATH PS1
"""
_RUNTIME: Final = """\
PATH="${SING_USER_DEFINED_PREPEND_PATH:+$SING_USER_DEFINED_PREPEND_PATH:}$PATH"
PATH="$PATH${SING_USER_DEFINED_APPEND_PATH:+:$SING_USER_DEFINED_APPEND_PATH}"
PATH="${SING_USER_DEFINED_PATH:-$PATH}"
unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH
export PATH
"""
_LINKS: Final = {
    "singularity": f"{HOME}/runscript",
    ".run": f"{HOME}/actions/run",
    ".exec": f"{HOME}/actions/exec",
    ".test": f"{HOME}/actions/test",
    ".shell": f"{HOME}/actions/shell",
    "environment": f"{HOME}/env/90-environment.sh",
}
_DIRECTORIES: Final = {
    **dict.fromkeys(("dev", "proc", "root", "etc", "sys", "home", "var"), 0o755),
    **dict.fromkeys(("tmp", "var/tmp"), 0o1777),
}


def additions(image: ImageInput) -> list[Added]:
    """What is to be in the root file system. What was there of a former conversion is replaced."""
    files = {**_environment(image.config), **_scripts(image.config)}
    return [
        *(Added(path=path, mode=mode) for path, mode in _DIRECTORIES.items()),
        *(Added(path=path) for path in (HOME, f"{HOME}/actions", f"{HOME}/env", f"{HOME}/libs")),
        # Apptainer mounts the host's over these, for which they have to be there.
        *(Added(path=path, mode=0o644, data=b"", keep=True) for path in ("etc/hosts", "etc/resolv.conf")),
        *(Added(path=f"{HOME}/{path}", data=text.encode()) for path, text in sorted(files.items())),
        Added(path=f"{HOME}/labels.json", mode=0o644, data=_indented(labels(image))),
        Added(path=f"{HOME}/Singularity", mode=0o644, data=definition(image).encode()),
        *(Added(path=path, link=link) for path, link in _LINKS.items()),
    ]


def data_objects(image: ImageInput) -> list[DataObject]:
    """What is in a SIF beside the file system: the definition, and JSON by name, for `apptainer inspect`."""
    scripts, environment = _scripts(image.config), _environment(image.config)
    attributes = {
        "environment": {f"/{HOME}/{path}": text for path, text in sorted(environment.items())},
        "labels": labels(image),
        "runscript": scripts["runscript"],
        "test": scripts["test"],
        "startscript": scripts["startscript"],
        "deffile": definition(image),
    }
    metadata = {"data": {"attributes": attributes}, "type": "container"}
    return [
        DataObject(kind=DEFINITION, data=definition(image).encode()),
        DataObject(kind=JSON, name="inspect-metadata.json", data=canonical_json(metadata)),
        DataObject(kind=JSON, name="oci-config.json", data=canonical_json(dict(image.config.config))),
    ]


def definition(image: ImageInput) -> str:
    """The definition file: it tells where the image comes from, and nothing can be built by it."""
    return (
        f"# made by assemble; the digest is that of the image's config\nbootstrap: oci\nfrom: {image.identity}\n"
    )


def labels(image: ImageInput) -> dict[str, str]:
    """The image's labels, and those which say what it was."""
    config = image.config
    own = config.config.get("Labels")
    found = {str(name): str(text) for name, text in own.items()} if isinstance(own, dict) else {}
    said = {
        "org.label-schema.schema-version": "1.0",
        "org.label-schema.build-arch": config.platform.architecture,
        "org.label-schema.usage.singularity.deffile.bootstrap": "oci",
        "org.label-schema.usage.singularity.deffile.from": str(image.identity),
        "org.opencontainers.image.architecture": config.platform.architecture,
    }
    if config.created:
        said.setdefault("org.opencontainers.image.created", config.created)
    return {**said, **found}


def strings(config: ImageConfig, name: str) -> list[str]:
    """A list of the config, such as Entrypoint. Configs are untrusted: what is no list of texts is none."""
    value = config.config.get(name)
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _environment(config: ImageConfig) -> dict[str, str]:
    """Scripts that are sourced in the order of their names before anything runs.

    Apptainer looks for three of them by name: what `10-docker2singularity.sh` says of PATH is completed, and after
    `99-base.sh` come the variables that were asked for on its command line.
    """
    return {
        "env/01-base.sh": _SHELL,
        "env/10-docker2singularity.sh": _SHELL + "".join(map(_exported, strings(config, "Env"))),
        "env/90-environment.sh": _SHELL,
        "env/99-base.sh": _SHELL + _LIBRARIES,
        "env/99-runtimevars.sh": _SHELL + _RUNTIME,
    }


def _exported(entry: str) -> str:
    """One variable. What the host sets goes before the image's own value, but for PATH."""
    name, equals, value = entry.partition("=")
    if not _VARIABLE.fullmatch(name):
        return ""
    if not equals:
        return f'export {name}="${{{name}:-}}"\n'
    if name == "PATH":
        return f"export PATH={quoted(value)}\n"
    return f'[ -n "${{{name}:-}}" ] || {name}={quoted(value)}\nexport {name}\n'


def _scripts(config: ImageConfig) -> dict[str, str]:
    entrypoint, command = strings(config, "Entrypoint"), strings(config, "Cmd")
    default = command if entrypoint or command else ["/bin/sh"]
    lines = []
    if default:
        lines.append(f"if [ $# -eq 0 ]; then set -- {words(default)}; fi\n")
    if entrypoint:
        lines.append(f'set -- {words(entrypoint)} "$@"\n')
    return {
        **{f"actions/{name}": _SOURCE_ALL + text for name, text in _ACTIONS.items()},
        "runscript": _SHELL + "".join(lines) + 'exec "$@"\n',
        "startscript": _SHELL,
        "test": _SHELL,
    }


def _indented(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent="\t", sort_keys=True, ensure_ascii=False).encode()
