"""One layer of wheels: what it depends on, and how it is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from assembler.manifest.wheels import LockedWheel
from assembler.oci.layout import Store
from assembler.pack.tarball import Compression, PackedLayer, pack
from assembler.pack.wheel_bytecode import find_compiler
from assembler.pack.wheel_collisions import Collisions
from assembler.pack.wheel_environment import Environment, venv_entries
from assembler.pack.wheel_groups import WheelGroup
from assembler.pack.wheel_install import Compile, wheel_entries
from assembler.tree.builder import TreeBuilder
from assembler.tree.entry import Entry

FORMAT: Final = 2
"""Counts the changes that give other bytes for the same wheels."""


def group_facts(group: WheelGroup, environment: Environment) -> dict[str, Any]:
    """Everything that decides the bytes of this layer's tar, as JSON, for its key."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "packages": environment.purelib,
        "prefix": environment.prefix,
        "python": environment.python,
        "interpreter": environment.interpreter,
        "headers": environment.headers,
        "wheels": [
            {"sha256": wheel.sha256, **({"direct": dict(wheel.direct)} if wheel.direct is not None else {})}
            for wheel in group.wheels
        ],
    }
    if not group.wheels:
        facts["base_python"] = environment.base_python
    elif environment.bytecode:
        facts["bytecode"] = find_compiler(environment.python).version
    return facts


def group_entries(
    group: WheelGroup,
    environment: Environment,
    open_wheel: Callable[[LockedWheel], Path],
    store: Store,
    collisions: Collisions | None = None,
) -> tuple[Entry, ...]:
    """The tree of this layer. Where two wheels differ about a file, the later one in the group has its way.

    Compiled files, where the environment has them, are written to the store. `collisions` is told of every wheel.
    """
    tree = TreeBuilder(group.name)
    found: dict[str, tuple[Entry, str]] = {}
    if not group.wheels:
        found = {entry.path: (entry, "the environment") for entry in venv_entries(environment)}
    compiling: tuple[str, Compile] | None = None
    if environment.bytecode and group.wheels:
        compiler = find_compiler(environment.python)
        compiling = compiler.tag, lambda path, sources: compiler.compile(path, sources, store)
    for wheel in group.wheels:
        entries = wheel_entries(wheel, open_wheel(wheel), environment, compiling)
        if collisions:
            collisions.add(wheel.label, entries)
        for entry in entries:
            found[entry.path] = entry, wheel.filename
    for entry, origin in found.values():
        tree.add(entry, origin)
    return tree.entries()


def pack_group(
    group: WheelGroup,
    environment: Environment,
    open_wheel: Callable[[LockedWheel], Path],
    store: Store,
    *,
    compression: Compression,
    epoch: int,
    created_by: str,
    threads: int | None = None,
    inline: bool = False,
    progress: Callable[[int], None] | None = None,
) -> PackedLayer:
    """Pack the layer of a group. `open_wheel` gives the file of a wheel, whose hash somebody has verified.

    Raises UntrustedInputError, naming wheel and entry, when a wheel is not what it should be, NodeError when a
    file cannot be read or the store cannot be written, and what `open_wheel` raises. Then nothing is stored.
    """
    return pack(
        group_entries(group, environment, open_wheel, store),
        store,
        compression=compression,
        epoch=epoch,
        created_by=created_by,
        threads=threads,
        inline=inline,
        progress=progress,
    )
