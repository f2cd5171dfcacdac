"""The wheel toolchain: a PEP 517 build with pip, of a copy of the source, into a wheelhouse.

Wheels come out the same for the same input as far as the backend lets them: setuptools, hatchling, maturin and
scikit-build-core take the times in the archive from SOURCE_DATE_EPOCH, and the directories are always the same.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Final, Protocol

from assembler.build.toolchain_cargo import SOURCE_COPY, copy_of_source
from assembler.build.toolchains import BUILD, AcceleratorWish, Command, Toolchain, common_environment

WHEELHOUSE: Final = "wheelhouse"
_ENVIRONMENT: Final = f"{BUILD}/environment"
_CHECK: Final = f"{BUILD}/check"
_IMPORT: Final = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
_INSTALL: Final = """\
python=$1 wheels=$2 check=$3
exec "$python" -m pip install --no-deps --no-index --no-compile --target "$check" "$wheels"/*.whl
"""


class WheelWish(Protocol):
    """The options of the wheel toolchain, as the manifest says them."""

    @property
    def source_directory(self) -> str: ...
    @property
    def python(self) -> str: ...
    @property
    def isolation(self) -> bool: ...
    @property
    def prepare(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def requires(self) -> tuple[str, ...]: ...
    @property
    def config_settings(self) -> Mapping[str, str]: ...
    @property
    def imports(self) -> tuple[str, ...]: ...


def wheel(options: WheelWish, accelerator: AcceleratorWish | None, jobs: int, *, strip: bool = True) -> Toolchain:
    """Fetch what the build requires, build, and try what must import.

    With `strip`, extensions are linked without debug information: afterwards their hashes are in the wheel.
    """
    python, commands = options.python, [copy_of_source()]
    if options.requires:
        python = f"{_ENVIRONMENT}/bin/python"
        commands += [
            Command(argv=(options.python, "-m", "venv", "--system-site-packages", _ENVIRONMENT), serial=True),
            Command(
                argv=(python, "-m", "pip", "install", "--no-compile", *options.requires), fetches=True, serial=True
            ),
        ]
    place = posixpath.normpath(posixpath.join(SOURCE_COPY, options.source_directory))
    commands += [Command(argv=tuple(argv), workdir=place, serial=True) for argv in options.prepare]
    settings = [f"--config-settings={name}={value}" for name, value in options.config_settings.items()]
    isolation = () if options.isolation else ("--no-build-isolation",)
    build = (python, "-m", "pip", "wheel", "--verbose", "--no-deps", *isolation, *settings)
    commands.append(Command(argv=(*build, f"--wheel-dir={BUILD}/{WHEELHOUSE}", place)))
    if options.imports:
        commands += [
            Command(
                argv=("sh", "-c", _INSTALL, "sh", python, f"{BUILD}/{WHEELHOUSE}", _CHECK),
                serial=True,
                called="pip install, to try imports",
            ),
            Command(
                argv=(python, "-c", _IMPORT, *options.imports),
                environment={"PYTHONPATH": _CHECK, "PYTHONDONTWRITEBYTECODE": "1"},
                workdir="/",
                serial=True,
                called=f"import {' '.join(options.imports)}",
            ),
        ]
    return Toolchain(
        commands=tuple(commands),
        environment={
            **common_environment(accelerator, jobs),
            **({"LDFLAGS": "-Wl,--strip-debug"} if strip else {}),
            "PIP_CACHE_DIR": "/cache/pip",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_COLOR": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        },
        programs=(options.python,),
        caches={"pip": "/cache/pip"},
        cached="path",
    )
