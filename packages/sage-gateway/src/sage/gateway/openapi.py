"""The OpenAPI file of a listener: what FastAPI knows of it, and the hot routes, which it does not see."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from sage.gateway.routes import ROUTES, Entry, Listener
from sage.middleware.engines.port import FORMS, GENERATES, Route

__all__ = ["REQUESTS", "describe"]

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_FLAG: Final[Schema] = {"type": ["boolean", "null"]}
_OBJECT: Final[Schema] = {"type": "object"}
_MOST_INPUTS: Final = 2048


def _whole(least: int | None = None, most: int | None = None) -> Schema:
    bounds = {"minimum": least, "maximum": most}
    return {"type": "integer", **{name: bound for name, bound in bounds.items() if bound is not None}}


def _list(items: Schema, least: int = 1, most: int = _MOST_INPUTS) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _body(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with a model and these fields; what an engine knows beside them goes on to it unchanged."""
    fields = {"model": _TEXT, **required}
    return {"type": "object", "required": list(fields), "properties": {**fields, **(optional or {})}}


_IDS: Final = _list(_whole(0))
_FILLED: Final[Schema] = {"type": "string", "minLength": 1}
_GENERATES: Final[dict[str, Schema]] = {
    "stream": _FLAG,
    "stream_options": {"type": "object", "properties": {"include_usage": _FLAG}},
    "max_tokens": _whole(1),
    "n": _whole(1, 8),
}
_MESSAGE: Final[Schema] = {
    "type": "object",
    "required": ["role"],
    "properties": {"role": _TEXT, "content": {"anyOf": [_TEXT, _list(_OBJECT), {"type": "null"}]}},
}
_DOCUMENT: Final[Schema] = {
    "anyOf": [
        _FILLED,
        {
            "type": "object",
            "required": ["text"],
            "properties": {"text": _FILLED},
            "additionalProperties": False,
        },
    ]
}
_FILE: Final[Schema] = {"type": "string", "format": "binary"}
_TEXTS: Final[Schema] = {"anyOf": [_FILLED, _list(_FILLED)]}

# What each hot route judges of its body.
REQUESTS: Final[dict[Route, Schema]] = {
    Route.CHAT: _body(
        {"messages": _list(_MESSAGE)},
        {
            **_GENERATES,
            "max_completion_tokens": _whole(1),
            "logprobs": _FLAG,
            "top_logprobs": _whole(0, 20),
            "response_format": {"type": "object", "properties": {"type": _TEXT}},
            "tools": _list(_OBJECT, 0, 128),
            "tool_choice": {"anyOf": [_TEXT, _OBJECT]},
        },
    ),
    Route.COMPLETIONS: _body(
        {"prompt": {"anyOf": [_TEXT, _list(_TEXT), _IDS, _list(_IDS)]}}, {**_GENERATES, "logprobs": _whole()}
    ),
    Route.MESSAGES: _body(
        {"max_tokens": _whole(1), "messages": _list(_MESSAGE)},
        {
            "system": {"anyOf": [_TEXT, _list(_OBJECT)]},
            "stream": _FLAG,
            "tools": _list(_OBJECT, 0, 128),
            "tool_choice": _OBJECT,
            "stop_sequences": _list(_TEXT, 0),
        },
    ),
    Route.COUNT_TOKENS: _body({"messages": _list(_MESSAGE)}),
    Route.RESPONSES: _body(
        {"input": {"anyOf": [_TEXT, _list(_OBJECT)]}},
        {
            "instructions": _TEXT,
            "previous_response_id": _TEXT,
            "store": _FLAG,
            "stream": _FLAG,
            "max_output_tokens": _whole(1),
            "tools": _list(_OBJECT, 0, 128),
            "tool_choice": {"anyOf": [_TEXT, _OBJECT]},
        },
    ),
    Route.SPEECH: _body({"input": _FILLED}, {"voice": _TEXT, "response_format": _TEXT}),
    Route.IMAGES: _body({"prompt": _FILLED}, {"n": _whole(1, 8), "stream": _FLAG}),
    Route.TRANSCRIPTIONS: _body({"file": _FILE}),
    Route.TRANSLATIONS: _body({"file": _FILE}),
    Route.IMAGE_EDITS: _body({"image": _FILE, "prompt": _FILLED}),
    Route.EMBEDDINGS: _body(
        {"input": {"anyOf": [_FILLED, _list(_FILLED), _IDS, _list(_IDS)]}},
        {"encoding_format": {"enum": ["float", "base64"]}, "dimensions": _whole(1)},
    ),
    Route.RERANK: _body(
        {"query": _FILLED, "documents": _list(_DOCUMENT)}, {"top_n": _whole(1), "return_documents": _FLAG}
    ),
    Route.SCORE: _body({"text_1": _TEXTS, "text_2": _TEXTS}),
    Route.TOKENIZE: _body({"prompt": _TEXT}),
    Route.DETOKENIZE: _body({"tokens": _list(_whole(0), 0)}),
}

_ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe(app: FastAPI, listener: Listener) -> Schema:
    """The OpenAPI 3.1 document of `app`, which serves `listener`, with the hot routes of that."""
    document = dict(app.openapi())
    document["paths"] = dict(document["paths"])
    for entry in ROUTES:
        if entry.hot is not None and entry.listener == listener:
            document["paths"][entry.path] = {entry.method.lower(): _operation(entry, entry.hot)}
    kept = document.get("components", {})
    document["components"] = {
        **kept,
        "schemas": {**kept.get("schemas", {}), "Error": _ERROR},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    document["security"] = [{"key": []}]
    return document


def _operation(entry: Entry, route: Route) -> Schema:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    media: Schema = {"application/json": {"schema": _OBJECT}}
    kind = "multipart/form-data" if route in FORMS else "application/json"
    if route is Route.SPEECH:
        media = {"audio/*": {"schema": _FILE}}
    elif route in GENERATES:
        media["text/event-stream"] = {"schema": _TEXT}
    return {
        "operationId": entry.name,
        "summary": entry.name.replace("_", " ").capitalize(),
        "requestBody": {"required": True, "content": {kind: {"schema": REQUESTS[route]}}},
        "responses": {
            "200": {"description": "The answer.", "content": media},
            "4XX": {"description": "It was refused.", "content": error},
            "5XX": {"description": "No engine could serve it.", "content": error},
        },
    }
