"""JSON Schema (draft 2020-12) of manifests and recipes, generated from the models, for editors.

An editor reads `80` as a number and `true` as a boolean where we read text, so a text may be either there; and
anywhere in a scalar `${name}` may stand, so what only some texts satisfy also admits a text with a `${`. What
a schema cannot say (exactly one of several keys, names that must exist) is left to `library.load`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from assembler.manifest.models import Manifest, Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEMPLATE = {"type": "string", "pattern": r"\$\{"}
_MODELS: Mapping[str, type[BaseModel]] = {"manifest": Manifest, "recipe": Recipe}


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, told what YAML looks like before we read it."""

    schema_dialect = DIALECT

    def str_schema(self, _schema: core_schema.StringSchema) -> JsonSchemaValue:
        return {"type": ["string", "number", "boolean"]}

    def int_schema(self, _schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+$|\$\{"}]}

    def bool_schema(self, _schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return {"anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}, _TEMPLATE]}

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        if schema["expected"] == [1]:
            return {"enum": [1, "1"]}
        return {"anyOf": [{"enum": list(schema["expected"])}, _TEMPLATE]}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _either_spelling(super().model_schema(schema))


def json_schema(kind: Literal["manifest", "recipe"]) -> dict[str, Any]:
    """The JSON Schema of a manifest or a recipe; equal on every machine."""
    mode: JsonSchemaMode = "validation"
    schema = _MODELS[kind].model_json_schema(by_alias=True, schema_generator=_Generator, mode=mode)
    definitions = schema.get("$defs", {})
    for name, make in _TEXT_FORMS.items():
        if name in definitions:
            definitions[name] = make(definitions[name])
    return {"$schema": DIALECT, "title": f"assemble {kind}", **{k: v for k, v in schema.items() if k != "title"}}


def _either_spelling(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Keys may have underscores for dashes; as patterns, so that editors offer only the one with dashes."""
    properties = schema.get("properties", {})
    dashed = {f"^{name.replace('-', '_')}$": value for name, value in properties.items() if "-" in name}
    return {**schema, "patternProperties": dashed} if dashed else schema


def _or_text(schema: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {key: schema[key] for key in ("title", "description") if key in schema}
    return {**kept, "anyOf": [{k: v for k, v in schema.items() if k not in kept}, *others]}


def _base(schema: dict[str, Any]) -> dict[str, Any]:
    return _or_text(schema, {"type": "string"})


def _input(schema: dict[str, Any]) -> dict[str, Any]:
    return _or_text(schema, {"type": ["string", "number", "boolean", "null"]})


_TEXT_FORMS = {"Base": _base, "Input": _input}
