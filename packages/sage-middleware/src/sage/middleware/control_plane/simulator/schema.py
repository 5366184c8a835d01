"""YAML files checked against a model: every problem with its line, its key and what would be valid."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sage.common.errors import ConfigError
from sage.common.sources import KeyPath, Source, from_file

__all__ = ["read_checked"]

_M = TypeVar("_M", bound=BaseModel)
_TAGS: Final = ("kind", "process", "format")  # keys that choose among models; pydantic puts them into paths


def read_checked(path: Path, model: type[_M], noun: str) -> _M:
    """The content of a YAML file as `model`. Raises ConfigError that lists every problem."""
    source = from_file(path)
    try:
        return model.model_validate_json(json.dumps(source.values), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines = [
            _Detail(detail, source, path, model).line() for detail in details if not _echo(detail, details)
        ]
        head = f"The {noun} {path} has {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
        raise ConfigError("\n  ".join([head, *lines])) from error


def _echo(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Whether a list is only called too short because of the problems of its items."""
    place = detail["loc"]
    return detail["type"] == "too_short" and any(
        other["loc"][: len(place)] == place for other in details if other is not detail
    )


class _Detail:
    """One problem, with the models that its key could have belonged to."""

    def __init__(self, detail: ErrorDetails, source: Source, file: Path, root: type[BaseModel]) -> None:
        self._detail = detail
        self._place = str(file)
        self._models: list[type[BaseModel]] = [root]
        self._key: KeyPath = ()
        self._walk(source)

    def line(self) -> str:
        """`file.yaml:3: streams.0.rate: found -1, valid is …`."""
        return f"{self._place}: {'.'.join(map(str, self._key)) or 'the file'}: {self._words()}"

    def _walk(self, source: Source) -> None:
        """Follow the path of the error through the models; parts that are tags of a union only choose one."""
        *inner, last = self._detail["loc"] or ("",)
        for part in inner:
            tagged = [model for model in self._models if part in _tag_values(model)]
            named = [found for model in self._models for found in _below(model, str(part))]
            if isinstance(part, str) and tagged and not named:
                self._models = tagged
                continue
            self._key = (*self._key, part)
            if isinstance(part, str):
                self._models = named
        # The union's own tag may end a path, too.
        tags = {value for model in self._models for value in _tag_values(model)}
        if last != "" and not (last in tags and self._detail["type"] not in ("extra_forbidden", "missing")):
            self._key = (*self._key, last)
        for length in range(len(self._key), 0, -1):
            if place := source.places.get(self._key[:length]):
                self._place = place
                return

    def _words(self) -> str:
        kind, context = self._detail["type"], self._detail.get("ctx", {})
        if kind == "extra_forbidden":
            return f"unknown key; {self._nearest()}"
        if kind == "missing":
            return "this key is required and missing"
        tag = str(context.get("discriminator", "")).strip("'")
        if kind == "union_tag_not_found":
            return f"the key {tag} is missing; it says which kind this is"
        if kind == "union_tag_invalid":
            valid = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
            return f"{tag} is {context['tag']!r}; {_suggest(context['tag'], valid)}"
        shown = json.dumps(self._detail["input"], default=str)
        return f"{self._detail['msg']}; found {shown if len(shown) <= 60 else f'{shown[:57]}...'}"

    def _nearest(self) -> str:
        valid = sorted({field for model in self._models for field in model.model_fields})
        return _suggest(str(self._key[-1]), valid)


def _suggest(found: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(found, valid, n=1)
    nearest = f"the nearest is {close[0]}; " if close else ""
    return f"{nearest}valid are {', '.join(valid)}"


def _below(model: type[BaseModel], key: str) -> list[type[BaseModel]]:
    field = model.model_fields.get(key)
    return _inside(field.annotation) if field else []


def _inside(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation mentions, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _inside(part)]


def _tag_values(model: type[BaseModel]) -> set[str]:
    fields = (model.model_fields.get(tag) for tag in _TAGS)
    return {value for field in fields if field for value in get_args(field.annotation)}
