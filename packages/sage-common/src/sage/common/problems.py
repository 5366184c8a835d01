"""What is wrong with a configuration, in words: the key, what was found and what would be valid."""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sage.common.config import Ability, EngineConfig, SageConfig
from sage.common.names import name_problems
from sage.common.sources import KeyPath

__all__ = ["Problem", "dotted", "schema_problems", "semantic_problems"]

Problem = tuple[KeyPath, str]

_VALID = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "path_type": "a path",
    "model_type": "a mapping of keys to values",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of at most {max_length}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number from {ge} up",
    "less_than_equal": "a number up to {le}",
    "literal_error": "{expected}",
}
_ABILITIES: dict[str, tuple[str, ...]] = {
    "generate": tuple(one for one in get_args(Ability) if one not in ("embeddings", "rerank")),
    "embed": ("embeddings",),
    "rerank": ("rerank",),
}
_NOT_VLLM = ("speech", "images", "image_edits")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def dotted(path: KeyPath) -> str:
    """`engines.0.kind`."""
    return ".".join(map(str, path))


def schema_problems(error: ValidationError) -> list[Problem]:
    """Every unknown key, missing key and wrong type that the schema found."""
    return [(tuple(detail["loc"]), _explain(detail)) for detail in error.errors(include_url=False)]


def semantic_problems(config: SageConfig) -> list[Problem]:
    """What fits the schema and still cannot work."""
    return [
        *_gateway(config),
        *_ports(config),
        *_tenants(config),
        *_engines(config),
        *name_problems(config),
    ]


def _explain(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return f"unknown key; {_suggest(tuple(detail['loc']))}"
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], int):
        return "the list ends too early; it needs a value here"
    if detail["type"] == "missing":
        return "this key is required and missing"
    valid = _VALID.get(detail["type"])
    wanted = valid.format(**detail.get("ctx", {})) if valid else detail["msg"]
    return f"found {_shown(detail['input'])}, valid is {wanted}"


def _shown(value: object) -> str:
    """The value as it would be written in the file, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggest(path: KeyPath) -> str:
    """The nearest key beside the unknown one, else the nearest anywhere, else all that there are."""
    model = _model_at(path[:-1])
    name, siblings = str(path[-1]), list(model.model_fields)
    if close := difflib.get_close_matches(name, siblings, n=1):
        return f"the nearest valid key is {dotted((*path[:-1], close[0]))}"
    everywhere = {key[-1]: key for key in reversed(list(_keys(SageConfig, ())))}
    if close := difflib.get_close_matches(name, everywhere, n=1, cutoff=0.8):
        return f"the nearest valid key is {dotted(everywhere[close[0]])}"
    return f"valid keys are {', '.join(siblings)}"


def _model_at(path: KeyPath) -> type[BaseModel]:
    """The section that a path leads to; a list's items share one model."""
    model: type[BaseModel] = SageConfig
    for part in path:
        if isinstance(part, str):
            model = _inner(model.model_fields[part].annotation) or model
    return model


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, itself or as the items of a list."""
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _keys(model: type[BaseModel], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, (*prefix, name))


def _gateway(config: SageConfig) -> Iterator[Problem]:
    host = config.gateway.host
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        yield (
            ("gateway", "host"),
            f'found "{host}", valid is a loopback address such as 127.0.0.1: '
            "this version does not serve keys over a network",
        )


def _ports(config: SageConfig) -> Iterator[Problem]:
    users: dict[int, str] = {}
    for name in type(config.ports).model_fields:
        value = getattr(config.ports, name)
        if isinstance(value, tuple):
            low, high = value
            if low > high:
                yield (
                    ("ports", name),
                    f"the range {low} to {high} is empty; the first port must not be above the last",
                )
        elif value and value in users:
            yield ("ports", name), f"port {value} is taken by ports.{users[value]}; each needs its own"
        else:
            users[value] = name


def _tenants(config: SageConfig) -> Iterator[Problem]:
    tenants = config.control_plane.tenants
    yield from _names(("control_plane", "tenants"), [tenant.name for tenant in tenants])


def _names(path: KeyPath, names: list[str]) -> Iterator[Problem]:
    """An engine's name is one of a log file too, and a tenant's stands in a header."""
    counts = Counter(names)
    for index, name in enumerate(names):
        if not _NAME.fullmatch(name):
            yield (
                (*path, index, "name"),
                f"found {_shown(name)}, valid are letters, digits, dots, dashes and underscores",
            )
        if counts[name] > 1:
            yield (
                (*path, index, "name"),
                f'"{name}" names {counts[name]} {path[-1]}; each needs its own name',
            )


def _engines(config: SageConfig) -> Iterator[Problem]:
    yield from _names(("engines",), [engine.name for engine in config.engines])
    for index, engine in enumerate(config.engines):
        path: KeyPath = ("engines", index)
        if engine.min_replicas > engine.max_replicas:
            yield (
                (*path, "min_replicas"),
                f"{engine.min_replicas} is more than max_replicas, which is {engine.max_replicas}",
            )
        if engine.kind == "openai" and not engine.url:
            yield (*path, "url"), "an engine of kind openai needs the base URL of its server here"
        if engine.url and not engine.url.startswith(("http://", "https://")):
            yield (*path, "url"), f"found {_shown(engine.url)}, valid is http://… or https://…"
        yield from _capabilities(path, engine)


def _capabilities(path: KeyPath, engine: EngineConfig) -> Iterator[Problem]:
    """An engine that is started here is known; of one elsewhere the task says how it is scheduled."""
    if engine.capabilities and engine.kind not in ("openai", "vllm"):
        yield (
            (*path, "capabilities"),
            f"what an engine of kind {engine.kind} can is known; only kinds openai and vllm take this key",
        )
        return
    valid = _ABILITIES[engine.task]
    if engine.kind == "vllm":
        valid = tuple(ability for ability in valid if ability not in _NOT_VLLM)
    for index, ability in enumerate(engine.capabilities):
        if ability not in valid:
            yield (
                (*path, "capabilities", index),
                f'found "{ability}", valid with task {engine.task} is one of {", ".join(valid)}',
            )
