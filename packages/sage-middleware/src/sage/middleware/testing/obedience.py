"""What an engine answers that obeys tools and JSON Schemas, and has nothing of its own to say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Said", "heed", "sample"]

_SCALARS: Final[Mapping[str, Any]] = {
    "string": "text",
    "integer": 1,
    "number": 0.5,
    "boolean": True,
    "null": None,
}


@dataclass(frozen=True, slots=True)
class Said:
    """An answer in pieces: text or, with `tool`, the arguments of a call to the tool of that name."""

    pieces: tuple[str, ...]
    tool: str = ""

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(self.pieces)


def heed(request: Mapping[str, Any], words: tuple[str, ...]) -> Said:
    """The answer to a chat or completion: `words`, unless a tool is to be called or a form is to be kept.

    A tool that was named is called, else the first of those offered, unless the last message is what a tool
    gave. `response_format` with a schema gets the sample of it.
    """
    tools = {tool["function"]["name"]: tool["function"] for tool in request.get("tools") or ()}
    choice = request.get("tool_choice")
    given = (request.get("messages") or [{}])[-1].get("role") == "tool"
    if tools and choice != "none" and (not given or isinstance(choice, dict)):
        name = choice["function"]["name"] if isinstance(choice, dict) else next(iter(tools))
        return Said(_halves(sample(tools[name].get("parameters") or {"type": "object"})), name)
    form = request.get("response_format") or {}
    if form.get("type") == "json_schema":
        return Said(_halves(sample(form["json_schema"]["schema"])))
    return Said(("{", "}")) if form.get("type") == "json_object" else Said(words)


def _halves(value: Any) -> tuple[str, str]:
    text = json.dumps(value)
    return text[: len(text) // 2], text[len(text) // 2 :]


def sample(schema: Mapping[str, Any]) -> Any:
    """A value that fits `schema`: all properties of objects, one item of arrays, the first of alternatives.

    Understands what clients send for typed models: types, properties, items, enum, const, anyOf, oneOf, allOf
    with one member, and references within the schema; no bounds and no patterns. Raises ValueError for a
    schema that recurs without an end.
    """
    return _sample(schema, schema, 0)


def _sample(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    if depth > 32:
        raise ValueError("this schema recurs without an end")
    if reference := schema.get("$ref"):
        return _sample(_resolve(reference, root), root, depth + 1)
    for word in ("anyOf", "oneOf", "allOf"):
        if choices := schema.get(word):
            return _sample(choices[0], root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if choices := schema.get("enum"):
        return choices[0]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _sample(inner, root, depth + 1) for name, inner in properties.items()}
    if kind == "array":
        return [_sample(schema.get("items", {}), root, depth + 1)]
    return _SCALARS[kind]


def _resolve(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        found = found[part]
    assert isinstance(found, Mapping)
    return found
