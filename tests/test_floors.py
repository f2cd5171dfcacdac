"""The house of design.md, held: who may import whom, who may print, how long a module may get."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import assembler

ROOT = Path(assembler.__file__).parent

# Floors by the longest matching name. Units of one floor do not know each other, but for those named in FAMILIES.
FLOORS = {
    "errors": 0,
    "events": 0,
    "network": 0,
    "process": 0,
    "units": 0,
    "oci": 1,
    "tree": 1,
    "manifest": 2,
    "plan": 3,
    "build": 4,
    "pack": 4,
    "registry": 4,
    "sif": 4,
    "gc": 5,
    "steps": 5,
    "pipeline": 5,
    "cli": 6,
    "__main__": 7,
}
# On these floors alone, units may use each other, downwards as listed: the story is told in several modules.
FAMILIES = (("errors", "events", "process"), ("oci", "tree"), ("gc", "steps", "pipeline"))
# A subprocess belongs to process.py, oras to the registry's client; `subprocess` for its types is no exception.
ONE_DOOR = {"subprocess": "process", "plumbum": "process", "oras": "registry.client"}
MODULE_LINES = 400
FUNCTION_LINES = 60


@dataclass(frozen=True)
class Module:
    """A source file of the package: `name` is dotted, without `assembler.`."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def unit(self) -> str:
        """The first part of the name; all `cli_…` modules are `cli`."""
        first = self.name.partition(".")[0]
        return "cli" if first.startswith("cli_") else first


def modules() -> list[Module]:
    """Every Python file of the package."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        text = path.read_text()
        found.append(Module(".".join(parts), path, ast.parse(text), text.count("\n")))
    return found


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Absolute names that a module imports, anywhere in it, with their lines. `from a import b` gives `a.b`."""
    package = ["assembler", *module.name.split(".")[:-1]]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)


def _unit_of(name: str) -> str:
    first = name.removeprefix("assembler.").partition(".")[0]
    return "cli" if first.startswith("cli_") else first


def _may_use(unit: str, other: str) -> bool:
    if unit == other or FLOORS[other] < FLOORS[unit]:
        return True
    return FLOORS[other] == FLOORS[unit] and any(
        unit in family and other in family and family.index(other) < family.index(unit) for family in FAMILIES
    )


def _report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def test_every_module_stands_on_a_floor() -> None:
    _report(
        [
            f"{module.path.relative_to(ROOT)}: `{module.unit}` is on no floor; give it one in FLOORS"
            for module in modules()
            if module.unit not in FLOORS and module.name != "__init__"
        ]
    )


def test_imports_go_downwards() -> None:
    problems = []
    for module in modules():
        for name, line in imports(module):
            if not name.startswith("assembler.") or module.unit not in FLOORS:
                continue
            other = _unit_of(name)
            if other in FLOORS and not _may_use(module.unit, other):
                problems.append(
                    f"{module.path.relative_to(ROOT)}:{line}: {module.unit} (floor {FLOORS[module.unit]}) "
                    f"imports {other} (floor {FLOORS[other]})"
                )
    _report(problems)


def test_each_foreign_thing_has_one_door() -> None:
    problems = []
    for module in modules():
        for name, line in imports(module):
            door = ONE_DOOR.get(name.partition(".")[0])
            if door and module.name != door:
                problems.append(f"{module.path.relative_to(ROOT)}:{line}: only {door} may import `{name}`")
    _report(problems)


def test_only_the_command_line_prints() -> None:
    terminal = ("print", "sys.stdout", "sys.stderr")
    problems = [
        f"{module.path.relative_to(ROOT)}:{node.lineno}: only cli talks to the terminal"
        for module in modules()
        if module.unit not in ("cli", "__main__")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in terminal
    ]
    _report(problems)


def test_modules_and_functions_are_short() -> None:
    problems = []
    for module in modules():
        place = module.path.relative_to(ROOT)
        if module.lines >= MODULE_LINES:
            problems.append(f"{place}: {module.lines} lines, expected less than {MODULE_LINES}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length >= FUNCTION_LINES:
                    problems.append(
                        f"{place}:{node.lineno}: `{node.name}` has {length} lines, "
                        f"expected less than {FUNCTION_LINES}"
                    )
    _report(problems)


def test_packages_hold_only_a_docstring() -> None:
    problems = []
    for module in modules():
        if module.path.name != "__init__.py":
            continue
        place = module.path.relative_to(ROOT)
        if not ast.get_docstring(module.tree):
            problems.append(f"{place}: expected a docstring")
        rest = module.tree.body[1:]
        allowed = 1 if module.name == "__init__" else 0  # the version
        versions = [node for node in rest if isinstance(node, ast.Assign) and "__version__" in ast.dump(node)]
        if len(rest) != len(versions) or len(versions) > allowed:
            problems.append(f"{place}: expected nothing but a docstring{' and __version__' if allowed else ''}")
    _report(problems)


def test_every_module_says_what_it_is_for() -> None:
    _report(
        [
            f"{module.path.relative_to(ROOT)}: expected a docstring"
            for module in modules()
            if module.tree.body and not ast.get_docstring(module.tree)
        ]
    )
