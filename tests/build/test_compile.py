"""Compile steps in a real devel container: what they leave, and that they leave nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.devel import DEVEL, DevelRoom, devel_room
from support.needs import need

from assembler.build.budget import Budget
from assembler.build.compile import compile_step
from assembler.build.elf import read_elf
from assembler.build.harvest import ArtifactBundle, bundle_entries
from assembler.errors import RequestError, StepError
from assembler.events import Emit, Event, Note, StepOutput
from assembler.manifest.models import CompileStep
from assembler.process import run, spawned
from assembler.tree.entry import Slice

pytestmark = [pytest.mark.tools, pytest.mark.slow]

CMAKE = """\
cmake_minimum_required(VERSION 3.20)
project(hello C CXX)
add_library(greeting SHARED greeting.c)
set_target_properties(greeting PROPERTIES VERSION 1.2 SOVERSION 1)
add_executable(hello hello.cpp)
target_link_libraries(hello greeting)
install(TARGETS hello greeting)
"""
PROJECT = {
    "CMakeLists.txt": CMAKE,
    "greeting.c": 'const char *greeting(void) { return "hello from " __FILE__ " of " __DATE__; }\n',
    "hello.cpp": '#include <cstdio>\nextern "C" const char *greeting(); int main() { std::puts(greeting()); }\n',
    "Makefile": "/build/tool: tool.c\n\t$(CC) -g -o $@ $<\n",
    "tool.c": '#include <stdio.h>\nint main(void) { puts("tool"); return 0; }\n',
    "data/model.json": "{}\n",
}
WHOLE = {"programs": "hello", "libraries": "libgreeting.so*"}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevelRoom]:
    need("mmdebstrap", "buildah")
    with devel_room(tmp_path_factory.mktemp("compile") / "cache") as made:
        yield made


def project(directory: Path, files: Mapping[str, str] = PROJECT) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def step(**wish: Any) -> CompileStep:
    return CompileStep.model_validate({"source": "hello", **wish})


def cmake(artifacts: Any = None, **options: Any) -> CompileStep:
    return step(toolchain="cmake", cmake=options, artifacts=artifacts or WHOLE)


def script(*commands: list[str], artifacts: Any, **wish: Any) -> CompileStep:
    return step(toolchain="script", script={"commands": commands}, artifacts=artifacts, **wish)


def build(
    room: DevelRoom,
    description: CompileStep,
    source: Path,
    *,
    cache: Path | None = None,
    emit: Emit | None = None,
    jobs: int = 2,
) -> ArtifactBundle:
    return compile_step(
        room.buildah,
        room.store,
        description,
        image=DEVEL,
        source=source,
        label="hello",
        key="ab" * 32,
        cache=cache or room.cache,
        budget=Budget(jobs, None),
        emit=emit or room.events.append,
        step="compile:hello",
    )


def take(room: DevelRoom, bundle: ArtifactBundle, target: Path, *artifacts: str) -> Path:
    """The artifacts in one directory, as a layer would put them."""
    target.mkdir(parents=True)
    for artifact in artifacts:
        for entry in bundle_entries(room.store, bundle.digest, artifact):
            place = target / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if entry.kind == "symlink":
                place.symlink_to(entry.link)
            elif entry.kind == "directory":
                place.mkdir(exist_ok=True)
            elif isinstance(entry.content, Slice):
                with entry.content.path.open("rb") as file:
                    file.seek(entry.content.offset)
                    place.write_bytes(file.read(entry.size))
                place.chmod(entry.mode)
    return target


def text_of(room: DevelRoom, bundle: ArtifactBundle, artifact: str, tmp_path: Path) -> str:
    (path,) = take(room, bundle, tmp_path / f"text-{artifact}", artifact).iterdir()
    return path.read_text()


def state(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Everything about the files of a tree that a build could change."""
    status = {path.relative_to(directory).as_posix(): path.lstat() for path in [directory, *directory.rglob("*")]}
    return {name: (one.st_mode, one.st_size, one.st_mtime_ns) for name, one in status.items()}


# what comes of it


def test_a_program_finds_its_library_wherever_they_are_put(room: DevelRoom, tmp_path: Path) -> None:
    source = project(tmp_path / "source")
    before = state(source)
    bundle = build(room, cmake(), source)
    assert state(source) == before, "the source is as it was"
    place = take(room, bundle, tmp_path / "somewhere", "programs", "libraries")
    assert sorted(path.name for path in place.iterdir()) == [
        "hello",
        "libgreeting.so",
        "libgreeting.so.1",
        "libgreeting.so.1.2",
    ]
    assert run([str(place / "hello")]).stdout == "hello from /src/greeting.c of Jan  1 1970\n"
    program = read_elf(place / "hello")
    assert program is not None
    assert (program.rpath, program.runpath) == ((), ("$ORIGIN",))
    assert b"/build" not in (place / "hello").read_bytes()


@pytest.mark.parametrize("strip", [True, False])
def test_debug_information_goes_unless_it_is_wanted(room: DevelRoom, tmp_path: Path, strip: bool) -> None:
    description = cmake(**{"build-type": "RelWithDebInfo"}).model_copy(update={"strip": strip})
    place = take(
        room, build(room, description, project(tmp_path / "source")), tmp_path / "out", "programs", "libraries"
    )
    for name in ("hello", "libgreeting.so.1.2"):
        sections = run(["readelf", "--sections", "--wide", str(place / name)]).stdout
        assert (".debug_info" in sections) is not strip
        assert ".symtab" in sections, "names of functions stay, for profilers and backtraces"


def test_two_directories_give_the_same_bytes(room: DevelRoom, tmp_path: Path) -> None:
    """Other places, times, modes of the umask, numbers of jobs, and one with an empty compiler cache."""
    description = cmake(**{"build-type": "RelWithDebInfo"}).model_copy(update={"strip": False})
    one = build(room, description, project(tmp_path / "one"))
    before = os.umask(0o077)
    try:
        other = project(tmp_path / "a longer path" / "two", dict(reversed(PROJECT.items())))
        os.utime(other / "greeting.c", (1, 1))
        again = build(room, description, other, cache=tmp_path / "cache", jobs=1)
    finally:
        os.umask(before)
    assert one == again


def test_programs_of_the_build_run_while_it_is_built(room: DevelRoom, tmp_path: Path) -> None:
    """A generator with a library in another directory; with `install` it runs, without it the hint says so."""
    files = {
        "CMakeLists.txt": (
            "cmake_minimum_required(VERSION 3.20)\nproject(made C)\n"
            "add_subdirectory(library)\nadd_subdirectory(generator)\n"
            "add_custom_command(OUTPUT made.txt COMMAND generator > made.txt DEPENDS generator)\n"
            "add_custom_target(made ALL DEPENDS made.txt)\n"
            "install(FILES ${CMAKE_BINARY_DIR}/made.txt DESTINATION share)\n"
        ),
        "library/CMakeLists.txt": "add_library(words SHARED words.c)\ninstall(TARGETS words)\n",
        "library/words.c": 'const char *words(void) { return "generated"; }\n',
        "generator/CMakeLists.txt": (
            "add_executable(generator main.c)\ntarget_link_libraries(generator words)\n"
            "install(TARGETS generator)\n"
        ),
        "generator/main.c": (
            "#include <stdio.h>\nconst char *words(void);\nint main(void) { puts(words()); return 0; }\n"
        ),
    }
    source = project(tmp_path / "source", files)
    bundle = build(room, cmake({"all": "."}, install=True), source)
    place = take(room, bundle, tmp_path / "installed", "all")
    assert (place / "share/made.txt").read_text() == "generated\n"
    elf = read_elf(place / "bin/generator")
    assert elf is not None
    assert elf.runpath == ("$ORIGIN", "$ORIGIN/../lib")
    assert run([str(place / "bin/generator")]).stdout == "generated\n"
    with pytest.raises(StepError, match="exited with") as caught:
        build(room, cmake({"text": "made.txt"}), source)
    assert "`install: true`" in str(caught.value.hint)


def test_a_script_makes_what_it_wants_below_build(room: DevelRoom, tmp_path: Path) -> None:
    source = project(tmp_path / "source")
    before = state(source)
    description = script(
        ["make"],
        [
            "sh",
            "-c",
            "env > /build/environment; cat /proc/net/dev > /build/network; mkdir -p /build/d/e; : > /build/d/e/f",
        ],
        artifacts={
            "tool": "tool",
            "environment": "environment",
            "network": "network",
            "tree": "d/**",
            "model": "source:data/*.json",
        },
        env={"SPECIAL": "a value"},
    )
    bundle = build(room, description, source)
    assert state(source) == before
    assert run([str(take(room, bundle, tmp_path / "tool", "tool") / "tool")]).stdout == "tool\n"
    lines = text_of(room, bundle, "environment", tmp_path).splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    assert environment["SPECIAL"] == "a value"
    assert (environment["MAX_JOBS"], environment["PWD"]) == ("2", "/src")
    assert not [name for name in environment if name.startswith(("ASSEMBLE", "PYTEST", "HTTP", "http"))]
    interfaces = [
        line.partition(":")[0].strip() for line in text_of(room, bundle, "network", tmp_path).splitlines()
    ]
    assert interfaces[2:] == ["lo"], "no network, unless the manifest asks for it"
    assert [entry.path for entry in bundle_entries(room.store, bundle.digest, "tree")] == ["e", "e/f"]
    assert text_of(room, bundle, "model", tmp_path) == "{}\n"


def test_with_network_host_it_is_the_hosts(room: DevelRoom, tmp_path: Path) -> None:
    description = script(
        ["sh", "-c", "cat /proc/net/dev > /build/network"], artifacts={"network": "network"}, network="host"
    )
    bundle = build(room, description, project(tmp_path / "source"))
    ours = [line.partition(":")[0] for line in Path("/proc/net/dev").read_text().splitlines()]
    assert [line.partition(":")[0] for line in text_of(room, bundle, "network", tmp_path).splitlines()] == ours


def test_threads_of_nvcc_count_as_jobs(room: DevelRoom, tmp_path: Path) -> None:
    source = project(tmp_path / "source")
    found = []
    for threads in ("1", "2"):
        wish = script(
            ["sh", "-c", "echo $MAX_JOBS > /build/jobs"], artifacts={"jobs": "jobs"}, env={"NVCC_THREADS": threads}
        )
        bundle = build(room, wish, source, jobs=6)
        found.append(int(text_of(room, bundle, "jobs", tmp_path / threads)))
    assert found == [6, 3]


# the compiler cache


def hits(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and "ccache" in event.text]


def test_the_compiler_cache_answers_and_says_so(room: DevelRoom, tmp_path: Path) -> None:
    """Another directory, one file changed: the others are not compiled again."""
    cache = tmp_path / "cache"
    cold: list[Event] = []
    build(room, cmake(), project(tmp_path / "one"), cache=cache, emit=cold.append)
    assert hits(cold) == ["hello: ccache had 0 of 2 objects (0 %)"]
    other = project(tmp_path / "two", {**PROJECT, "hello.cpp": PROJECT["hello.cpp"].replace("main", "main ")})
    (other / "hello.cpp").write_text('#include <cstdio>\nint main() { std::puts("other"); }\n')
    warm: list[Event] = []
    build(room, cmake(), other, cache=cache, emit=warm.append)
    assert hits(warm) == ["hello: ccache had 1 of 2 objects (50 %)"]


@pytest.mark.parametrize("compiler", ["cc", "gcc-12"])
def test_scripts_have_it_too(room: DevelRoom, tmp_path: Path, compiler: str) -> None:
    description = script(
        ["sh", "-ec", f"{compiler} -c -o /build/tool.o tool.c; cmake -S /src -B /build/x; cmake --build /build/x"],
        artifacts={"tool": "tool.o"},
    )
    source = project(tmp_path / "source")
    events: list[Event] = []
    for _ in range(2):
        build(room, description, source, cache=tmp_path / "cache", emit=events.append)
    assert hits(events) == ["hello: ccache had 0 of 3 objects (0 %)", "hello: ccache had 3 of 3 objects (100 %)"]


def sccache_hits(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and "sccache" in event.text]


@pytest.mark.parametrize("way", ["cmake", "script"])
def test_sccache_of_this_host_is_lent_to_the_container(room: DevelRoom, tmp_path: Path, way: str) -> None:
    if way == "cmake":
        wish = step(
            toolchain="cmake", cmake={"definitions": {"A": "b"}}, artifacts=WHOLE, compiler_cache="sccache"
        )
    else:
        compile_it = ["sh", "-ec", "gcc -c -o /build/one.o tool.c; gcc -c -DX -o /build/two.o tool.c"]
        wish = script(compile_it, artifacts={"one": "one.o"}, compiler_cache="sccache")
    source = project(tmp_path / "source")
    cold: list[Event] = []
    first = build(room, wish, source, cache=tmp_path / "cache", emit=cold.append)
    assert " sccache had 0 of " in sccache_hits(cold)[0]
    warm: list[Event] = []
    assert build(room, wish, source, cache=tmp_path / "cache", emit=warm.append).digest == first.digest
    (note,) = (event for event in warm if isinstance(event, Note) and event.facts)
    assert "(100 %)" in note.text
    assert note.facts
    assert note.facts["cache"] == "sccache"
    assert int(note.facts["hits"]) >= 2


def test_sccache_may_keep_objects_elsewhere(
    room: DevelRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a Redis, with a password that nobody gets to see; a host without its own objects has them from there."""
    compile_it = ["sh", "-ec", "gcc -c -o /build/one.o tool.c; cat /cache/statistics/settings"]
    wish = script(compile_it, artifacts={"one": "one.o"}, compiler_cache="sccache", network="host")
    source = project(tmp_path / "source")
    events: list[Event] = []
    with redis(tmp_path, password="sesame-open-the-door") as endpoint:
        monkeypatch.setenv("SCCACHE_REDIS_ENDPOINT", endpoint)
        monkeypatch.setenv("SCCACHE_REDIS_PASSWORD", "sesame-open-the-door")
        for number in range(2):
            build(room, wish, source, cache=tmp_path / f"cache-{number}", emit=events.append)
    assert sccache_hits(events) == [
        "hello: sccache had 0 of 1 objects (0 %)",
        "hello: sccache had 1 of 1 objects (100 %)",
    ]
    log = (room.cache / "logs/hello-abababababab.txt").read_text()
    assert "SCCACHE_REDIS_PASSWORD=***" in log
    assert "sesame" not in log + "".join(event.line for event in events if isinstance(event, StepOutput))
    assert "sesame" not in (room.cache / "logs/hello-abababababab.sh").read_text()


def test_a_storage_that_cannot_be_had_is_told_and_done_without(
    room: DevelRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("SCCACHE_REDIS_ENDPOINT", f"tcp://127.0.0.1:{port}")
    compile_it = ["gcc", "-c", "-o", "/build/one.o", "tool.c"]
    for network, words in (("host", "kept objects on this host only"), ("none", "`network: host` gives it one")):
        events: list[Event] = []
        wish = script(compile_it, artifacts={"one": "one.o"}, compiler_cache="sccache", network=network)
        build(room, wish, project(tmp_path / network), cache=tmp_path / "cache" / network, emit=events.append)
        (warning,) = (event for event in events if isinstance(event, Note) and event.level == "warning")
        assert words in warning.text
        assert "hello: sccache had 0 of 1 objects (0 %)" in sccache_hits(events)


@contextlib.contextmanager
def redis(directory: Path, *, password: str) -> Iterator[str]:
    """A Redis server of this test's own; yields its address."""
    need("redis-server")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = directory / "redis.conf"
    settings.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\n')
    with spawned(["redis-server", str(settings)], cwd=directory, stdout=subprocess.DEVNULL):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"tcp://127.0.0.1:{port}"


def test_no_cache_when_none_is_wished_for(room: DevelRoom, tmp_path: Path) -> None:
    events: list[Event] = []
    wish = script(["gcc", "-c", "-o", "/build/a.o", "tool.c"], artifacts={"a": "a.o"}, compiler_cache="none")
    build(room, wish, project(tmp_path / "source"), cache=tmp_path / "cache", emit=events.append)
    assert not [event for event in events if isinstance(event, Note)]
    assert not list((tmp_path / "cache").glob("*ccache/*"))


# how it fails


def failure(room: DevelRoom, description: CompileStep, source: Path, **options: Any) -> StepError:
    with pytest.raises(StepError) as caught:
        build(room, description, source, **options)
    assert room.buildah.containers() == ()
    return caught.value


def test_a_failed_command_leaves_its_log_and_nothing_else(room: DevelRoom, tmp_path: Path) -> None:
    source = project(tmp_path / "source", {**PROJECT, "hello.cpp": "int main() { return nonsense; }\n"})
    error = failure(room, cmake(), source)
    assert error.place == "hello"
    assert error.fact == "`cmake --build /build -j 2` exited with 1"
    assert any("nonsense" in line for line in error.detail)
    log = room.cache / "logs" / f"hello-{'ab' * 6}.txt"
    assert f"log: {log}" in error.detail
    text = log.read_text()
    assert text.startswith("$ cmake -S /src -B /build -G Ninja ")
    assert "\n$ cmake --build /build -j 2\n" in text
    assert "nonsense" in text
    assert "subprocess exited" in text, "the log has every line as it came"
    assert not any("subprocess exited" in line for line in error.detail)


def test_an_interrupt_leaves_nothing(room: DevelRoom, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, StepOutput):
            raise KeyboardInterrupt

    description = script(["sh", "-c", "echo now; sleep 4711"], artifacts={"a": "a"})
    with pytest.raises(KeyboardInterrupt):
        build(room, description, project(tmp_path / "source"), emit=interrupt)
    assert room.buildah.containers() == ()
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\0004711" in _bytes(path)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    "command",
    [
        "kill -9 $$",
        "ulimit -v 100000; /usr/bin/gcc -O2 -c -o /build/big.o big.c",
        "echo 'c++: fatal error: Killed signal terminated program cc1plus'; seq 99; exit 2",
        "echo 'nvcc error   : cicc died due to signal 9 (Kill signal)'; exit 9",
    ],
)
def test_want_of_memory_is_recognised(room: DevelRoom, tmp_path: Path, command: str) -> None:
    big = "static const int table[] = {" + ",".join(["1"] * 1_000_000) + "};\nint f(int i) { return table[i]; }\n"
    source = project(tmp_path / "source", {"big.c": big})
    error = failure(room, script(["sh", "-ec", command], artifacts={"a": "a"}), source)
    assert "out of memory" in str(error.hint)
    assert "--jobs" in str(error.hint)


def test_137_in_a_name_is_no_want_of_memory(room: DevelRoom, tmp_path: Path) -> None:
    error = failure(
        room, script(["sh", "-c", "exit 3", "137"], artifacts={"a": "a"}), project(tmp_path / "source")
    )
    assert error.fact == "`sh -c 'exit 3' 137` exited with 3"
    assert error.hint is None


def test_a_program_that_is_missing_is_named(room: DevelRoom, tmp_path: Path) -> None:
    description = cmake(generator="Ninja")
    with room.buildah.container(DEVEL, "without") as container:
        container.run(["rm", "/usr/bin/ninja"])
        room.buildah.commit(container, "localhost/assemble/image:without-ninja")
    with pytest.raises(StepError) as caught:
        compile_step(
            room.buildah,
            room.store,
            description,
            image="localhost/assemble/image:without-ninja",
            source=project(tmp_path / "source"),
            label="hello",
            key="ab" * 32,
            cache=room.cache,
            budget=Budget(2, None),
        )
    assert caught.value.fact == "the devel base has no `ninja`"
    assert "ninja-build" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("artifacts", "fact"),
    [
        ({"a": "bin/hello"}, "`bin/hello` matches nothing in the build directory"),
        ({"a": "source:nothing"}, "`nothing` matches nothing in the source"),
        ({"a": ["hello", "source:Makefile"]}, "artifact `a` mixes files of the source and of the build"),
        ({"a": "libgreeting.so"}, "the link `libgreeting.so` leads out of the artifact"),
    ],
)
def test_an_artifact_that_is_not_there(
    room: DevelRoom, tmp_path: Path, artifacts: dict[str, Any], fact: str
) -> None:
    assert fact in failure(room, cmake(artifacts), project(tmp_path / "source")).fact


def test_a_search_path_into_the_build_directory_is_refused(room: DevelRoom, tmp_path: Path) -> None:
    flags = {"CMAKE_EXE_LINKER_FLAGS": "-Wl,-rpath,/build"}
    error = failure(room, cmake(definitions=flags), project(tmp_path / "source"))
    assert any(line.startswith("programs: hello: RUNPATH `") and "names `/build`" in line for line in error.detail)


def test_what_the_source_brings_along_is_not_judged(room: DevelRoom, tmp_path: Path) -> None:
    source = project(tmp_path / "source")
    (source / "t.c").write_text("int f(void) { return 1; }\n")
    run(["gcc", "-g", "-shared", "-o", str(source / "vendor.so"), str(source / "t.c"), "-Wl,-rpath,/build/lib"])
    before = (source / "vendor.so").read_bytes()
    bundle = build(room, script(["true"], artifacts={"vendor": "source:vendor.so"}), source)
    assert (take(room, bundle, tmp_path / "out", "vendor") / "vendor.so").read_bytes() == before, "nor stripped"


def test_want_of_memory_is_answered_with_half_the_jobs_once(room: DevelRoom, tmp_path: Path) -> None:
    """The command that failed runs again, those before it do not, and all that tells jobs has the new number."""
    begun = "echo begun >> /build/begun"
    needy = 'echo "$MAX_JOBS $CMAKE_BUILD_PARALLEL_LEVEL" >> /build/tries; test "$MAX_JOBS" -le 2 || kill -9 $$'
    wish = script(["sh", "-ec", begun], ["sh", "-c", needy], artifacts={"begun": "begun", "tries": "tries"})
    events: list[Event] = []
    bundle = build(room, wish, project(tmp_path / "source"), jobs=5, emit=events.append)
    assert text_of(room, bundle, "begun", tmp_path) == "begun\n"
    assert text_of(room, bundle, "tries", tmp_path) == "5 5\n2 2\n"
    (warning,) = (event for event in events if isinstance(event, Note) and event.level == "warning")
    assert "5 jobs; trying again with 2" in warning.text
    greedy = script(["sh", "-c", "echo try >> /build/tries; kill -9 $$"], artifacts={"tries": "tries"})
    tries = run_and_count(room, greedy, project(tmp_path / "greedy"))
    assert tries == 2


def run_and_count(room: DevelRoom, description: CompileStep, source: Path) -> int:
    """How often the last command of a step that fails was run."""
    log = room.cache / "logs/hello-abababababab.txt"
    with pytest.raises(StepError):
        build(room, description, source, jobs=8)
    return log.read_text().count("$ sh -c")


def test_a_secret_is_there_and_nowhere_else(room: DevelRoom, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sesame-open-the-door\n")
    print_it = ["sh", "-c", "cat /run/secrets/token; wc -c < /run/secrets/token > /build/length; exit $0"]
    events: list[Event] = []

    def compile_with(secrets: Mapping[str, Path], status: str) -> ArtifactBundle:
        return compile_step(
            room.buildah,
            room.store,
            script([*print_it, status], artifacts={"length": "length"}, secrets=["token"]),
            image=DEVEL,
            source=project(tmp_path / "source"),
            label="hello",
            key="cd" * 32,
            cache=room.cache,
            budget=Budget(2, None),
            secrets=secrets,
            emit=events.append,
        )

    bundle = compile_with({"token": tmp_path / "token"}, "0")
    assert text_of(room, bundle, "length", tmp_path) == "21\n"
    with pytest.raises(StepError) as caught:
        compile_with({"token": tmp_path / "token"}, "3")
    logs = "".join(path.read_text() for path in (room.cache / "logs").glob("hello-cdcd*"))
    assert "***" in logs
    assert "sesame" not in logs + caught.value.render() + "".join(map(str, events))
    with pytest.raises(RequestError, match="`token` is needed"):
        compile_with({}, "0")
