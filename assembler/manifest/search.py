"""Where manifests and recipes are found: beside the user's, in given directories, in the shipped library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import assembler
from assembler.errors import RequestError
from assembler.manifest.problems import alternatives


def shipped(kind: str) -> Path | None:
    """The shipped `layers` or `manifests`: package data, or in a checkout the directory next to the package."""
    package = Path(assembler.__file__).parent
    inside = package / "library" / kind
    if inside.is_dir():
        return inside
    beside = package.parent / kind
    # Without the check a stray `layers` in site-packages would count as the library.
    return beside if (package.parent / "pyproject.toml").is_file() and beside.is_dir() else None


def recipe_directories(manifest: Path, library: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Where recipes of this manifest are looked for, first hit wins."""
    directory = manifest.absolute().parent
    last = shipped("layers")
    found = (directory / "layers", directory.parent / "layers", *library, *([last] if last else []))
    return tuple(dict.fromkeys(found))


def find_recipe(name: str, directories: Iterable[Path]) -> Path | None:
    """The file of the recipe, or None."""
    return next((path for each in directories if (path := each / f"{name}.yaml").is_file()), None)


def recipe_names(directories: Iterable[Path]) -> list[str]:
    """All recipes that can be used, sorted."""
    return sorted({path.stem for each in directories for path in each.glob("*.yaml")})


def manifest_names() -> list[str]:
    """All manifests of the shipped library, such as `tgi` and `bases/debian`, sorted; locks are none."""
    directory = shipped("manifests")
    if directory is None:
        return []
    files = (
        path.relative_to(directory) for path in directory.rglob("*.yaml") if not path.name.endswith(".lock.yaml")
    )
    return sorted(path.with_suffix("").as_posix() for path in files)


def is_called_manifest(text: str) -> bool:
    """Is it called like a manifest: by the ending of a file, or by a name of the library?"""
    return text.endswith((".yaml", ".yml")) or text in manifest_names()


def find_manifest(text: str) -> Path:
    """The manifest that `text` means: a path or a name in the shipped library; RequestError when it is neither."""
    path = Path(text)
    if path.is_file():
        return path
    if text and path.is_dir():
        near = sorted(str(each) for each in path.glob("*.yaml") if not each.name.endswith(".lock.yaml"))
        hint = f"manifests there: {', '.join(f'`{each}`' for each in near)}" if near else None
        raise RequestError("expected a manifest, got a directory", place=text, hint=hint)
    names = manifest_names()
    if text in names:
        directory = shipped("manifests")
        if directory is not None:
            return directory / f"{text}.yaml"
    if path.suffix in {".yaml", ".yml"}:
        near = [str(each) for each in path.parent.glob("*.y*ml") if not each.name.endswith(".lock.yaml")]
        raise RequestError(
            "no such file", place=text, hint=alternatives(text, sorted(near), title="manifests there")
        )
    hint = alternatives(text, names, title="manifests in the library")
    beside = Path(f"{text}.yaml")
    if text and beside.is_file():
        hint = f"did you mean `{beside}`?"
    raise RequestError(f"no manifest `{text}`, neither as a file nor in the library", hint=hint)


def display(path: Path) -> str:
    """The path as messages show it: relative when it is below the current directory."""
    absolute = path.absolute()
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)
