"""Wheels become the entries that installers leave: by the specification, and as uv does it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.raw_wheels import DATA, INFO, WHEEL, Member, files, locked, record_line, wheel
from support.venv_comparison import compare

from assembler.oci.layout import Store
from assembler.pack.wheel_collisions import Collisions
from assembler.pack.wheel_environment import Environment, environment_of
from assembler.pack.wheel_groups import WheelGroup
from assembler.pack.wheel_install import wheel_entries
from assembler.pack.wheel_layer import group_entries
from assembler.pack.wheel_record import parse_record
from assembler.pack.wheel_scripts import shebang, versioned_pip
from assembler.tree.entry import Entry, ZipMember

VENV = environment_of("/opt/venv", "3.11", "/usr/bin/python3.11", bytecode=False)
SITE = "opt/venv/lib/python3.11/site-packages"
INIT = Member("demo/__init__.py", b"VERSION = 1\n")
POINTS = b"""\
[console_scripts]
demo = demo.cli:main
Demo.Nested = demo.cli:Command.run [extra]
[gui_scripts]
demo-window = demo.gui:show
[other]
ignored = not a reference
"""


def installed(path: Path, environment: Environment = VENV, **fields: object) -> dict[str, Entry]:
    entries = wheel_entries(locked(path, **fields), path, environment)
    assert len({entry.path for entry in entries}) == len(entries)
    return {entry.path: entry for entry in entries}


def data(entry: Entry) -> bytes:
    assert isinstance(entry.content, bytes)
    assert len(entry.content) == entry.size
    return entry.content


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pip", "pip3", "pip3.13"], ["pip", "pip3", "pip3.11"]),
        (["pip", "pipx"], ["pip", "pip3", "pip3.11", "pipx"]),
        (["pip3"], ["pip3"]),
        ([], []),
    ],
)
def test_pip_is_named_after_the_python_too(names: list[str], expected: list[str]) -> None:
    found = versioned_pip({name: (f"of.{name}", "main") for name in names}, "3.11")
    assert sorted(found) == expected
    assert {found[name][0] for name in expected if name != "pipx"} <= {"of.pip", "of.pip3"}


def test_each_part_goes_where_it_belongs(tmp_path: Path) -> None:
    schemes = {
        f"{DATA}/{scheme}/{scheme}.x": b"x" for scheme in ("purelib", "platlib", "data", "headers", "scripts")
    }
    found = installed(wheel(INIT, *files(schemes)).write(tmp_path))
    assert sorted(found) == [
        "opt/venv/bin/scripts.x",
        "opt/venv/data.x",
        "opt/venv/include/site/python3.11/demo/headers.x",
        f"{SITE}/{INFO}/INSTALLER",
        f"{SITE}/{INFO}/METADATA",
        f"{SITE}/{INFO}/RECORD",
        f"{SITE}/{INFO}/REQUESTED",
        f"{SITE}/{INFO}/WHEEL",
        f"{SITE}/demo/__init__.py",
        f"{SITE}/platlib.x",
        f"{SITE}/purelib.x",
    ]


@pytest.mark.parametrize(
    ("into", "packages", "scripts", "share", "headers"),
    [
        (
            "/usr/lib/python3/dist-packages",
            "usr/lib/python3/dist-packages",
            "usr/bin",
            "usr",
            "usr/include/python3.11",
        ),
        (
            "/usr/local/lib/python3.11/dist-packages",
            "usr/local/lib/python3.11/dist-packages",
            "usr/local/bin",
            "usr/local",
            "usr/local/include/python3.11",
        ),
        (
            "/opt/py/lib64/python3.11/site-packages",
            "opt/py/lib64/python3.11/site-packages",
            "opt/py/bin",
            "opt/py",
            "opt/py/include/python3.11",
        ),
        (
            "/app/site-packages",
            "app/site-packages",
            "app/site-packages/bin",
            "app/site-packages",
            "app/site-packages/include",
        ),
    ],
)
def test_a_directory_of_packages(
    into: str, packages: str, scripts: str, share: str, headers: str, tmp_path: Path
) -> None:
    environment = environment_of(into, "3.11", "/usr/bin/python3.11", bytecode=False)
    assert not environment.venv
    members = files(
        {f"{DATA}/data/share/x": b"x", f"{DATA}/headers/x.h": b"x", f"{INFO}/entry_points.txt": POINTS}
    )
    found = installed(wheel(INIT, *members).write(tmp_path), environment)
    assert {f"{packages}/demo/__init__.py", f"{share}/share/x", f"{headers}/demo/x.h", f"{scripts}/demo"} <= set(
        found
    )
    assert data(found[f"{scripts}/demo"]).startswith(b"#!/usr/bin/python3.11\n")


@pytest.mark.parametrize("into", ["opt/venv", "/", "/opt/../venv", "/opt//venv", "/opt/venv/", "/opt/ve\nnv"])
def test_environments_that_cannot_be(into: str) -> None:
    with pytest.raises(ValueError, match="expected an absolute path"):
        environment_of(into, "3.11", "/usr/bin/python3.11", bytecode=False)


def test_scripts_of_entry_points(tmp_path: Path) -> None:
    found = installed(wheel(INIT, Member(f"{INFO}/entry_points.txt", POINTS)).write(tmp_path))
    scripts = {path.removeprefix("opt/venv/bin/"): entry for path, entry in found.items() if "/bin/" in path}
    assert sorted(scripts) == ["Demo.Nested", "demo", "demo-window"]
    assert {entry.mode for entry in scripts.values()} == {0o755}
    assert data(scripts["Demo.Nested"]).decode() == (
        "#!/opt/venv/bin/python\nimport sys\n\nfrom demo.cli import Command\n\n"
        'if __name__ == "__main__":\n    sys.exit(Command.run())\n'
    )


def test_scripts_that_name_python(tmp_path: Path) -> None:
    scripts = {
        "plain": b"#!python\nimport demo\n",
        "window": b"#!pythonw -u\r\nimport demo\n",
        "only": b"#!python",
        "shell": b"#!/bin/sh\n",
        "other": b"#!/usr/bin/env python\n",
        "empty": b"",
    }
    members = [Member(f"{DATA}/scripts/{name}", text) for name, text in scripts.items()]
    found = installed(wheel(INIT, *members).write(tmp_path))
    made = {name: found[f"opt/venv/bin/{name}"] for name in scripts}
    assert {entry.mode for entry in made.values()} == {0o755}
    assert data(made["plain"]) == b"#!/opt/venv/bin/python\nimport demo\n"
    assert data(made["window"]) == b"#!/opt/venv/bin/python\nimport demo\n"
    assert data(made["only"]) == b"#!/opt/venv/bin/python\n"
    assert all(isinstance(made[name].content, ZipMember) for name in ("shell", "other", "empty"))


@pytest.mark.parametrize("directory", ["plain", "l" * 60 + "/" + "o" * 60 + "/" + "n" * 60, "with blank", "it's"])
def test_any_path_of_an_interpreter_starts(directory: str, tmp_path: Path) -> None:
    place = tmp_path / directory
    place.mkdir(parents=True)
    (place / "python").symlink_to(sys.executable)
    script = tmp_path / "script"
    script.write_bytes(shebang(str(place / "python")) + b"import sys\nprint(sys.argv[1:])\n")
    script.chmod(0o755)
    done = subprocess.run([str(script), "a b", "c"], capture_output=True, text=True, check=True)
    assert done.stdout == "['a b', 'c']\n"


def test_record_lists_what_is_installed(tmp_path: Path) -> None:
    members = (
        *files(
            {
                f"{DATA}/data/share/a,b": b"x",
                f"{DATA}/scripts/run": b"#!python\n",
                f"{INFO}/entry_points.txt": POINTS,
            }
        ),
        Member(f"{INFO}/RECORD.jws", b"signature"),
        Member(f"{INFO}/INSTALLER", b"somebody else"),
    )
    raw = wheel(INIT, *members, record=lambda lines: [line for line in lines if ".jws" not in line])
    found = installed(raw.write(tmp_path), direct={"url": "https://host/demo.whl"})
    text = data(found[f"{SITE}/{INFO}/RECORD"])
    rows = parse_record(text, "ours")
    assert list(rows) == sorted(rows)
    places = {str(Path(f"/{SITE}", path).resolve())[1:] for path in rows}
    assert places == set(found)
    assert rows[f"{INFO}/RECORD"][1:] == ("", None)
    assert rows[f"{INFO}/RECORD.jws"][1:] == ("", None)
    assert rows["demo/__init__.py"].size == INIT_SIZE
    assert "../../../share/a,b" in rows
    for path in ("../../../bin/run", "../../../bin/demo", f"{INFO}/INSTALLER", f"{INFO}/direct_url.json"):
        entry = next(entry for name, entry in found.items() if name.endswith(path.lstrip("./")))
        assert record_line(path, data(entry)) == ",".join(str(each) for each in rows[path])


INIT_SIZE = len(INIT.data)


def test_files_of_the_installer(tmp_path: Path) -> None:
    url = {"url": "https://host/demo.whl", "archive_info": {"hashes": {"sha256": "ab"}}}
    path = wheel(INIT, Member(f"{INFO}/direct_url.json", b"{}")).write(tmp_path)
    found = installed(path, direct=url)
    assert data(found[f"{SITE}/{INFO}/INSTALLER"]) == b"assemble\n"
    assert data(found[f"{SITE}/{INFO}/REQUESTED"]) == b""
    assert json.loads(data(found[f"{SITE}/{INFO}/direct_url.json"])) == url
    assert f"{SITE}/{INFO}/direct_url.json" not in installed(path)


def test_who_asked_for_a_wheel_does_not_show(tmp_path: Path) -> None:
    path = wheel(INIT).write(tmp_path)
    assert installed(path, requested=True) == installed(path, requested=False)


def test_modes(tmp_path: Path) -> None:
    modes = {"plain": 0o100644, "secret": 0o100600, "runs": 0o100755, "odd": 0o100710, "none": 0}
    found = installed(wheel(*(Member(f"demo/{name}", mode=mode) for name, mode in modes.items())).write(tmp_path))
    assert {name: found[f"{SITE}/demo/{name}"].mode for name in modes} == {
        "plain": 0o644,
        "secret": 0o644,
        "runs": 0o755,
        "odd": 0o755,
        "none": 0o644,
    }


def test_lib64_of_a_virtual_environment_stays_a_link(tmp_path: Path) -> None:
    found = installed(wheel(INIT, Member(f"{DATA}/data/lib64/libx.so", b"x")).write(tmp_path))
    assert "opt/venv/lib/libx.so" in found
    rows = parse_record(data(found[f"{SITE}/{INFO}/RECORD"]), "ours")
    assert "../../libx.so" in rows


def test_an_old_wrapper_gives_way_to_the_entry_point(tmp_path: Path) -> None:
    members = files({f"{INFO}/entry_points.txt": POINTS, f"{DATA}/scripts/demo": b"#!python\nold wrapper\n"})
    found = installed(wheel(INIT, *members).write(tmp_path))
    assert b"from demo.cli import main" in data(found["opt/venv/bin/demo"])


def test_the_environment_itself(store: Store) -> None:
    entries = group_entries(WheelGroup(name="venv", wheels=()), VENV, lambda _: Path(), store)
    found = {entry.path: entry for entry in entries}
    assert {path: found[path].link for path in found if found[path].kind == "symlink"} == {
        "opt/venv/bin/python": "/usr/bin/python3.11",
        "opt/venv/bin/python3": "python",
        "opt/venv/bin/python3.11": "python",
        "opt/venv/lib64": "lib",
    }
    assert found[SITE].kind == "directory"
    assert b"home = /usr/bin\n" in data(found["opt/venv/pyvenv.cfg"])


def test_the_environment_can_be_activated(store: Store, tmp_path: Path) -> None:
    environment = environment_of(str(tmp_path / "venv"), "3.11", sys.executable, bytecode=False)
    entries = group_entries(WheelGroup(name="venv", wheels=()), environment, lambda _: Path(), store)
    script = next(data(entry) for entry in entries if entry.path.endswith("bin/activate"))
    (tmp_path / "activate").write_bytes(script)
    show = 'echo "${VIRTUAL_ENV-none} ${PATH%%:*} ${PYTHONHOME-none}"'
    text = f'. "$1"; {show}; deactivate; {show}'
    done = subprocess.run(
        ["sh", "-euc", text, "sh", str(tmp_path / "activate")],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONHOME": "/x"},
    )
    venv = tmp_path / "venv"
    assert done.stdout.splitlines() == [f"{venv} {venv}/bin none", "none /usr/bin /x"]


def test_wheels_that_write_the_same_path(tmp_path: Path, store: Store) -> None:
    shared = Member("shared/__init__.py")
    one = wheel(INIT, shared, Member("tests/conftest.py", b"one")).write(tmp_path)
    two = wheel(
        *(shared, Member("tests/conftest.py", b"two"), Member("demo", b"no directory")),
        info="two-1.0.dist-info",
    ).write(tmp_path, "two-1.0-py3-none-any.whl")
    paths = {locked(one): one, locked(two): two}
    collisions = Collisions()
    for wheel_file, path in paths.items():
        collisions.add(wheel_file.label, wheel_entries(wheel_file, path, VENV))
    assert [str(each) for each in collisions.found] == [
        f"`/{SITE}/tests/conftest.py` is in demo==1.0 and in two==1.0 and differs; the one of two==1.0 is used",
        f"`/{SITE}/demo` is in demo==1.0 and in two==1.0 and differs; the one of two==1.0 is used",
    ]
    group = WheelGroup(name="both", wheels=tuple(paths))
    with pytest.raises(Exception, match=r"demo-1\.0-py3-none-any\.whl.*lies below.*two-1\.0-py3-none-any\.whl"):
        group_entries(group, VENV, lambda wheel_file: paths[wheel_file], store)


AWKWARD = {
    "unicode": wheel(
        Member("demo/größe.py", b"x"),
        Member("demo/日本語/__init__.py"),
        Member("demo/e\u0301.txt", b"not composed"),
    ),
    "names": wheel(
        *(Member(f"demo/{name}", b"x") for name in ("with blank", "a,b", 'quo"ted', "-dash", ".hidden", "x" * 200))
    ),
    "deep": wheel(Member("/".join(["demo", *("directory" for _ in range(30)), "file.py"]), b"x")),
    "stored": wheel(Member("demo/__init__.py", b"x = 1\n", deflated=False), Member("demo/e", deflated=False)),
    "described": wheel(Member("demo/a.py", b"x = 1\n" * 99, described=True), Member("demo/b.py", b"x")),
    "zip64": wheel(Member("demo/a.py", b"x = 1\n" * 99, zip64=True), Member("demo/b", bytes(3 << 20), zip64=True)),
    "zero bytes": wheel(*(Member(f"demo/empty{number}") for number in range(9))),
    "namespace": wheel(Member("names/space/demo/__init__.py", b"x")),
    "path file": wheel(INIT, Member("demo.pth", b"import os\n")),
    "platlib": wheel(INIT, Member(f"{DATA}/purelib/p.py", b"x"), wheel=WHEEL.replace(b"true", b"false")),
    "schemes": wheel(
        INIT,
        *files({f"{DATA}/data/etc/demo.conf": b"x", f"{DATA}/headers/demo.h": b"x", f"{DATA}/platlib/q.py": b"x"}),
        Member(f"{DATA}/scripts/run", b"#!python\nprint()\n", mode=0o100755),
        Member(f"{DATA}/scripts/binary", b"\x7fELF" + bytes(3 << 20), mode=0o100755),
        Member(f"{INFO}/entry_points.txt", POINTS.split(b"[other]")[0]),
    ),
    "directories": wheel(INIT, Member("demo/sub/", mode=0o040755), Member("demo/sub/x.py", b"x")),
    "a comment": wheel(INIT, comment=b"made by hand"),
    "executable": wheel(INIT, Member("demo/tool", b"\x7fELF", mode=0o100755)),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_as_uv_does_it(name: str, tmp_path: Path, store: Store) -> None:
    assert compare(tmp_path / "venv", [AWKWARD[name].write(tmp_path)], store) == []
