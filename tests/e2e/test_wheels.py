"""Real wheels from the index on a bootstrapped Debian: locked, laid, and used in a container as in a real venv."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import Program
from support.containers import empty_storage_at_the_end
from support.needs import need

from assembler.build.container import Buildah, Container
from assembler.build.node import probe_storage
from assembler.build.runs import RunDirectory
from assembler.events import ignore
from assembler.manifest.lock import read_lock
from assembler.oci.layout import Store

pytestmark = [pytest.mark.tools, pytest.mark.slow]

BASE = "manifest: 1\nname: base\nruntime: {bootstrap: {suite: bookworm, packages: [python3]}}\n"
MANIFEST = """\
manifest: 1
name: tools
devel: base.yaml
runtime: base.yaml
sources: {own: {path: ./own}}
compile:
  own:
    toolchain: script
    source: own
    script: {commands: [[python3, make.py]]}
    artifacts: {wheel: "dist/*.whl"}
layers:
  - wheels:
      requirements:
        - requests[socks]
        - numpy
        - pyyaml
        - rich>=13
        - pytest
        - zope.interface
        - zope.event
        - pip
        - uv
        - colorama; sys_platform == 'win32'
      constraints: [urllib3<3]
      split: 1m
  - wheels: {artifact: own.wheel}
image: {env: {PATH: "/opt/venv/bin:${PATH}"}}
"""
MAKE = '''\
"""Makes the wheel of `own`, as a build backend would."""
import base64, hashlib, os, zipfile
os.makedirs("/build/dist", exist_ok=True)
info = "own-0.1.dist-info"
files = {
    "own/__init__.py": "def main():\\n    import rich\\n    print('own runs with', rich.__name__)\\n",
    "own/__main__.py": "from own import main\\nmain()\\n",
    f"{info}/METADATA": "Metadata-Version: 2.1\\nName: own\\nVersion: 0.1\\nRequires-Dist: rich>=13\\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: own\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    f"{info}/entry_points.txt": "[console_scripts]\\nown = own:main\\n",
}
def digest(text):
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
record = "".join(f"{name},sha256={digest(text)},{len(text)}\\n" for name, text in files.items())
record += f"{info}/RECORD,,\\n"
with zipfile.ZipFile("/build/dist/own-0.1-py3-none-any.whl", "w") as archive:
    for name, text in {**files, f"{info}/RECORD": record}.items():
        archive.writestr(zipfile.ZipInfo(name), text)
'''
ENTRIES = "import importlib.metadata as m; print(sorted(d.metadata['Name'].lower() for d in m.distributions()))"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the project and a cache that the tests of this file share."""
    if os.geteuid() != 0:
        pytest.skip("containers without root have tests of their own")
    need("buildah")
    room = tmp_path_factory.mktemp("wheels")
    project = room / "project"
    (project / "own").mkdir(parents=True)
    (project / "own/make.py").write_text(MAKE)
    (project / "base.yaml").write_text(BASE)
    (project / "tools.yaml").write_text(MANIFEST)
    return room


@pytest.fixture(scope="module")
def program(room: Path) -> Program:
    return Program(room / "cache")


@pytest.fixture(scope="module")
def digest(room: Path, program: Program) -> str:
    """The image, assembled: its digest."""
    return program.ok(room / "project/tools.yaml").rpartition("@")[2]


@pytest.fixture(scope="module")
def container(room: Path, program: Program, digest: str) -> Iterator[Container]:
    """A container of the image, in the storage of the cache."""
    store = Store(program.cache / "store")
    with empty_storage_at_the_end(program.cache), RunDirectory.create(program.cache) as run:
        buildah = Buildah(probe_storage(program.cache), run, ignore)
        descriptor = store.find("tools")
        assert descriptor is not None
        buildah.import_image(store, descriptor.digest, "localhost/tools:test")
        with buildah.container("localhost/tools:test", "tools") as container:
            yield container


def said(container: Container, *argv: str, network: bool = False) -> str:
    return container.run(argv, network="host" if network else "none").stdout


def test_programs_of_wheels_run(container: Container) -> None:
    assert said(container, "pytest", "--version").startswith("pytest ")
    assert said(container, "python", "-m", "pytest", "--version").startswith("pytest ")
    assert "uv " in said(container, "uv", "--version")
    assert said(container, "own") == "own runs with rich\n"
    assert said(container, "python", "-m", "own") == "own runs with rich\n"


def test_the_environment_is_a_venv(container: Container) -> None:
    code = "import sys, sysconfig; print(sys.prefix, sys.base_prefix, sysconfig.get_path('purelib'))"
    assert said(container, "python", "-c", code).split() == [
        "/opt/venv",
        "/usr",
        "/opt/venv/lib/python3.11/site-packages",
    ]


def test_packages_import(container: Container) -> None:
    code = (
        "import numpy, yaml, requests, socks, zope.interface, zope.event, rich.console;"
        "assert numpy.ones((40, 40)).dot(numpy.ones(40)).sum() == 1600 * 1.0;"
        "assert yaml.safe_load('a: 1') == {'a': 1} and yaml.__with_libyaml__; print('ok')"
    )
    assert said(container, "python", "-c", code) == "ok\n"


def test_what_is_installed_is_what_is_locked(room: Path, container: Container) -> None:
    entry = read_lock(room / "project/tools.lock.yaml").entry("wheels", "/opt/venv")
    assert entry is not None
    wheels: list[dict[str, str]] = entry.answer["wheels"]  # type: ignore[assignment]
    listed = {
        each["name"].lower(): each["version"]
        for each in json.loads(said(container, "pip", "list", "--format", "json"))
    }
    expected = {wheel["name"]: wheel["version"] for wheel in wheels} | {"own": "0.1"}
    assert {name.replace(".", "-").replace("_", "-"): version for name, version in listed.items()} == expected
    assert "colorama" not in listed


def test_pip_and_uv_find_nothing_to_complain_of(container: Container) -> None:
    assert said(container, "pip", "check") == "No broken requirements found.\n"
    done = container.run(["uv", "pip", "check", "--python", "/opt/venv/bin/python", "--no-cache"])
    assert "All installed packages are compatible" in done.stderr + done.stdout


def test_pip_can_take_a_package_away_again(container: Container) -> None:
    """RECORD tells pip which files are whose."""
    said(container, "pip", "uninstall", "--yes", "own")
    assert container.run(["test", "-e", "/opt/venv/bin/own"], check=False).returncode == 1
    said(container, "python", "-c", "import rich")


def test_the_second_time_nothing_is_done(room: Path, program: Program, digest: str) -> None:
    plan = program("plan", room / "project/tools.yaml")
    assert (plan.code, "nothing to do" in plan.stdout) == (0, True), plan.stdout
    again = program.ok(room / "project/tools.yaml", "--locked", "--offline")
    assert again.rpartition("@")[2] == digest


def test_a_built_wheel_that_asks_for_more_makes_the_lock_stale(room: Path, program: Program, digest: str) -> None:
    source = room / "project/own/make.py"
    source.write_text(MAKE.replace("Requires-Dist: rich>=13", "Requires-Dist: rich>=13\\nRequires-Dist: attrs"))
    try:
        ended = program(room / "project/tools.yaml", "--locked")
        assert ended.code == 2
        assert "the wheels of `own.wheel` ask for something else than when they were locked" in ended.stderr
        assert "new: own attrs" in ended.stderr
        program.ok("lock", "--update", "/opt/venv", "--", room / "project/tools.yaml")
        program.ok(room / "project/tools.yaml", "--locked")
    finally:
        source.write_text(MAKE)
