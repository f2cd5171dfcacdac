"""Every mistake, word for word: `broken.txt` holds files and the messages that they must give.

A case is `=== NAME`, then `=> PATH` before each file, then `=> errors` before what the terminal shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from assembler.errors import InvalidManifestError
from assembler.manifest.library import load

_CASES = Path(__file__).with_name("broken.txt")


def _cases() -> Iterator[tuple[str, dict[str, str]]]:
    for case in _CASES.read_text().split("=== ")[1:]:
        name, _, rest = case.partition("\n")
        files = (part.partition("\n") for part in rest.split("=> ")[1:])
        yield name, {path: text for path, _, text in files}


@pytest.mark.parametrize(("name", "files"), list(_cases()), ids=[name for name, _ in _cases()])
def test_message(name: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = files.pop("errors")
    for path, text in files.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)
    with pytest.raises(InvalidManifestError) as caught:
        load(Path("manifests/m.yaml"))
    shown = "\n".join(error.render().replace("\n\nhint", "\nhint") for error in caught.value.errors) + "\n"
    assert shown == expected


def test_names_are_unique() -> None:
    names = [name for name, _ in _cases()]
    assert len(names) == len(set(names)) >= 80


def test_no_message_is_pydantic_s() -> None:
    text = _CASES.read_text()
    for foreign in (
        "Input should",
        "Field required",
        "pydantic",
        "Extra inputs",
        "valid string",
        "something else",
    ):
        assert foreign not in text
