"""Containers with real buildah on a tiny base: what a command sees, how it ends, and that nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.containers import TINY, Room, busybox, running_room, shared_directory
from support.needs import lacking

from assembler.build.container import Buildah, Container, Mount, toolchain_image
from assembler.build.mounting import Places, host_certificates
from assembler.build.node import probe_storage
from assembler.build.runs import RunDirectory, start_time
from assembler.errors import NodeError, StepError
from assembler.events import Note
from assembler.process import Completed

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return busybox(shared_directory(tmp_path_factory.getbasetemp(), "busybox"))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, program: bytes) -> Iterator[Room]:
    with running_room(tmp_path_factory.mktemp("room"), program) as made:
        yield made


@pytest.fixture(scope="module")
def container(room: Room) -> Iterator[Container]:
    """One container for all tests that only look."""
    with room.buildah.container(TINY, "shared") as made:
        yield made


def shell(container: Container, script: str, **options: object) -> Completed:
    return container.run(["sh", "-c", script], **options)  # type: ignore[arg-type]


# what a command sees


def test_the_environment_is_clean(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "nothing of the host comes in")
    lines = container.run(["env"], env={"NAME": "a value; $HOME `id`"}).stdout.splitlines()
    found = dict(line.split("=", 1) for line in lines)
    path = found.pop("PATH")
    assert "/usr/bin" in path.split(":")
    assert found == {
        "DEBIAN_FRONTEND": "noninteractive",
        "HOME": "/root",
        "HOSTNAME": "assemble",
        "LANG": "C.UTF-8",
        "NAME": "a value; $HOME `id`",
        "SOURCE_DATE_EPOCH": "0",
    }


def test_a_command_is_root_in_its_directory(container: Container) -> None:
    assert shell(container, "id -u; hostname; echo $PWD", workdir="/tmp").stdout.split() == [
        "0",
        "assemble",
        "/tmp",
    ]


def test_arguments_come_as_they_are(container: Container) -> None:
    words = ["", "a b", "$HOME", "*", "-x", "--", "'\"\\", "line\nbreak", "ä"]
    script = 'for word; do echo "[$word]"; done'
    assert container.run(["sh", "-c", script, "sh", *words]).stdout == "".join(f"[{word}]\n" for word in words)


def test_mounts_and_nothing_left_of_them(room: Room, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "file").write_text("data")
    (tmp_path / "secret").write_text("hush")
    mounts = (
        Mount(source=tmp_path / "in", target="/deep/down/src"),
        Mount(source=tmp_path / "out", target="/build", read_only=False),
        Mount(source=tmp_path / "secret", target="/run/secrets/token"),
    )
    with room.buildah.container(TINY, "mounts") as container:
        script = "cat /deep/down/src/file /run/secrets/token > /build/copy; touch /deep/down/src/no"
        ended = shell(container, script, mounts=mounts, check=False)
        assert ended.returncode != 0
        assert "Read-only" in ended.stderr
        assert (tmp_path / "out" / "copy").read_text() == "datahush"
        with container.mounted() as root:
            for path in ("deep", "build", "run/secrets", "etc/ssl"):
                assert not (root / path).exists()
        shell(container, "mkdir /build; touch /build/own", mounts=mounts[:1])
        shell(container, "true", mounts=mounts)
        with container.mounted() as root:
            assert (root / "build" / "own").exists()


def test_a_colon_in_a_path_is_refused(container: Container, tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    with pytest.raises(NodeError, match="colon"):
        container.run(["true"], mounts=[Mount(source=tmp_path / "a:b", target="/src")])


def test_certificates_come_with_the_network_and_go(container: Container) -> None:
    certificates = host_certificates()
    if certificates is None:
        lacking("this host has no CA bundle")
    script = "wc -c < $SSL_CERT_FILE; echo $PIP_CERT $CURL_CA_BUNDLE; touch $SSL_CERT_FILE || echo read-only"
    lines = shell(container, script, network="host").stdout.split()
    assert lines == [str(certificates.stat().st_size), *["/etc/ssl/assemble-ca.crt"] * 2, "read-only"]
    assert "SSL_CERT_FILE" not in container.run(["env"]).stdout
    with container.mounted() as root:
        assert not (root / "etc" / "ssl").exists()


def test_without_network_the_host_cannot_be_reached(container: Container) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            server.accept()[0].close()

        answer = threading.Thread(target=accept, daemon=True)
        answer.start()
        script = f"nc -w 2 127.0.0.1 {server.getsockname()[1]} < /dev/null && echo connected"
        assert "connected" in shell(container, script, network="host", check=False).stdout
        assert "connected" not in shell(container, script, network="none", check=False).stdout
        assert "connected" not in shell(container, script, check=False).stdout
        answer.join()


def test_without_network_there_is_a_loopback(container: Container) -> None:
    script = "nc -l -p 1234 -e echo hello & sleep 0.3; nc -w 2 127.0.0.1 1234 < /dev/null"
    assert shell(container, script, check=False).stdout == "hello\n"


def test_a_question_is_answered_in_lines(container: Container) -> None:
    assert container.ask('echo one; for word; do echo "$word"; done', "two words", "$3") == [
        "one",
        "two words",
        "$3",
    ]
    assert container.ask("true") == []
    assert container.programs(["sh", "no-such-program", "ls"]) == {"sh", "ls"}


# how it ends


@pytest.mark.parametrize(
    ("script", "status", "text"),
    [
        ("echo last words; exit 3", 3, "exited with 3"),
        ("echo last words; kill -9 $$", 137, r"exited with 137 \(SIGKILL\)"),
        ("printf 'last words'; kill -SEGV $$", 139, r"exited with 139 \(SIGSEGV\)"),
    ],
)
def test_failures_say_how_and_what_was_last(
    container: Container, tmp_path: Path, script: str, status: int, text: str
) -> None:
    for options in ({}, {"log": tmp_path / "log.txt"}):
        # buildah now and then loses what a short command prints (`assembler.build.answers`), so there are several
        # tries.
        for _ in range(4):
            with pytest.raises(StepError) as caught:
                shell(container, script, **options)
            if caught.value.detail:
                break
        assert caught.value.detail == ("last words",)
        assert re.search(text, str(caught.value))
        statuses = (shell(container, script, check=False, **options).returncode for _ in range(4))
        assert status in statuses
    assert "last words" in (tmp_path / "log.txt").read_text()


def test_a_missing_program_is_named(container: Container) -> None:
    with pytest.raises(StepError, match="no program `nosuch`"):
        container.run(["nosuch", "--version"])
    assert container.programs(["sh", "nosuch", "cat"]) == {"sh", "cat"}


def test_lines_arrive_while_it_runs_without_buildahs(container: Container, tmp_path: Path) -> None:
    lines: list[str] = []
    ended = shell(container, "echo one; echo two >&2; exit 4", on_line=lines.append, check=False)
    assert lines == ["one", "two"]
    assert ended.tail == ("one", "two")


# nothing stays behind


def is_gone(pid: int) -> bool:
    until = time.monotonic() + 5
    while start_time(pid) and time.monotonic() < until:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return start_time(pid) is None


def sleepers(number: int) -> list[int]:
    """Processes that sleep for this odd number of seconds."""
    wanted = f"sleep\0{number}\0".encode()
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and wanted in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def wait_for_sleeper(number: int) -> list[int]:
    until = time.monotonic() + 10
    while not (found := sleepers(number)) and time.monotonic() < until:
        time.sleep(0.02)
    assert found
    return found


def our_containers(room: Room, label: str) -> list[str]:
    return [name for name in room.buildah.containers() if f"-{label}-" in name]


def test_a_container_goes_at_the_end_and_on_errors(room: Room) -> None:
    with room.buildah.container(TINY, "gone") as container:
        assert our_containers(room, "gone") == [container.name]
        root = container.root
    assert our_containers(room, "gone") == []
    with pytest.raises(StepError), room.buildah.container(TINY, "gone") as container:
        container.run(["false"])
    with pytest.raises(KeyError), room.buildah.container(TINY, "gone"):
        raise KeyError
    assert our_containers(room, "gone") == []
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
    assert list((room.run.path / "scratch").glob("gone*")) == []


def test_an_unknown_image_is_an_error_of_this_host(room: Room) -> None:
    with pytest.raises(NodeError, match="buildah from"), room.buildah.container("localhost/none:1", "none"):
        pass
    assert our_containers(room, "none") == []


def test_background_processes_end_with_their_command(room: Room) -> None:
    number = 100_000 + os.getpid()
    with room.buildah.container(TINY, "background") as container:
        shell(container, f"setsid sleep {number} >/dev/null 2>&1 & sleep 0.1")
        assert sleepers(number) == []


def test_an_interrupt_ends_the_command_and_removes_the_container(room: Room) -> None:
    number = 200_000 + os.getpid()

    def interrupt() -> None:
        wait_for_sleeper(number)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), room.buildah.container(TINY, "interrupted") as container:
        shell(container, f"sleep {number} & setsid sleep {number} & wait", on_line=lambda _: None)
    thread.join()
    assert time.monotonic() - started < 8
    assert our_containers(room, "interrupted") == []
    assert sleepers(number) == []


KILLED = """
import sys
from pathlib import Path
from assembler.build.container import Buildah
from assembler.build.node import probe_storage
from assembler.build.runs import RunDirectory
cache = Path(sys.argv[1])
buildah = Buildah(probe_storage(cache), RunDirectory.create(cache))
with buildah.container(sys.argv[2], "killed") as container:
    print(buildah.run_directory.id, container.root, flush=True)
    container.run(["sh", "-c", f"sleep {sys.argv[3]} & setsid sleep {sys.argv[3]} & wait"])
"""


def test_after_a_kill_the_next_run_clears_up(room: Room) -> None:
    number = 300_000 + os.getpid()
    argv = [sys.executable, "-c", KILLED, str(room.cache), TINY, str(number)]
    with room.buildah.container(TINY, "bystander") as bystander:
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            identifier, root = process.stdout.readline().decode().split()
            pids = wait_for_sleeper(number)
            room.another_run()  # while it lives, nobody touches it
            assert all(start_time(pid) for pid in pids)
            process.kill()
        assert our_containers(room, "killed")
        assert all(is_gone(pid) for pid in pids)
        room.another_run()
        assert our_containers(room, "killed") == []
        assert not (room.cache / "runs" / identifier).exists()
        assert root not in Path("/proc/self/mountinfo").read_text()
        assert bystander.run(["echo", "alive"]).stdout == "alive\n"


def test_a_container_without_its_run_goes_too(room: Room) -> None:
    host = room.run.id.split("-")[0]
    room.buildah.call("from", "--pull-never", "--name", f"assemble-{host}-dead-beef-step-1", TINY)
    room.buildah.call("from", "--pull-never", "--name", "assemble-elsewhere-dead-beef-step-1", TINY)
    room.another_run()
    assert f"assemble-{host}-dead-beef-step-1" not in room.buildah.containers()
    assert "assemble-elsewhere-dead-beef-step-1" in room.buildah.containers()
    room.buildah.call("rm", "assemble-elsewhere-dead-beef-step-1")


def test_a_kept_container_stays_and_is_told(room: Room) -> None:
    with pytest.raises(StepError), room.buildah.container(TINY, "wanted", keep=True) as container:
        container.run(["false"])
    (kept,) = our_containers(room, "wanted")
    assert kept == f"kept-{container.name}"
    assert any(isinstance(event, Note) and kept in event.text for event in room.events)
    room.another_run()
    assert our_containers(room, "wanted") == [kept]
    room.buildah.call("rm", kept)


def test_places_follow_no_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "etc").mkdir(parents=True)
    (outside / "x").mkdir(parents=True)
    places = Places(root, ["/etc/ssl/x", "/etc/ssl/ca.crt", "/var/x"])
    (root / "etc" / "ssl").symlink_to(outside)
    (root / "var").symlink_to(outside)
    (outside / "ca.crt").touch()
    places.remove()
    assert sorted(path.name for path in outside.iterdir()) == ["ca.crt", "x"]


# images


def test_images_have_names_that_can_be_taken_away(room: Room) -> None:
    buildah, name = room.buildah, "localhost/assemble/image:named"
    assert TINY in buildah.images()
    assert not any("import" in image for image in buildah.images())
    with buildah.container(TINY, "commit") as container:
        shell(container, "echo new > /etc/new")
        buildah.commit(container, name)
    assert buildah.has_image(name)
    with buildah.container(name, "again") as container:
        assert container.run(["cat", "/etc/new"]).stdout == "new\n"
        with container.mounted() as root:
            upper = container.upper_directory(root)
            assert (root / "etc" / "new").exists()
            assert upper is None or not (upper / "etc" / "new").exists()
    assert buildah.remove_image(name)
    assert not buildah.remove_image(name)
    assert not buildah.has_image(name)


def test_a_toolchain_is_installed_once(room: Room) -> None:
    made: list[str] = []

    def install(container: Container) -> None:
        made.append(container.name)
        shell(container, "touch /usr/share/installed")

    def build(buildah: Buildah) -> tuple[str, bool]:
        return toolchain_image(buildah, lambda: TINY, "0123456789abcdef" * 4, install)

    results: list[tuple[str, bool]] = []
    with RunDirectory.create(room.cache) as directory:
        other = Buildah(room.buildah.storage, directory)
        threads = [threading.Thread(target=lambda b=b: results.append(build(b))) for b in (room.buildah, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(built for _, built in results) == [False, True]
    assert len(made) == 1
    assert build(room.buildah) == (results[0][0], False)
    with room.buildah.container(results[0][0], "check") as container:
        container.run(["ls", "/usr/share/installed"])


def test_a_failed_toolchain_leaves_no_image(room: Room) -> None:
    def install(container: Container) -> None:
        container.run(["false"])

    key = "fedcba9876543210" * 4
    with pytest.raises(StepError):
        toolchain_image(room.buildah, TINY, key, install)
    assert not room.buildah.has_image(f"localhost/assemble/toolchain:{key[:40]}")
    assert our_containers(room, "toolchain") == []


def test_two_runs_at_once_do_not_hurt_each_other(room: Room) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(2):
                with room.buildah.container(TINY, f"parallel-{number}") as container:
                    assert shell(container, f"echo {number}").stdout == f"{number}\n"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_copies_work_where_the_overlay_does_not(tmp_path: Path, program: bytes) -> None:
    from dataclasses import replace

    with running_room(tmp_path / "cache", program) as made:
        storage = replace(probe_storage(tmp_path / "cache"), driver="vfs", root=tmp_path / "cache/containers/vfs")
        buildah = Buildah(storage, made.run)
        buildah.import_image(made.store, made.manifest, TINY)
        with buildah.container(TINY, "vfs") as container:
            assert shell(container, "echo hi > /etc/x; cat /etc/x").stdout == "hi\n"
            with container.mounted() as root:
                assert (root / "etc" / "x").read_text() == "hi\n"
                assert container.upper_directory(root) is None
