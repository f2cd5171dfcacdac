"""The line that a failed step ends with: pasted into a shell, it does the step again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.containers import TINY, Room, busybox, running_room, shared_directory

from assembler.build.budget import Budget
from assembler.build.compile import compile_step
from assembler.build.rerun import Script, replace_directory
from assembler.errors import StepError
from assembler.events import Note
from assembler.manifest.models import CompileStep
from assembler.process import Completed, run

pytestmark = pytest.mark.tools

SCRIPT = """\
echo "value: $VALUE"
echo "$PWD" > /build/where
touch /usr/share/mark
cat /src/input > /build/out
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    program = busybox(shared_directory(tmp_path_factory.getbasetemp(), "busybox"))
    with running_room(tmp_path_factory.mktemp("room with spaces"), program) as made:
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source whose build fails until `input` is there."""
    path = tmp_path / "the source"
    path.mkdir()
    (path / "build.sh").write_text(SCRIPT)
    return path


def fail(room: Room, source: Path, *, keep: bool) -> StepError:
    step = CompileStep.model_validate(
        {
            "toolchain": "script",
            "source": "source",
            "env": {"VALUE": "$HOME `id` 'quoted' \"twice\""},
            "script": {
                "commands": [["sh", "-e", "build.sh"], ["sh", "-c", "echo second $0 > /build/second", "a b"]]
            },
            "artifacts": {"out": "out"},
        }
    )
    with pytest.raises(StepError) as caught:
        compile_step(
            room.buildah,
            room.store,
            step,
            image=TINY,
            source=source,
            label="tiny.step",
            key="cd" * 32 if keep else "ab" * 32,
            cache=room.cache,
            budget=Budget(2, None),
            keep=keep,
            emit=room.events.append,
        )
    return caught.value


def paste(error: StepError, *words: str) -> Completed:
    """Run the line as a shell reads it."""
    (line,) = (line for line in error.detail if line.startswith("run it again: "))
    command = line.removeprefix("run it again: ")
    return run(["sh", "-c", " ".join([command, *map(shlex.quote, words)])], check=False)


def build_directory(done: Completed) -> Path:
    found = re.search(r"^build directory: (.*)$", done.stderr, re.MULTILINE)
    assert found, done.stderr
    return Path(found[1])


def test_the_line_does_the_step_again_in_a_new_container(room: Room, source: Path) -> None:
    error = fail(room, source, keep=False)
    assert error.place == "tiny.step"
    assert error.fact == "`sh -e build.sh` exited with 1"
    assert "value: $HOME `id` 'quoted' \"twice\"" in error.detail

    again = paste(error)
    assert again.returncode == 1, again.stderr
    assert "value: $HOME `id` 'quoted' \"twice\"" in again.stdout
    assert "can't open '/src/input'" in again.stderr

    (source / "input").write_text("data")
    healed = paste(error)
    build = build_directory(healed)
    assert healed.returncode == 0, healed.stderr
    assert build != build_directory(again)
    assert {path.name: path.read_text() for path in build.iterdir()} == {
        "out": "data",
        "where": "/src\n",
        "second": "second a b\n",
    }
    assert room.buildah.containers() == (), "its containers are gone"
    for path in (build, build_directory(again)):
        run(["rm", "-rf", str(path)])


def test_with_keep_it_goes_on_where_the_step_stopped(room: Room, source: Path) -> None:
    error = fail(room, source, keep=True)
    (kept,) = room.buildah.containers()
    assert kept.startswith("kept-")
    notes = [event.text for event in room.events if isinstance(event, Note)]
    assert any(kept in text for text in notes)
    build = room.cache / "kept" / f"tiny.step-{'cd' * 6}"
    assert any(str(build) in text for text in notes)
    assert (build / "where").exists()
    room.another_run()
    assert room.buildah.containers() == (kept,), "no sweep touches it"

    root = Path(run(room.buildah.command("mount", kept)).stdout.strip())
    assert (root / "usr/share/mark").exists(), "the container is as the failed command left it"
    (source / "input").write_text("data")
    healed = paste(error)
    assert healed.returncode == 0, healed.stderr
    assert build_directory(healed) == build
    assert (build / "out").read_text() == "data"
    assert room.buildah.containers() == (kept,), "and stays"
    run(room.buildah.command("rm", kept))


def test_a_shell_in_the_same_place(room: Room, source: Path) -> None:
    error = fail(room, source, keep=False)
    (line,) = (line for line in error.detail if line.startswith("run it again: "))
    command = f"echo 'cat /src/build.sh; echo \"[$VALUE]\"; exit' | {line.removeprefix('run it again: ')} shell"
    done = run(["script", "--quiet", "--return", "--command", command, "/dev/null"], check=False)
    assert "touch /usr/share/mark" in done.stdout, done.stdout + done.stderr
    assert "[$HOME `id` 'quoted' \"twice\"]" in done.stdout
    assert room.buildah.containers() == ()


def test_nothing_is_kept_of_what_an_interrupt_ended(room: Room, source: Path) -> None:
    with pytest.raises(KeyboardInterrupt), room.buildah.container(TINY, "interrupted", keep=True):
        raise KeyboardInterrupt
    assert room.buildah.containers() == ()


def test_a_label_cannot_leave_its_comment(room: Room, tmp_path: Path) -> None:
    with room.buildah.container(TINY, "label") as container:
        script = Script(
            path=tmp_path / "again.sh",
            container=container,
            commands=(container.command(["true"]),),
            label="a\ntouch /tmp/owned",
            build=tmp_path / "build",
        )
        script.write()
    assert (tmp_path / "again.sh").read_text().splitlines()[1].startswith("# a touch /tmp/owned again")


def test_an_older_kept_directory_makes_room(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new"]
