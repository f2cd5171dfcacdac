"""Names of steps: ids for programs, and what layers are called for people."""

from __future__ import annotations

from assembler.manifest.loaded import Scope
from assembler.manifest.models import LayerEntry


def qualified(scope: Scope, name: str) -> str:
    """The name of something in a scope, unique in a manifest."""
    return f"{scope.name}.{name}" if scope.name else name


def toolchain_id(scope: Scope, name: str) -> str:
    """Id of the step that installs a compile step's packages into the devel base."""
    return f"toolchain:{qualified(scope, name)}"


def compile_id(scope: Scope, name: str) -> str:
    """Id of a compile step."""
    return f"compile:{qualified(scope, name)}"


def layer_id(index: int) -> str:
    """Id of the step that makes layer number `index`, counted from 0 at the bottom."""
    return f"layer:{index}"


def wheel_layer_id(index: int, group: str) -> str:
    """Id of the step that makes one of the layers of a `wheels` entry."""
    return f"{layer_id(index)}:{group}"


def layer_name(entry: LayerEntry) -> str:
    """What a layer is called in tables and in the image's history.

    It says what the manifest says, without host paths, so that it is the same on every machine.
    """
    if entry.packages:
        return "packages " + " ".join(entry.packages.apt)
    if entry.run:
        return "run " + " ".join(entry.run.command)
    if entry.files:
        paths = [item.path for item in entry.files]
        return "files " + " ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    if entry.copy_:
        image = entry.copy_.image
        what = entry.copy_.artifact or entry.copy_.source or (image.label if image else "")
        path = f"/{entry.copy_.path.lstrip('/')}" if entry.copy_.path else ""
        return f"copy {what}{path} to {entry.copy_.to}"
    if entry.wheels:
        asked = [*entry.wheels.requirements, entry.wheels.file, entry.wheels.wheelhouse, entry.wheels.artifact]
        return "wheels " + " ".join(each for each in asked if each)
    return "layer"
