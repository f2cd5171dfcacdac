"""Where a wheel's files go: a virtual environment, or a directory of packages of a Python that is there.

A virtual environment is what PEP 405 says one is: `pyvenv.cfg`, and links to the base's Python. Paths inside it
are those that pip and uv use (sysconfig's `venv` scheme; headers below `include/site`). A directory that ends in
`site-packages` or `dist-packages` belongs to the prefix around it when it lies in one (`PREFIX/lib/pythonX.Y/…`);
any other is a prefix by itself, like the target of `pip install --target`.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import Final

from assembler.tree.entry import Entry

_VERSION: Final = re.compile(r"[0-9]+\.[0-9]+t?")
_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[^/\0-\x1f\x7f]+)+")
_IN_PREFIX: Final = re.compile(r"(?P<prefix>.+)/lib(?:64)?/python[0-9.]+t?/(?:site|dist)-packages")
_PACKAGES: Final = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A place for wheels. Paths are relative to the image's root, but for `base_python` and `interpreter`.

    `python` is the minor version (`3.11`), `base_python` the base's own interpreter, `interpreter` the one that
    scripts name. `headers` is the directory with one directory of headers for each project. `bytecode` asks for
    `.pyc` files beside the sources.
    """

    prefix: str
    venv: bool
    python: str
    base_python: str
    purelib: str
    platlib: str
    scripts: str
    data: str
    headers: str
    interpreter: str
    bytecode: bool


def environment_of(into: str, python: str, base_python: str, *, bytecode: bool) -> Environment:
    """The environment at the absolute path `into`; ValueError says what is wrong with the arguments."""
    for path in (into, base_python):
        if not _PATH.fullmatch(path):
            raise ValueError(f"expected an absolute path without empty, `.` and `..` parts, got `{path}`")
    if not _VERSION.fullmatch(python):
        raise ValueError(f"expected a Python version such as `3.11`, got `{python}`")
    top = into[1:]
    if top.rpartition("/")[2] not in _PACKAGES:
        packages = f"{top}/lib/python{python}/site-packages"
        prefix, headers, interpreter = top, f"{top}/include/site/python{python}", f"/{top}/bin/python"
    else:
        inside = _IN_PREFIX.fullmatch(top)
        packages, prefix = top, inside["prefix"] if inside else top
        headers, interpreter = f"{prefix}/include/python{python}" if inside else f"{prefix}/include", base_python
    return Environment(
        prefix=prefix,
        venv=packages != top,
        python=python,
        base_python=base_python,
        purelib=packages,
        platlib=packages,
        scripts=f"{prefix}/bin",
        data=prefix,
        headers=headers,
        interpreter=interpreter,
        bytecode=bytecode,
    )


def venv_entries(environment: Environment) -> tuple[Entry, ...]:
    """What a virtual environment is before anything is installed in it."""
    prefix, scripts = environment.prefix, environment.scripts
    configuration = (
        f"home = {posixpath.dirname(environment.base_python)}\n"
        "implementation = CPython\n"
        f"version = {environment.python.rstrip('t')}\n"
        "include-system-site-packages = false\n"
    )
    return (
        _file(f"{prefix}/pyvenv.cfg", configuration),
        _file(f"{scripts}/activate", _ACTIVATE.replace("@PREFIX@", f"/{prefix}")),
        _link(f"{scripts}/python", environment.base_python),
        _link(f"{scripts}/python3", "python"),
        _link(f"{scripts}/python{environment.python}", "python"),
        _link(f"{prefix}/lib64", "lib"),
        Entry(path=environment.purelib, kind="directory", mode=0o755),
    )


def installed_path(environment: Environment, path: str) -> str:
    """Where a path really lies: in a virtual environment `lib64` is a link, which no directory may replace."""
    link = f"{environment.prefix}/lib64/"
    return f"{environment.prefix}/lib/{path[len(link) :]}" if environment.venv and path.startswith(link) else path


def reserved_paths(environment: Environment) -> frozenset[str]:
    """The files that make the environment, which no wheel may replace."""
    names = {f"{environment.scripts}/{name}" for name in ("python", "python3", f"python{environment.python}")}
    made = {f"{environment.prefix}/pyvenv.cfg", f"{environment.prefix}/lib64"} if environment.venv else set()
    return frozenset(names | made)


def _file(path: str, text: str) -> Entry:
    data = text.encode()
    return Entry(path=path, kind="file", mode=0o644, size=len(data), content=data)


def _link(path: str, target: str) -> Entry:
    return Entry(path=path, kind="symlink", mode=0o777, link=target)


_ACTIVATE: Final = """\
# Source this from a POSIX shell: `. bin/activate`; `deactivate` undoes it.

deactivate() {
    if [ -n "${_ASSEMBLE_OLD_PATH+set}" ]; then
        PATH=$_ASSEMBLE_OLD_PATH
        export PATH
        unset _ASSEMBLE_OLD_PATH
    fi
    if [ -n "${_ASSEMBLE_OLD_PYTHONHOME+set}" ]; then
        PYTHONHOME=$_ASSEMBLE_OLD_PYTHONHOME
        export PYTHONHOME
        unset _ASSEMBLE_OLD_PYTHONHOME
    fi
    hash -r 2>/dev/null || true
    unset VIRTUAL_ENV
    if [ "${1-}" != again ]; then
        unset -f deactivate
    fi
}

deactivate again

VIRTUAL_ENV='@PREFIX@'
export VIRTUAL_ENV
_ASSEMBLE_OLD_PATH=$PATH
PATH=$VIRTUAL_ENV/bin:$PATH
export PATH
if [ -n "${PYTHONHOME+set}" ]; then
    _ASSEMBLE_OLD_PYTHONHOME=$PYTHONHOME
    unset PYTHONHOME
fi
hash -r 2>/dev/null || true
"""
