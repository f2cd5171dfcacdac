"""The whole job with real containers: packages, a compiled program, a push, and podman running what was pushed."""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cli import Program
from support.needs import need, need_root
from support.podman import output_of_image
from support.registry import RunningRegistry

from assembler.gc import collect, plan_gc
from assembler.oci.digest import Digest
from assembler.oci.layout import Store

pytestmark = [pytest.mark.tools, pytest.mark.slow]

MANIFEST = """\
manifest: 1
name: hello
devel: base.yaml
runtime: base.yaml
sources: {hello: {path: ./hello}}
compile:
  hello:
    toolchain: cmake
    source: hello
    packages: {apt: [cmake, ninja-build, gcc, libc6-dev, ccache]}
    artifacts: {programs: bin/hello, libraries: "bin/*.so*"}
layers:
  - packages: {apt: [libgomp1]}
  - copy: {artifact: hello.libraries, to: /app/}
  - copy: {artifact: hello.programs, to: /app/}
  - run: {command: [sh, -ec, "/app/hello > /etc/greeting; rm /etc/issue"]}
image:
  entrypoint: [/app/hello]
compression: gzip
"""
BASE = """\
manifest: 1
name: base
runtime: {bootstrap: {suite: bookworm, packages: [ca-certificates]}}
compression: gzip
"""
CMAKE = """\
cmake_minimum_required(VERSION 3.20)
project(hello C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(greeting SHARED greeting.c)
set_target_properties(greeting PROPERTIES VERSION 1.0 SOVERSION 1)
add_executable(hello hello.c)
target_link_libraries(hello greeting)
"""
FILES = {
    "CMakeLists.txt": CMAKE,
    "greeting.c": 'const char *greeting(void) { return "hello from a container"; }\n',
    "hello.c": "#include <stdio.h>\nconst char *greeting(void);\nint main(void) { puts(greeting()); return 0; }\n",
}


def write_project(directory: Path) -> Path:
    (directory / "hello").mkdir(parents=True)
    for name, text in FILES.items():
        (directory / "hello" / name).write_text(text)
    (directory / "base.yaml").write_text(BASE)
    (directory / "hello.yaml").write_text(MANIFEST)
    return directory / "hello.yaml"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the project and a cache that the tests of this file share."""
    need_root()
    need("buildah")
    room = tmp_path_factory.mktemp("containers")
    write_project(room / "project")
    return room


@pytest.fixture(scope="module")
def program(room: Path) -> Program:
    return Program(room / "cache")


@pytest.fixture(scope="module")
def pushed(room: Path, program: Program, registry: RunningRegistry) -> str:
    """The image, assembled and pushed: `REPOSITORY@DIGEST`."""
    return program.ok(room / "project/hello.yaml", "--push", f"{registry.host}/e2e/hello:1")


def containers_left(cache: Path) -> list[str]:
    """Working containers in the cache's storage, and mounts below the cache."""
    found = []
    for path in cache.rglob("containers.json"):
        found += [name for entry in json.loads(path.read_text() or "[]") or [] for name in entry.get("names", [])]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return found + [place for place in mounts if place.startswith(str(cache)) and place.endswith("/merged")]


def test_podman_runs_what_was_pushed(pushed: str) -> None:
    assert output_of_image(pushed) == "hello from a container\n"


def test_nothing_is_left_but_the_cache(program: Program, pushed: str) -> None:
    assert containers_left(program.cache) == []
    assert not list((program.cache / "runs").iterdir())


def test_the_second_time_nothing_runs(room: Path, program: Program, pushed: str) -> None:
    ended = program(room / "project/hello.yaml", "--progress", "json")
    outcomes = {
        event["outcome"]
        for event in map(json.loads, ended.stderr.splitlines())
        if event["event"] == "step_finished"
    }
    assert outcomes <= {"cached", "ok", "present"}
    plan = program("plan", room / "project/hello.yaml")
    assert plan.code == 0, plan.stdout


def test_another_checkout_starts_no_compiler_and_a_change_compiles_one_file(
    room: Path, program: Program, pushed: str, tmp_path: Path
) -> None:
    shutil.copytree(room / "project", tmp_path / "checkout")
    manifest = tmp_path / "checkout/hello.yaml"
    (found,) = json.loads(program.ok(manifest, "--json"))
    assert (found["digest"], found["compiler_caches"]) == (pushed.partition("@")[2], [])
    source = tmp_path / "checkout/hello/hello.c"
    source.write_text(source.read_text().replace("return 0", "return 0 * 7"))
    (found,) = json.loads(program.ok(manifest, "--json"))
    assert found["compiler_caches"] == [{"step": "compile:hello", "cache": "ccache", "hits": 1, "misses": 1}]
    (found,) = json.loads(program.ok(manifest, "--json"))
    assert (found["built"], found["compiler_caches"]) == (False, [])


def test_what_a_command_changed_is_its_layer(room: Path, program: Program, pushed: str) -> None:
    """The file written and the file removed, and no trace of the container engine or of the clock."""
    value = json.loads(program.ok("inspect", "hello", "--files", "--json"))
    files = {file["path"] for file in value["layers"][-1]["files"]}
    assert files == {"etc/greeting", "etc/.wh.issue"}
    packages = {file["path"] for file in value["layers"][1]["files"]}
    assert any(path.endswith("libgomp.so.1") for path in packages)
    assert not any(
        path.startswith(("var/lib/apt/lists/", "var/cache/apt/", "var/log/", "tmp/")) for path in packages
    )


def test_umoci_sees_the_same_root(room: Path, program: Program, pushed: str) -> None:
    program.ok(room / "project/hello.yaml", "--output", f"oci:{room / 'layout'}")
    subprocess.run(
        [need("umoci"), "unpack", "--image", f"{room / 'layout'}:hello", str(room / "bundle")],
        check=True,
        capture_output=True,
    )
    root = room / "bundle/rootfs"
    assert (root / "etc/greeting").read_text() == "hello from a container\n"
    assert not (root / "etc/issue").exists()
    assert (root / "lib").is_symlink(), "the base's usr-merge link is still one"
    assert (root / "app/libgreeting.so.1").is_symlink()


def test_another_cache_gives_the_same_digest(room: Path, program: Program, pushed: str, tmp_path: Path) -> None:
    """Compiled again in another directory, with another umask, locale and time zone: the same image."""
    other = write_project(tmp_path / "elsewhere")
    for lock in (room / "project").glob("*.lock.yaml"):
        shutil.copy(lock, other.parent)
    again = Program(tmp_path / "cache")
    shutil.copytree(program.cache / "store/blobs", again.cache / "store/blobs")  # the .debs, to spare the mirror
    digest = again.ok(other, "--locked", "--offline", umask=0o077, env={"TZ": "Asia/Tokyo", "LC_ALL": "C"})
    assert digest.rpartition("@")[2] == pushed.rpartition("@")[2]


def test_a_cold_node_with_a_warm_cache_starts_no_container(
    room: Path, program: Program, pushed: str, registry: RunningRegistry, tmp_path: Path
) -> None:
    cache = f"{registry.host}/e2e/cache"
    manifest = room / "project/hello.yaml"
    program.ok(manifest, "--push", f"{registry.host}/e2e/hello:1", "--cache-to", cache)
    no_tools = {"PATH": str(tmp_path)}
    cold = Program(tmp_path / "cold")
    target = f"{registry.host}/cold/hello:1"
    again = cold(manifest, "--push", target, "--cache-from", cache, env=no_tools)
    assert again.stdout.strip().endswith(pushed.rpartition("@")[2]), again.stderr
    assert len(list((cold.cache / "store/blobs/sha256").iterdir())) == 2, "the image's manifest and config"
    # What differs is packed here, of what was compiled elsewhere; packages and base are taken as they are.
    other = tmp_path / "other"
    shutil.copytree(room / "project", other)
    text = MANIFEST.partition("  - run:")[0].replace("to: /app/", "to: /opt/") + "compression: gzip\n"
    (other / "hello.yaml").write_text(text)
    (result,) = cold(other / "hello.yaml", "--push", target, "--cache-from", cache, "--json", env=no_tools).json()
    assert result["built"]
    assert program.ok(other / "hello.yaml").endswith(result["digest"]), "as the node that has everything makes it"


def test_bases_in_a_registry_give_the_same_layers(
    room: Path, program: Program, pushed: str, registry: RunningRegistry, tmp_path: Path
) -> None:
    """Compiled and run in bases that come by reference: what we add is what it is on a base of our own."""
    base = program.ok(room / "project/base.yaml", "--push", f"{registry.host}/e2e/base:1")
    other = write_project(tmp_path / "referred")
    bases = ["--base", f"devel={registry.host}/e2e/base:1", "--base", f"runtime={registry.host}/e2e/base:1"]
    image = program.ok(other, *bases, "--push", f"{registry.host}/e2e/referred:1")
    own, referred = (json.loads(program.ok("inspect", name, "--json")) for name in (pushed, image))
    assert [layer["digest"] for layer in referred["layers"]] == [layer["digest"] for layer in own["layers"]]
    assert base.partition("@")[2] in json.dumps(referred)


def test_gc_keeps_the_packages_of_an_image_that_is_kept(
    room: Path, program: Program, pushed: str, tmp_path: Path
) -> None:
    """Long after the last build, and also those which only the compiler's container has."""
    store = Store(tmp_path / "store")
    shutil.copytree(program.cache / "store", store.root, copy_function=os.link)
    shutil.rmtree(store.root / "keys")
    shutil.copytree(program.cache / "store/keys", store.root / "keys")
    for path in (store.root / "keys").rglob("*.json"):
        os.utime(path, (1, 1))
    freed = collect(plan_gc(store))
    assert freed.blobs
    text = "".join(path.read_text() for path in (room / "project").glob("*.lock.yaml"))
    locked = set(re.findall(r"\bsha256: \"?([0-9a-f]{64})\b", text))
    assert len(locked) > 150, "of the base, of the compiler's container, of the layer"
    assert [digest for digest in locked if not store.has(Digest.from_hex(digest))] == []


def test_a_kill_at_any_moment_costs_only_the_step(
    room: Path, program: Program, pushed: str, tmp_path: Path
) -> None:
    """kill -9 at random points: the next run succeeds with the same digest, and leaves no container."""
    cache = tmp_path / "cache"
    shutil.copytree(program.cache / "store/blobs", cache / "store/blobs")
    victim = Program(cache)
    manifest = room / "project/hello.yaml"
    chance = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID", "kill"))  # noqa: S311
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-m", "assembler", str(manifest)],
            env=victim.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(0.5, 12))
        child.send_signal(signal.SIGKILL)
        child.wait()
    digest = victim.ok(manifest)
    assert digest.rpartition("@")[2] == pushed.rpartition("@")[2]
    assert containers_left(cache) == []


def test_an_interrupt_leaves_nothing_behind(room: Path, program: Program, pushed: str, tmp_path: Path) -> None:
    project = write_project(tmp_path / "slow")
    for lock in (room / "project").glob("*.lock.yaml"):
        shutil.copy(lock, project.parent)
    text = project.read_text().replace("/app/hello > /etc/greeting", "sleep 600")
    project.write_text(text)
    child = subprocess.Popen(
        [sys.executable, "-m", "assembler", str(project), "--progress", "plain"],
        env=program.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    with child.stderr as lines:
        for line in lines:
            if line.startswith("run ") and "started" in line:
                break
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        rest = lines.read()
    assert child.wait(30) == 130, rest
    assert containers_left(program.cache) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("bin/hello,", "bin/helo,", "`bin/helo` matches nothing"),
        ("cmake, ninja-build,", "ninja-build,", "cmake"),
        ("libgomp1", "libgomp99", "libgomp99"),
        ("[sh, -ec,", "[nosuchshell, -ec,", "nosuchshell"),
    ],
)
def test_what_is_wrong_is_named(
    room: Path, program: Program, pushed: str, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    project = write_project(tmp_path / "wrong")
    project.write_text(MANIFEST.replace(old, new))
    ended = program(project)
    assert ended.code in (1, 2)
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr
    assert containers_left(program.cache) == []


def test_a_failed_compile_shows_its_last_lines(room: Path, program: Program, pushed: str, tmp_path: Path) -> None:
    project = write_project(tmp_path / "broken")
    for lock in (room / "project").glob("*.lock.yaml"):
        shutil.copy(lock, project.parent)
    (project.parent / "hello/hello.c").write_text("int main(void) { return nonsense; }\n")
    ended = program(project)
    assert ended.code == 1
    assert "nonsense" in ended.stderr
    for word in ("log:", "run it again:"):
        assert word in ended.stderr


def two_steps(directory: Path, one: str, other: str) -> Path:
    """A manifest whose two compile steps run these shell commands."""
    steps = "".join(
        f"  {name}:\n    toolchain: script\n    source: hello\n"
        f"    script: {{commands: [{json.dumps(['sh', '-ec', command])}]}}\n    artifacts: {{made: made}}\n"
        for name, command in (("one", one), ("other", other))
    )
    (directory / "two.yaml").write_text(
        "manifest: 1\nname: two\ndevel: base.yaml\nruntime: scratch\nsources: {hello: {path: ./hello}}\n"
        f"compile:\n{steps}layers:\n"
        "  - copy: {artifact: one.made, to: /one}\n  - copy: {artifact: other.made, to: /other}\n"
    )
    return directory / "two.yaml"


def test_steps_compile_side_by_side_within_one_budget(room: Path, program: Program) -> None:
    manifest = two_steps(
        room / "project", "sleep 3; echo $MAX_JOBS > /build/made", "sleep 3; echo 2 > /build/made"
    )
    done = program(manifest, "--jobs", "5", "--progress", "json")
    assert done.code == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    ended = [
        datetime.datetime.fromisoformat(event["time"]).timestamp()
        for event in events
        if event["event"] == "step_finished" and event["verb"] == "compile"
    ]
    assert len(ended) == 2
    assert abs(ended[0] - ended[1]) < 3, "or else one of them waited for the other"


def test_the_error_of_one_step_ends_the_others(room: Path, program: Program) -> None:
    manifest = two_steps(room / "project", "sleep 1; exit 7", "sleep 300; echo never > /build/made")
    started = time.monotonic()
    done = program(manifest, "--jobs", "4")
    assert done.code == 1
    assert "one: `sh -ec 'sleep 1; exit 7'` exited with 7" in done.stderr
    assert "other" not in done.stderr.partition("error:")[2]
    assert time.monotonic() - started < 100
    assert containers_left(program.cache) == []
