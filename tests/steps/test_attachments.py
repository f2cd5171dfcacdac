"""What `--attach` takes, and as what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from assembler.errors import RequestError
from assembler.steps.attachments import parse_attachments

PUSH = ("registry.example/a:1",)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("sbom.spdx.json", "application/spdx+json"),
        ("a.cdx.json", "application/vnd.cyclonedx+json"),
        ("BOM.json", "application/vnd.cyclonedx+json"),
        ("x.intoto.jsonl", "application/vnd.in-toto+json"),
        ("scan.sarif", "application/sarif+json"),
        ("tests.xml", "application/xml"),
        ("other.json", "application/json"),
        ("build.log", "text/plain"),
    ],
)
def test_the_name_tells_the_type(tmp_path: Path, name: str, media_type: str) -> None:
    (tmp_path / name).write_text("x")
    (found,) = parse_attachments([str(tmp_path / name)], PUSH)
    assert (found.path, found.media_type) == (tmp_path / name, media_type)
    (told,) = parse_attachments([f"application/vnd.x+json={tmp_path / name}"], PUSH)
    assert (told.path, told.media_type) == (tmp_path / name, "application/vnd.x+json")


def test_a_path_may_have_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out/run=1").mkdir(parents=True)
    Path("out/run=1/a.json").write_text("{}")
    (found,) = parse_attachments(["out/run=1/a.json"], PUSH)
    assert found.path == Path("out/run=1/a.json")
    (told,) = parse_attachments(["text/x=out/run=1/a.json"], PUSH)
    assert (told.path, told.media_type) == (Path("out/run=1/a.json"), "text/x")


def test_what_is_no_file_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    reading, writing = os.pipe()  # what a shell gives for `<(command)`: it could be read only once
    try:
        for path, said in ((tmp_path / "empty.json", "is empty"), (f"/dev/fd/{reading}", "is something else")):
            with pytest.raises(RequestError, match=said):
                parse_attachments([f"text/plain={path}"], PUSH)
    finally:
        os.close(reading)
        os.close(writing)
