"""The reference of all fields as Markdown tables, generated from the models: what is documented is what is read.

Types are told in words, by the names that the models' own types have. Examples are taken from real files, given as
parsed trees: the first value that a field has in them.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from assembler.manifest import fields, toolchains
from assembler.manifest.models import Base, Manifest, Recipe, base_fields
from assembler.manifest.source import Tree

Model = type[BaseModel]

_WORDS: Final = (
    (fields.Flag, "true or false"),
    (fields.Whole, "whole number"),
    (fields.FormatVersion, "`1`"),
    (fields.Mode, "octal mode"),
    (fields.Identity, "numeric id"),
    (fields.Text, "text"),
    (fields.Name, "name"),
    (fields.EnvironmentName, "variable"),
    (fields.PackageName, "package"),
    (fields.CudaArchitecture, "`sm_NN`"),
    (fields.RocmArchitecture, "`gfxNNN`"),
    (fields.Size, "size"),
    (fields.Duration, "duration"),
    (fields.Port, "port"),
    (fields.AbsolutePath, "absolute path"),
    (fields.RelativePath, "relative path"),
    (fields.InsidePath, "path or pattern"),
    (fields.Requirement, "requirement"),
    (fields.ReferenceText, "image reference"),
    (fields.PlatformText, "platform"),
    (fields.Patterns, "path or pattern, or list of them"),
    (toolchains.Word, "word"),
    (toolchains.Words, "word, or list of words"),
    (toolchains.Pinned, "pinned requirement"),
)
_SHORTHANDS: Final = {"Base": "or text", "Input": "or text, its default"}
_LONGEST_EXAMPLE: Final = 60


@dataclass(slots=True)
class Section:
    """A model, where in a file it may stand, and one example for each field that has one, as YAML."""

    model: Model
    places: list[str] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)


def reference(trees: Iterable[Tree]) -> str:
    """All sections, manifests first; `trees` are manifests and recipes to take examples from."""
    sections = _sections()
    for tree in trees:
        if isinstance(tree, dict):
            _collect(Recipe if "recipe" in tree else Manifest, tree, sections)
    return "\n\n".join(_section_text(section, sections) for section in sections.values())


def _sections() -> dict[Model, Section]:
    """Every model below manifest and recipe, in the order in which a reader meets them."""
    sections: dict[Model, Section] = {}
    waiting: list[tuple[Model, str]] = [(Manifest, ""), (Recipe, "")]
    while waiting:
        model, place = waiting.pop(0)
        is_new = model not in sections
        section = sections.setdefault(model, Section(model))
        if place not in section.places:
            section.places.append(place)
        if not is_new:
            continue
        for name, hint, _ in _fields(model):
            for inner, tail in _models_in(hint):
                waiting.append((inner, f"{place}.{name}{tail}".lstrip(".")))
    return sections


def _fields(model: Model) -> Iterator[tuple[str, Any, FieldInfo]]:
    """Name in YAML, type as written, and what pydantic knows."""
    hints = get_type_hints(model, include_extras=True)
    for name, info in model.model_fields.items():
        yield info.alias or name, hints[name], info


def _models_in(hint: Any) -> Iterator[tuple[Model, str]]:
    """The models that a type contains, and how one gets there: `[]` into a list, `.NAME` into a mapping."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint, ""
        return
    origin, arguments = get_origin(hint), get_args(hint)
    tail = "[]" if origin is tuple else ".NAME" if origin is Mapping else ""
    for argument in arguments[:1] if origin is Annotated else arguments:
        yield from ((model, tail + rest) for model, rest in _models_in(argument))


def _collect(model: Model, tree: Any, sections: Mapping[Model, Section]) -> None:
    """Note the examples that a tree has for fields of this model and of those below it."""
    if model is Base and isinstance(tree, str):
        tree = base_fields(tree)
    if not isinstance(tree, dict):
        return
    for name, hint, _ in _fields(model):
        if name not in tree:
            continue
        value = tree[name]
        sections[model].examples.setdefault(name, _yaml(value))
        for inner, tail in _models_in(hint):
            for part in _parts(value, tail):
                _collect(inner, part, sections)


def _parts(value: Any, tail: str) -> list[Any]:
    if tail == "[]" and isinstance(value, list):
        return value
    if tail == ".NAME" and isinstance(value, dict):
        return list(value.values())
    return [value] if not tail else []


def _title(section: Section) -> str:
    place = section.places[0]
    return f"`{place}`" if place else f"The {section.model.__name__.lower()}"


def _anchor(title: str) -> str:
    """How a heading is linked to, as GitHub makes it."""
    kept = "".join(character for character in title.lower() if character.isalnum() or character in " -_")
    return kept.replace(" ", "-")


def _section_text(section: Section, sections: Mapping[Model, Section]) -> str:
    text = " ".join((section.model.__doc__ or "").split())
    also = [f"`{other}`" for other in section.places[1:]]
    where = f" The same at {', '.join(also)}." if also else ""
    anchors = {other: _anchor(_title(section)) for other, section in sections.items()}
    rows = [
        "| field | type | default | meaning | example |",
        "|---|---|---|---|---|",
        *(
            _row(name, type_text(hint, anchors), info, section.examples.get(name, ""))
            for name, hint, info in _fields(section.model)
        ),
    ]
    return f"### {_title(section)}\n\n{text}{where}\n\n" + "\n".join(rows)


def _row(name: str, words: str, info: FieldInfo, example: str) -> str:
    cells = [f"`{name}`", words, _default_text(info), info.description or "", _code(example)]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def type_text(hint: Any, anchors: Mapping[Model, str] = MappingProxyType({})) -> str:
    """A type in words; those of models are linked to `anchors`.

    >>> type_text(tuple[fields.Name, ...] | None)
    'list of name'
    """
    for known, words in _WORDS:
        if hint == known:
            return words
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_text(arguments[0], anchors)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(each, anchors) for each in arguments if each is not type(None))
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is tuple:
        return f"list of {type_text(arguments[0], anchors)}"
    if origin is Mapping:
        return f"mapping of {type_text(arguments[0], anchors)} to {type_text(arguments[1], anchors)}"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        words = f"[mapping](#{anchors[hint]})" if hint in anchors else "mapping"
        return " ".join(filter(None, (words, _SHORTHANDS.get(hint.__name__))))
    return "text"


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    value = info.get_default(call_default_factory=True, validated_data={})
    if value in (None, "", ()) or isinstance(value, BaseModel | Mapping):
        return ""
    return _code(_yaml(list(value) if isinstance(value, tuple) else value))


def _yaml(value: Any) -> str:
    """A value on one line, as it could be written; nothing when it is too long to help."""
    text = _flow(value)
    return text if len(text) <= _LONGEST_EXAMPLE else ""


def _flow(value: Any, *, is_inside: bool = False) -> str:
    """YAML's flow style; `is_inside` brackets, where more has to be quoted."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(each, is_inside=True)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(each, is_inside=True) for each in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None else str(value)
    parts = [": ", " #", "\n", *("[]{}," if is_inside else "")]
    if text and text[0] not in "*&!%@`[{>|#'\" " and not any(part in text for part in parts):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
