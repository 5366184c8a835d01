"""What the scripted engine says to tools and schemas fits them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from sage.middleware.testing.obedience import Said, heed, sample

WORDS = ("one ", "two")
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    "schema",
    [
        CITY,
        {"type": "array", "items": CITY},
        {"type": ["null", "string"]},
        {"enum": ["red", "blue"]},
        {"const": 7},
        {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        {"properties": {"deep": {"allOf": [{"$ref": "#/$defs/city"}]}}, "$defs": {"city": CITY}},
        {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "boolean"}}},
        {},
    ],
)
def test_a_sample_fits_its_schema(schema: dict[str, Any]) -> None:
    jsonschema.validate(sample(schema), schema)


def test_a_schema_without_an_end() -> None:
    with pytest.raises(ValueError, match="without an end"):
        sample({"properties": {"next": {"$ref": "#"}}})


@pytest.mark.parametrize(
    ("request_", "tool"),
    [
        ({}, ""),
        ({"tools": TOOLS}, "weather"),
        ({"tools": TOOLS, "tool_choice": "required"}, "weather"),
        ({"tools": TOOLS, "tool_choice": "none"}, ""),
        ({"tools": TOOLS, "tool_choice": named("now")}, "now"),
        ({"tools": TOOLS, "messages": [{"role": "tool", "content": "sunny"}]}, ""),
        ({"tools": TOOLS, "messages": [{"role": "tool"}], "tool_choice": named("weather")}, "weather"),
    ],
)
def test_which_tool_is_called(request_: dict[str, Any], tool: str) -> None:
    said = heed(request_, WORDS)
    assert said.tool == tool
    assert said.text == {"": "one two", "weather": '{"city": "text"}', "now": "{}"}[tool]


def test_forms() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    assert json.loads(heed({"response_format": schema}, WORDS).text) == {"city": "text"}
    assert heed({"response_format": {"type": "json_object"}}, WORDS).text == "{}"
    assert heed({"response_format": {"type": "text"}}, WORDS) == Said(WORDS)
