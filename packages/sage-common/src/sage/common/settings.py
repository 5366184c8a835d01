"""Load the configuration and say where each value came from.

Order, first wins: flags > `SAGE_…` environment > `--config FILE` > `./sage.yaml` > user config > defaults.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from sage.common.config import SageConfig
from sage.common.errors import ConfigError
from sage.common.paths import SagePaths
from sage.common.problems import Problem, dotted, schema_problems, semantic_problems
from sage.common.sources import KeyPath, Source, from_env, from_file, from_flags, merge

__all__ = ["FILE_NAME", "Loaded", "json_schema", "load"]

FILE_NAME = "sage.yaml"
_NO_FLAGS: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration, and for each dotted key its origin.

    An origin is `flag`, `env SAGE_GATEWAY__HOST`, `/path/sage.yaml:3` or `default`.
    """

    config: SageConfig
    origin: dict[str, str]


def load(
    flags: Mapping[str, object] = _NO_FLAGS,
    file: Path | None = None,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    paths: SagePaths | None = None,
) -> Loaded:
    """Merge all sources by key and check the result. Flags are dotted keys; one of None was not given.

    Raises ConfigError that lists every problem with its place, its key, what was found and what is valid.
    """
    user = (paths or SagePaths.default()).config / FILE_NAME
    local = (cwd or Path.cwd()) / FILE_NAME
    files = [*([file] if file else []), *(path for path in (local, user) if path.is_file())]
    merged = merge(
        [from_flags(flags), from_env(os.environ if env is None else env), *(from_file(f) for f in files)]
    )
    try:
        # Through JSON, since only there strict takes a list for a tuple and text for a path.
        config = SageConfig.model_validate_json(json.dumps(merged.values), strict=True)
    except ValidationError as error:
        raise _refusal(schema_problems(error), merged) from error
    if problems := semantic_problems(config):
        raise _refusal(problems, merged)
    origin = {dotted(path): merged.places.get(path, "default") for path in _leaves(config, ())}
    return Loaded(config, origin)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `sage.yaml`, for editors and for checks."""
    schema = SageConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": FILE_NAME}


def _refusal(problems: list[Problem], merged: Source) -> ConfigError:
    lines = [f"{_place(path, merged)}: {dotted(path)}: {words}" for path, words in problems]
    if len(lines) == 1:
        return ConfigError(lines[0])
    return ConfigError("\n  ".join([f"The configuration has {len(lines)} problems:", *lines]))


def _place(path: KeyPath, merged: Source) -> str:
    """Where the key or, if it is missing, the nearest section around it was written."""
    for length in range(len(path), 0, -1):
        if place := merged.places.get(path[:length]):
            return place
    return "default"


def _leaves(model: BaseModel, prefix: KeyPath) -> Iterator[KeyPath]:
    for name in type(model).model_fields:
        value, path = getattr(model, name), (*prefix, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, path)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for index, item in enumerate(value):
                yield from _leaves(item, (*path, index))
        else:
            yield path
