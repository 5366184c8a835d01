"""Where configuration comes from: flags, environment variables and YAML files, each value with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sage.common.config import SageConfig
from sage.common.errors import ConfigError

__all__ = ["KeyPath", "Source", "from_env", "from_file", "from_flags", "merge"]

_T = TypeVar("_T")
KeyPath = tuple[str | int, ...]

_PREFIX = "SAGE_"
_MAX_BYTES = 1024 * 1024
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Source:
    """Plain values (JSON types only), and for the path of every node the place it was written at."""

    values: dict[str, Any]
    places: dict[KeyPath, str]


def from_flags(flags: Mapping[str, object]) -> Source:
    """`{"gateway.host": …}`; None = the flag was not given. Text is read as YAML where no text is due."""
    values: dict[str, Any] = {}
    for key, value in flags.items():
        if value is not None:
            path = key.split(".")
            _put(values, path, _typed(path, value, f"flag {key}") if isinstance(value, str) else value)
    return _source(values, lambda _: "flag")


def from_env(env: Mapping[str, str]) -> Source:
    """`SAGE_GATEWAY__HOST` and its like.

    A name without `__` that is no section of the schema is not configuration (`SAGE_HOME`) and left alone.
    """
    values: dict[str, Any] = {}
    names: dict[KeyPath, str] = {}
    for name in sorted(env):  # a whole section sorts before its parts, which then win
        path = name.removeprefix(_PREFIX).lower().split("__")
        if not name.startswith(_PREFIX) or (len(path) == 1 and path[0] not in SageConfig.model_fields):
            continue
        _put(values, path, _typed(path, env[name], f"env {name}"))
        names[tuple(path)] = name
    return _source(values, lambda path: f"env {_nearest(names, path, '')}")


def from_file(file: Path) -> Source:
    """A YAML file. Raises ConfigError with the line of what is not YAML, not a mapping or given twice."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{file} is {file.stat().st_size} bytes long; valid is up to {_MAX_BYTES}.")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    lines: dict[KeyPath, int] = {}
    try:
        values = YAML(typ="safe", pure=True).load(text)
        root = YAML(typ="safe", pure=True).compose(text)
    except YAMLError as error:
        raise ConfigError(f"{_place(file, error)}: {_words(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{file} is nested deeper than {_MAX_DEPTH} levels.") from error
    if values is None:
        return Source({}, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{file}:1: found {type(values).__name__}, valid is a mapping of keys to values.")
    for path, line in _lines(root):
        lines.setdefault(path, line)
    set_values = {key: value for key, value in values.items() if value is not None}  # `gateway:` and no more
    return _source(set_values, lambda path: f"{file}:{_nearest(lines, path, 1)}")


def merge(sources: list[Source]) -> Source:
    """One source of all, mappings merged by key, everything else replaced; the first in the list wins."""
    merged = Source({}, {})
    for source in reversed(sources):
        _overlay(merged, merged.values, source, source.values, ())
    return merged


def _overlay(
    below: Source, target: dict[str, Any], above: Source, values: dict[str, Any], prefix: KeyPath
) -> None:
    for key, value in values.items():
        path = (*prefix, key)
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _overlay(below, target[key], above, value, path)
            continue
        for old in [place for place in below.places if place[: len(path)] == path]:
            del below.places[old]
        target[key] = _plain(value)  # a copy: the sources stay as they are
        below.places.update({p: place for p, place in above.places.items() if p[: len(path)] == path})


def _source(values: dict[str, Any], locate: Callable[[KeyPath], str]) -> Source:
    plain = _plain(values)
    return Source(plain, {path: locate(path) for path in _paths(plain, ())})


def _put(values: dict[str, Any], path: list[str], value: object) -> None:
    *sections, last = path
    for section in sections:
        inner = values.get(section)
        values[section] = inner if isinstance(inner, dict) else {}
        values = values[section]
    values[last] = value


def _typed(path: list[str], text: str, place: str) -> object:
    """Text as it is where the schema wants text, else what it means in YAML: `8888`, `true`, `[1, 2]`."""
    model: type[BaseModel] = SageConfig
    wanted: Any = None
    for part in path:
        found = model.model_fields.get(part)
        wanted = (
            found.annotation if found else str
        )  # an unknown key is reported later, with the text as found
        model = wanted if isinstance(wanted, type) and issubclass(wanted, BaseModel) else BaseModel
    if wanted in (str, Path) or Path in get_args(wanted) or get_origin(wanted) is Literal:
        return text
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ConfigError(f"{place}: {text!r} is not a YAML value: {_words(error)}") from error


def _plain(value: object, depth: int = 0) -> Any:
    """JSON types only, copied. Raises ConfigError for what holds itself by an alias."""
    if depth > _MAX_DEPTH:
        raise ConfigError(f"The configuration is nested deeper than {_MAX_DEPTH} levels.")
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner, depth + 1) for inner in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _paths(value: object, prefix: KeyPath) -> Iterator[KeyPath]:
    """The path of every node below `prefix`."""
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for key, child in inner:
        yield (*prefix, key)
        yield from _paths(child, (*prefix, key))


def _lines(node: Node, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Path and line (from 1) of every node of a composed document; the line of a key is the key's own."""
    if len(prefix) > _MAX_DEPTH:  # an alias may hold itself; `_plain` refuses that
        return
    if isinstance(node, MappingNode):
        for key, child in node.value:
            if isinstance(key, ScalarNode):
                path = (*prefix, str(key.value))
                yield path, key.start_mark.line + 1
                yield from _lines(child, path)
    elif isinstance(node, SequenceNode):
        for index, child in enumerate(node.value):
            yield (*prefix, index), child.start_mark.line + 1
            yield from _lines(child, (*prefix, index))


def _nearest(table: Mapping[KeyPath, _T], path: KeyPath, otherwise: _T) -> _T:
    """The entry of the path or of the nearest path above or below it."""
    for length in range(len(path), 0, -1):
        if path[:length] in table:
            return table[path[:length]]
    return next((entry for key, entry in table.items() if key[: len(path)] == path), otherwise)


def _place(file: Path, error: YAMLError) -> str:
    mark = error.problem_mark or error.context_mark if isinstance(error, MarkedYAMLError) else None
    return f"{file}:{mark.line + 1}" if mark else str(file)


def _words(error: YAMLError) -> str:
    problem = error.problem if isinstance(error, MarkedYAMLError) else None
    return str(problem or str(error).splitlines()[0])
