"""What buildah says about the end of a command: read from real ends, and kept from people."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from support.containers import TINY, busybox, running_room, shared_directory

from assembler.build import apt
from assembler.build.container import Container
from assembler.build.noise import Listener, command_text, plain, quiet, signal_of, start_failure
from assembler.errors import StepError


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    program = busybox(shared_directory(tmp_path_factory.getbasetemp(), "busybox"))
    with (
        running_room(tmp_path_factory.mktemp("room"), program) as room,
        room.buildah.container(TINY, "noise") as made,
    ):
        yield made


def ended(container: Container, *argv: str, listen: bool) -> StepError:
    with pytest.raises(StepError) as caught:
        container.run(argv, on_line=(lambda _line: None) if listen else None)
    return caught.value


@pytest.mark.tools
@pytest.mark.parametrize("listen", [True, False])
@pytest.mark.parametrize("number", [4, 6, 7, 8, 9, 11, 12, 13, 15, 24, 25, 31, 34])
def test_the_signal_is_named_and_nothing_of_buildah_is_left(
    container: Container, number: int, listen: bool
) -> None:
    error = ended(container, "sh", "-c", f"echo own words; kill -{number} $$", listen=listen)
    name = f" ({signal.Signals(number).name})" if number < 32 else ""
    assert error.fact.endswith(f"exited with {128 + number}{name}")
    assert error.detail == ("own words",)


@pytest.mark.tools
@pytest.mark.parametrize("listen", [True, False])
def test_a_status_is_the_commands_own(container: Container, listen: bool) -> None:
    for status in (1, 2, 77, 126, 127):
        error = ended(container, "sh", "-c", f"printf 'no newline'; exit {status}", listen=listen)
        assert error.fact.endswith(f"exited with {status}")
        assert error.detail == ("no newline",)


@pytest.mark.tools
@pytest.mark.parametrize("listen", [True, False])
@pytest.mark.parametrize(
    ("program", "fact"),
    [
        ("nosuch", "the container has no program `nosuch`"),
        (
            "/bin/nosuch",
            "the container cannot run `/bin/nosuch` (no such file or directory):"
            " it is not there, or the interpreter of its first line is not",
        ),
        ("/etc", "the container cannot run `/etc` (permission denied): it is not executable"),
        (
            "/root/text",
            "the container cannot run `/root/text` (exec format error):"
            " it is for another machine, or a script without `#!` line",
        ),
    ],
)
def test_a_program_that_cannot_start_is_named(container: Container, program: str, fact: str, listen: bool) -> None:
    container.run(["sh", "-c", "echo text > /root/text; chmod 755 /root/text"])
    assert ended(container, program, listen=listen).fact == fact


@pytest.mark.tools
def test_a_base_without_apt_is_told_so(container: Container) -> None:
    with pytest.raises(StepError) as caught:
        apt.resolve(container, ["libgomp1"])
    assert caught.value.fact == "the container has no program `apt-get`"
    assert "Debian or Ubuntu" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("subprocess exited with status 1", None),
        ("wordssubprocess exited on killed", "words"),
        ("wordssubprocess exited on CPU time limit exceeded", "words"),
        ("subprocess exited on signal 34", None),
        ('time="2026-01-01T00:00:00Z" level=warning msg="Failed to load cni plugins"', None),
        ("Error: while running runtime: exit status 7", None),
        ("Error: exit status 7", None),
        ("", ""),
        ("Error: exit status of the job was 1", "Error: exit status of the job was 1"),
        ("the subprocess exited with status 1, says make", "the subprocess exited with status 1, says make"),
        ("the subprocess exited on purpose", "the subprocess exited on purpose"),
        ("error: subprocess-exited-with-error", "error: subprocess-exited-with-error"),
    ],
)
def test_a_line_without_buildahs_part(line: str, expected: str | None) -> None:
    assert plain(line) == expected


def test_lines_in_number() -> None:
    assert quiet("a\n\nError: exit status 2\n") == ("a", "")
    assert len(quiet("line\n" * 100)) == 20
    heard: list[str] = []
    listener = Listener(heard.append)
    for line in ("one", "Error: exit status 7", "", "two"):
        listener(line)
    assert heard == ["one", "", "two"]
    assert listener.tail == ("one", "", "two")
    assert list(listener.raw) == ["one", "Error: exit status 7", "", "two"]


def test_an_ordinary_end_has_no_signal_and_no_missing_program() -> None:
    text = "make: *** [all] Error 2\nsubprocess exited with status 2\nError: exit status 2"
    assert signal_of(text) == 0
    assert start_failure(text) is None
    assert signal_of("subprocess exited on stack fault") == 0, "one that no command ends by"


def test_a_command_in_one_line() -> None:
    assert command_text(["sh", "-c", "a\n  b"]) == "sh -c 'a b'"
    assert len(command_text(["x" * 500])) == 160
    assert command_text(["x" * 500]).endswith(" …")
    assert command_text(["x" * 500], length=None) == "x" * 500
