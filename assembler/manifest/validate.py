"""From a tree to a model, and from pydantic's complaints to ours: place, expected, found, hint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from assembler.manifest.problems import Problems, alternatives, did_you_mean, nearest
from assembler.manifest.source import Document, Steps, Tree

Shape = TypeVar("Shape", bound=BaseModel)

_EXPECTED = {
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "mapping_type": "expected a mapping",
    "tuple_type": "expected a list",
    "string_type": "expected text",
}


def validate(model: type[Shape], tree: Tree, document: Document, problems: Problems) -> Shape | None:
    """The model of `tree`, or None after everything that is wrong was added to `problems`."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
    unknown = {
        (tuple(each["loc"][:-1]), near)
        for each in found
        if each["type"] == "extra_forbidden"
        and (near := nearest(str(each["loc"][-1]), _keys(model, each["loc"][:-1])))
    }
    # What is known to be wrong already, such as a value that cannot be expanded, is not reported again.
    fresh = [each for each in found if not problems.is_blamed(document, each["loc"])]
    for each in fresh:
        *parent, last = each["loc"] or ("",)
        if each["type"] == "missing" and (tuple(parent), last) in unknown:
            continue  # the misspelt key is reported, with this name as hint
        _report(model, each, document, problems)
    return None


def _report(model: type[BaseModel], error: Any, document: Document, problems: Problems) -> None:
    kind, steps, value = error["type"], tuple(error["loc"]), error["input"]
    of_key = bool(steps) and steps[-1] == "[key]"
    steps = steps[:-1] if of_key else steps
    hint: str | None = None
    if kind == "missing":
        steps, name = steps[:-1], steps[-1]
        fact = f"`{name}` is missing"
    elif kind == "extra_forbidden":
        of_key = True
        fact = f"unknown key `{steps[-1]}`"
        hint = alternatives(str(steps[-1]), _keys(model, steps[:-1]), title="keys here")
    elif kind == "literal_error":
        options = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        fact = (
            "expected " + ("one of " if len(options) > 1 else "") + ", ".join(f"`{option}`" for option in options)
        )
        fact += f", got {document.show(steps, value)}"
        hint = did_you_mean(value, options) if isinstance(value, str) else None
    elif kind == "house":
        context = error["ctx"]
        if context["at"]:
            steps = (*steps, *context["at"])
            value = _follow(value, context["at"])
        fact, hint = context["fact"], context["hint"] or None
        if fact.startswith("expected") and ", got " not in fact and not isinstance(value, Mapping | BaseModel):
            shown = steps[-1] if of_key else value
            fact += f", got {document.show(steps, shown)}"
    else:
        fact = f"{_EXPECTED.get(kind, 'expected something else')}, got {document.show(steps, value)}"
        if kind == "string_type" and value is None:
            hint = 'write `""` for an empty text'
    problems.add(document, steps, fact, hint=hint, of_key=of_key)


def _follow(value: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        if isinstance(value, Mapping):
            value = value.get(step, value.get(step.replace("-", "_")))
    return value


def _keys(model: type[BaseModel], steps: Steps) -> list[str]:
    """The keys that are legal in the mapping at `steps`."""
    current: Any = model
    for step in steps:
        current = _plain(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields.items()
            current = next((field.annotation for name, field in fields if step in (name, field.alias)), None)
        else:
            arguments = get_args(current)
            current = arguments[1 if isinstance(step, str) else 0] if arguments else None
    current = _plain(current)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [field.alias or name for name, field in current.model_fields.items()]
    return []


def _plain(annotation: Any) -> Any:
    """The annotation without `Annotated` and `| None`."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    arguments = get_args(annotation)
    if type(None) in arguments:
        return _plain(next(each for each in arguments if each is not type(None)))
    return annotation
