"""Which keys a plan has as plain data, and their JSON Schema."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

from sage.kernel.options import Cache, Window
from sage.kernel.plan import Verb

__all__ = [
    "CACHE",
    "CALL",
    "COUNTS",
    "NAMED",
    "OPTIONS",
    "PROVISION",
    "REQUIRED",
    "VERBS",
    "WINDOW",
    "WORDS",
    "flow_schema",
]

VERBS: tuple[Verb, ...] = get_args(Verb)
CALL = ("concurrency", "order", "timeout", "retry", "on_error", "cache")
CACHE = tuple(field.name for field in fields(Cache))
PROVISION = ("parallelism", "resources", "scale")
WINDOW = tuple(field.name for field in fields(Window))
NAMED = ("key", "init", "step", "merge", "at", "left", "right", "until", "when")  # the options that name code
REQUIRED = {
    "scan": ("key", "init", "step"),
    "event_time": ("at",),
    "window": ("key", "init", "step"),
    "join": ("left", "right", "within"),
    "iterate": ("body", "until", "max_rounds"),
    "gate": ("inbox", "timeout"),
}
WORDS = ("on_late", "on_rounds", "on_timeout", "inbox")  # the options of a spec that are text
COUNTS = ("max_rounds", "limit")
OPTIONS: dict[str, tuple[str, ...]] = {
    "source": ("use", "with"),
    "requests": ("type",),
    "map": ("use", "with", *CALL, *PROVISION),
    "flatmap": ("use", "with", "on_error", *PROVISION),
    "filter": ("use", "with", "on_error", *PROVISION),
    "map_batch": ("use", "with", "batch", *CALL, *PROVISION),
    "scan": ("key", "init", "step", "ttl"),
    "event_time": ("at", "lateness", "idle", "on_error"),
    "window": ("key", "init", "step", "merge", *WINDOW, "on_error"),
    "join": ("left", "right", "within", "on_late", "on_error"),
    "iterate": ("body", "until", "max_rounds", "on_rounds", "concurrency", "order", "timeout", "on_error"),
    "gate": ("inbox", "timeout", "when", "on_timeout", "limit", "on_error"),
    "sink": ("use", "with"),
    "reply": (),
}


def flow_schema() -> dict[str, Any]:
    """The JSON Schema of the plain-data form."""
    count = {"type": "integer", "minimum": 1}
    seconds = {"type": "number", "minimum": 0}
    reference = {
        "type": "object",
        "properties": {"use": {"type": "string"}, "with": {"type": "object"}},
        "required": ["use"],
        "additionalProperties": False,
    }
    named = {"anyOf": [{"type": "string"}, reference]}
    retry = {"attempts": count, "backoff": seconds, "on": {"type": "array", "items": {"type": "string"}}}
    properties: dict[str, Any] = {
        **reference["properties"],  # type: ignore[dict-item] # a literal of this very dict
        "type": {"type": "string"},
        "concurrency": count,
        "order": {"enum": ["input", "any"]},
        "timeout": {"type": "number", "exclusiveMinimum": 0},
        "retry": {"type": "object", "properties": retry, "additionalProperties": False},
        "on_error": {"enum": ["fail", "skip", "divert"]},
        "batch": {
            "type": "object",
            "properties": {"size": count, "wait": seconds},
            "additionalProperties": False,
        },
        **dict.fromkeys(("lateness", "idle", "size", "slide", "gap", "late", "within"), seconds),
        "ttl": seconds,
        **dict.fromkeys(COUNTS, count),
        "inbox": {"type": "string", "minLength": 1},
        "body": {"type": "array", "items": {"$ref": "#/$defs/step"}, "minItems": 1},
        "on_rounds": {"enum": ["fail", "emit", "divert"]},
        "on_timeout": {"enum": ["reject", "approve"]},
        "cache": {
            "type": "object",
            "properties": _cache(count, seconds, named),
            "additionalProperties": False,
        },
        "on_late": {"enum": ["fail", "skip", "divert"]},
        **dict.fromkeys(NAMED, named),
        **_provision_schema(count, seconds),
    }
    steps = [_step_schema(verb, options, properties) for verb, options in OPTIONS.items()]
    merge = {"merge": {"type": "array", "items": {"type": "string"}, "minItems": 1}, "id": {"type": "string"}}
    steps.append(
        {"type": "object", "properties": merge, "required": ["merge"], "additionalProperties": False}
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "SAGE pipeline",
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}},
        },
        "required": ["name", "steps"],
        "additionalProperties": False,
        "$defs": {"step": {"oneOf": steps}},
    }


def _provision_schema(count: dict[str, Any], amount: dict[str, Any]) -> dict[str, Any]:
    size = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]}
    parallel = {"n": count, "kind": {"enum": ["process", "thread"]}, "order": {"enum": ["input", "any"]}}
    labels = {"type": "object", "additionalProperties": {"type": "string"}}
    resources = {"cpu": amount, "gpu": amount, "memory": size, "gpu_memory": size, "labels": labels}
    scale = {"min": count, "max": count, "target_wait": {"type": "number", "exclusiveMinimum": 0}}

    def closed(properties: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "additionalProperties": False}

    workers = {"anyOf": [count, closed(parallel)]}
    return {"parallelism": workers, "resources": closed(resources), "scale": closed(scale)}


def _cache(count: dict[str, Any], seconds: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    return {"ttl": seconds, "size": count, "bytes": count, "path": {"type": "string"}, "key": named}


def _step_schema(verb: str, options: tuple[str, ...], properties: dict[str, Any]) -> dict[str, Any]:
    required = ["use"] if "use" in options else list(REQUIRED.get(verb, ()))
    body: dict[str, Any] = {
        "type": ["object", "null"] if not required else "object",
        "properties": {name: properties[name] for name in options},
        "required": required,
        "additionalProperties": False,
    }
    whole = {"anyOf": [{"type": "string"}, body]} if "use" in options else body
    keys = {verb: whole, "id": {"type": "string"}}
    if verb == "join":
        both = {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}
        return {
            "type": "object",
            "properties": {**keys, "from": both},
            "required": [verb, "from"],
            "additionalProperties": False,
        }
    if verb not in ("source", "requests"):
        keys["from"] = {"type": "string"}
    return {"type": "object", "properties": keys, "required": [verb], "additionalProperties": False}
