"""Values for a manifest's arguments and a recipe's inputs: given, default, or an error where it belongs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from assembler.errors import ManifestError
from assembler.manifest.expand import Expander
from assembler.manifest.models import Input
from assembler.manifest.problems import Problems, alternatives, did_you_mean, nearest
from assembler.manifest.source import Document, Steps
from assembler.manifest.validate import validate


@dataclass(frozen=True, slots=True)
class Given:
    """Values and who gives them: the `uses` or `manifest` at `steps` of `document`, else the command line."""

    values: Mapping[str, str]
    document: Document | None = None
    steps: Steps = ()

    def wrong(self, problems: Problems, name: str, fact: str, hint: str | None) -> None:
        """The value given for `name` is wrong."""
        if self.document is None:
            problems.add_error(ManifestError(fact, place=f"--set {name}={self.values[name]}", hint=hint))
        else:
            problems.add(self.document, (*self.steps[:-1], "with", name), fact, hint=hint)

    def unknown(self, problems: Problems, name: str, hint: str | None) -> None:
        """Nobody asked for a value for `name`."""
        if self.document is None:
            self.wrong(problems, name, f"no argument `{name}`", hint)
        else:
            steps = (*self.steps[:-1], "with", name)
            problems.add(self.document, steps, f"unknown key `{name}`", hint=hint, of_key=True)

    def missing(self, problems: Problems, name: str, declared: tuple[Document, Steps], about: str) -> None:
        """A value for `name` is needed."""
        if self.document is None:
            fact = f"expected a value, the argument has no default{about}"
            problems.add(*declared, fact, hint=f"`--set {name}=VALUE` gives one")
        else:
            hint = f"`with: {{{name}: VALUE}}` gives one"
            problems.add(self.document, self.steps, f"`{name}` is missing{about}", hint=hint)


def values_of(document: Document, key: str, given: Given, expander: Expander) -> dict[str, str | None]:
    """The value of each argument (`key` is `args`) or input (`inputs`); None where it has no good one.

    A default may use the arguments above it.
    """
    problems = expander.problems
    tree = document.tree.get(key)
    declared = tree if isinstance(tree, dict) else {}
    values: dict[str, str | None] = {}
    # A misspelt name is one error, not two: its hint says what is missing.
    misspelt = {nearest(name, declared) for name in given.values if name not in declared}
    for name, raw in declared.items():
        shape = validate(Input, raw, document, Problems())  # its errors come with the whole document
        if shape is None:
            values[name] = given.values.get(name)
            continue
        steps: Steps = (key, name)
        value = None
        if name in given.values:
            value = given.values[name]
            if shape.choices and value not in shape.choices:
                given.wrong(problems, name, f"{_one_of(shape)}, got `{value}`", did_you_mean(value, shape.choices))
                value = None
        elif shape.default is None:
            about = f" ({shape.help})" if shape.help else ""
            if name not in misspelt:
                given.missing(problems, name, (document, steps), about)
        else:
            steps = (*steps, "default") if isinstance(raw, dict) else steps
            value = expander.text(shape.default, values, document, steps)
            if shape.choices and value not in shape.choices and not problems.is_blamed(document, steps):
                fact = f"{_one_of(shape)}, got {document.show(steps, value)}"
                problems.add(document, steps, fact, hint=did_you_mean(value, shape.choices))
            value = None if problems.is_blamed(document, steps) else value
        values[name] = value
    for name in given.values:
        if name not in declared:
            what = "arguments" if key == "args" else "inputs"
            none = f"{document.name} declares no {what}"
            given.unknown(problems, name, alternatives(name, declared, title=f"its {what}", none=none))
    return values


def _one_of(shape: Input) -> str:
    options = ", ".join(f"`{choice}`" for choice in shape.choices)
    return f"expected one of {options}" if len(shape.choices) > 1 else f"expected {options}"
