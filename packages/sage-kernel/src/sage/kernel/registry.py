"""Operators by name: factories that are called with the parameters of a plan.

A name is looked up among what was registered here, the kernel's own sources and sinks, and the entry
points of the group `sage.operators` of the installed packages; nothing is imported before it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from sage.common.errors import BadRequestError, NotFoundError
from sage.kernel.options import Use
from sage.kernel.plan import Iterate, Node, Plan, Spec

__all__ = ["Factory", "Operator", "Registry", "Role", "default_registry", "nearest", "operator"]

Role: TypeAlias = Literal["source", "sink", "function"]
Factory: TypeAlias = Callable[..., Any]
F = TypeVar("F", bound=Factory)

GROUP = "sage.operators"
BUILT_IN: dict[tuple[str, str], str] = {
    ("source", "csv"): "sage.kernel.connectors:Csv",
    ("source", "files"): "sage.kernel.connectors:Files",
    ("source", "http"): "sage.kernel.connectors:HttpLines",
    ("source", "http_pages"): "sage.kernel.connectors:HttpPages",
    ("source", "items"): "sage.kernel.connectors:items",
    ("function", "kafka_timestamp"): "sage.kernel.connectors:kafka_timestamp",
    ("source", "kafka"): "sage.kernel.connectors:KafkaSource",
    ("function", "service"): "sage.kernel.services:call_service",
    ("source", "jsonl"): "sage.kernel.connectors:Jsonl",
    ("source", "lines"): "sage.kernel.connectors:Lines",
    ("source", "parquet"): "sage.kernel.connectors:Parquet",
    ("source", "queue"): "sage.kernel.connectors:QueueSource",
    ("source", "sql"): "sage.kernel.connectors:Sql",
    ("sink", "csv"): "sage.kernel.connectors:CsvFile",
    ("sink", "http"): "sage.kernel.connectors:HttpPost",
    ("sink", "jsonl"): "sage.kernel.connectors:JsonlFile",
    ("sink", "kafka"): "sage.kernel.connectors:KafkaSink",
    ("sink", "lines"): "sage.kernel.connectors:LinesFile",
    ("sink", "parquet"): "sage.kernel.connectors:ParquetFolder",
    ("sink", "queue"): "sage.kernel.connectors:QueueSink",
    ("sink", "sql"): "sage.kernel.connectors:SqlTable",
    ("sink", "stdout"): "sage.kernel.connectors:Stdout",
}


@dataclass(frozen=True, slots=True)
class Operator:
    """A named factory: `factory(**params)` gives a source, a sink, or a callable."""

    name: str
    factory: Factory

    def bind(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments to call the factory with; raises `BadRequestError` that lists what does not fit."""
        known = inspect.signature(self.factory).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
        takes = {n: p for n, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        problems = [
            f"unknown parameter {name!r}{nearest(name, takes)}"
            for name in params
            if name not in takes and not open_ended
        ]
        problems += [
            f"parameter {name!r} is missing"
            for name, p in takes.items()
            if p.default is p.empty and name not in params
        ]
        hints = self._hints()
        bound: dict[str, Any] = {}
        for name, value in params.items():
            try:
                bound[name] = _fit(value, hints.get(name, Any))
            except TypeError as error:
                problems.append(f"parameter {name!r} is {error}")
        if problems:
            raise BadRequestError(f"operator {self.name!r}: {'; '.join(problems)}.")
        return bound

    def make(self, params: Mapping[str, Any]) -> Any:
        """Call the factory."""
        return self.factory(**self.bind(params))

    def _hints(self) -> dict[str, Any]:
        target: Any = self.factory
        if isinstance(target, type):
            target = target.__init__  # type: ignore[misc] # of whichever class it is
        try:
            return get_type_hints(target)
        except (NameError, TypeError):
            # Annotations of names imported for type checkers only: such parameters are taken as they are.
            return {}


class Registry:
    """Operators found by name and by what they are used as."""

    def __init__(self, *, entry_points: bool = True) -> None:
        self._made: dict[tuple[str, str], Operator] = {}
        self._entry_points = entry_points

    def register(self, name: str, factory: Factory, *, role: Role | None = None) -> None:
        """Add or replace a factory; without a role, it serves any."""
        self._made[role or "", name] = Operator(name, factory)

    def get(self, name: str, role: Role) -> Operator:
        """The operator of that name for that role; raises `NotFoundError` naming the nearest and all."""
        for key in ((role, name), ("", name)):
            if found := self._made.get(key):
                return found
        target = BUILT_IN.get((role, name))
        if target is not None:
            module, _, attribute = target.partition(":")
            factory = getattr(import_module(module), attribute)
        else:
            factory = self._load(name, role)
        found = Operator(name, factory)
        self._made[role if target else "", name] = found
        return found

    def names(self, role: Role) -> list[str]:
        """The operators that may be used as `role`."""
        mine = {name for kind, name in (*self._made, *BUILT_IN) if kind in (role, "")}
        return sorted(mine | set(self._points()))

    def make(self, use: Use, role: Role) -> Any:
        """What a plan's `Use` stands for."""
        return self.get(use.name, role).make(use.params)

    def problems(self, plan: Plan) -> Iterator[str]:
        """What is wrong with the named operators of a plan; factories are loaded and not called."""
        for node in plan.nodes:
            for use in uses(node):
                try:
                    self.get(use.name, role_of(node.verb)).bind(use.params)
                except (BadRequestError, NotFoundError) as error:
                    yield f"{node.name!r}: {error}"

    def _load(self, name: str, role: Role) -> Factory:
        point = self._points().get(name)
        if point is None:
            other: Role = "source" if role == "sink" else "sink"
            wrong = f"; {name!r} is a {other}" if (other, name) in BUILT_IN else ""
            known = self.names(role)
            there = f"; there are: {', '.join(known)}." if known else "."
            raise NotFoundError(f"no {role} operator is named {name!r}{nearest(name, known)}{wrong}{there}")
        loaded: Factory = point.load()
        return loaded

    def _points(self) -> Mapping[str, Any]:
        return _entry_points() if self._entry_points else {}


def uses(node: Node) -> list[Use]:
    """The named operators that a node refers to, those in the body of a loop too."""
    fn: Any = node.fn
    parts = [getattr(fn, part.name) for part in fields(fn)] if isinstance(fn, Spec) else [fn]
    if node.call.cache is not None:
        parts.append(node.call.cache.key)
    inner = fn.body.nodes if isinstance(fn, Iterate) else ()
    return [part for part in parts if isinstance(part, Use)] + [use for node in inner for use in uses(node)]


def role_of(verb: str) -> Role:
    """What a verb uses its operator as."""
    return "source" if verb == "source" else "sink" if verb == "sink" else "function"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where something is near enough, else nothing."""
    from difflib import get_close_matches

    found = get_close_matches(name, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


@cache
def default_registry() -> Registry:
    """The registry of this process."""
    return Registry()


def operator(name: str, *, role: Role | None = None) -> Callable[[F], F]:
    """Register the decorated factory under `name` in this process."""

    def register(factory: F) -> F:
        default_registry().register(name, factory, role=role)
        return factory

    return register


@cache
def _entry_points() -> Mapping[str, Any]:
    from importlib.metadata import entry_points  # 30 ms: only when a name is not known here

    return {point.name: point for point in entry_points(group=GROUP)}


def _fit(value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it; raises TypeError saying what it is and what would do."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _fit_union(value, args)
    if origin is Literal:
        if value not in args:
            raise TypeError(f"{value!r}, not one of {', '.join(map(repr, args))}")
        return value
    kind = origin or hint
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is NoneType:
        kind = type(None)
    checked = (bool, int, float, str, Path, list, dict, tuple, type(None))
    # bool is an int to Python; to someone who writes a parameter it is not.
    if kind in checked and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise TypeError(f"{value!r} ({type(value).__name__}), not {_spell(hint)}")
    if kind is list and args:
        return [_fit(item, args[0]) for item in value]
    return value


def _fit_union(value: Any, args: tuple[Any, ...]) -> Any:
    exact = [a for a in args if a is type(value)]
    for hint in (*exact, *args):
        try:
            return _fit(value, hint)
        except TypeError:
            continue
    raise TypeError(f"{value!r} ({type(value).__name__}), not {' or '.join(map(_spell, args))}")


def _spell(hint: Any) -> str:
    if hint is NoneType:
        return "null"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
