"""`${name}` in scalars: values of arguments and inputs, put in before a tree is validated.

`$${` is a literal `${`. In values of an image's environment a name that is no argument stays as it is, since
`${PATH}` there means what the base has; such a value is a template until the base is known (`plan.settings`), so
the escape stays in it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from assembler.errors import ManifestError
from assembler.manifest.problems import Problems, alternatives
from assembler.manifest.source import Document, Steps, Tree

BUDGET_CHARACTERS = 16 << 20
"""What one load may produce by expansion: arguments that double each other would else fill the memory."""

_UNCLOSED = "expected `${name}`, got `${` without its end"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MARKER = re.compile(r"\$\$(?=\{)|\$\{([^{}]*)\}|\$\{")


def _substitute(text: str, value_of: Callable[[str], str | None], *, escapes: bool, unclosed: str | None) -> str:
    """Replace each `${name}`; what `value_of` answers None for stays as it is written."""

    def put(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$" if escapes else "$$"
        if match[1] is None:
            if unclosed:
                raise ValueError(unclosed)
            return match[0]
        value = value_of(match[1])
        return match[0] if value is None else value

    # The `{` that follows an escape must not be read as the end of a marker, which the pattern sees to: after
    # `$$` the search goes on at `{`.
    return _MARKER.sub(put, text)


def overlay(contributions: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """One environment out of several, lowest first, still as templates.

    `${NAME}` in a contribution is what the ones below it say, so that two recipes may both prepend to a path.
    ManifestError when the result grows beyond measure.
    """
    result: dict[str, str] = {}
    for contribution in contributions:
        below = dict(result)
        for name, template in contribution.items():
            result[name] = _substitute(template, below.get, escapes=False, unclosed=None)
        if sum(map(len, result.values())) > BUDGET_CHARACTERS >> 4:
            raise ManifestError(
                f"expected an environment of at most {BUDGET_CHARACTERS >> 4} characters, got more"
            )
    return result


class Expander:
    """Expands trees of one load; errors go to `problems`."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.produced = 0

    def tree(
        self,
        tree: Tree,
        values: Mapping[str, str | None],
        document: Document,
        *,
        skip: str,
        templates: Steps,
        steps: Steps = (),
    ) -> Tree:
        """The tree with all scalars expanded, but for the key `skip` of the root.

        `templates` leads to the environment of the image. A value None belongs to an argument that is wrong
        itself: what uses it is not reported again.
        """
        if isinstance(tree, dict):
            return {
                key: value
                if (steps, key) == ((), skip)
                else self.tree(value, values, document, skip=skip, templates=templates, steps=(*steps, key))
                for key, value in tree.items()
            }
        if isinstance(tree, list):
            return [
                self.tree(value, values, document, skip=skip, templates=templates, steps=(*steps, index))
                for index, value in enumerate(tree)
            ]
        if isinstance(tree, str) and "${" in tree:
            is_template = len(steps) == len(templates) + 1 and steps[:-1] == templates
            return self.text(tree, values, document, steps, is_template=is_template)
        return tree

    def text(
        self,
        text: str,
        values: Mapping[str, str | None],
        document: Document,
        steps: Steps,
        *,
        is_template: bool = False,
    ) -> str:
        """One scalar; when it cannot be expanded it stays as it is and the error is noted."""

        def value_of(name: str) -> str | None:
            if name in values:
                value = values[name]
                if value is None:
                    self.problems.blame(document, steps)
                self._count(value or "")
                # In a template a value stands for itself, whatever markers are in it.
                return value.replace("${", "$${") if value and is_template else value
            if not (is_template and _VARIABLE.fullmatch(name)):
                hint = alternatives(name, values, title="names here", none="write `$${` for a literal `${`")
                self.problems.add(document, steps, f"no argument `{name}`", hint=hint)
            return None

        try:
            return _substitute(text, value_of, escapes=not is_template, unclosed=_UNCLOSED)
        except ValueError as error:
            self.problems.add(document, steps, str(error), hint="write `$${` for a literal `${`")
            return text

    def _count(self, value: str) -> None:
        self.produced += len(value)
        if self.produced > BUDGET_CHARACTERS:
            raise ManifestError(f"expected at most {BUDGET_CHARACTERS} characters of expanded values, got more")
