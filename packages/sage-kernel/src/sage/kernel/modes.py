"""How a piece of user code is called, and who does the work: the thing itself or instances of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from sage.kernel.services import ServiceCall

__all__ = ["Mode", "instances_do", "mode_for", "mode_of"]

Mode: TypeAlias = Literal["sync", "async", "parts"]


def mode_of(fn: Callable[..., Any]) -> Mode:
    """Whether calling `fn` gives a value, an awaitable or an async iterator; a call of a service that may
    give either is awaited.
    """
    if isinstance(fn, ServiceCall):
        return mode_of(fn.fn) if fn.fn is not None else "async"
    for target in (fn, getattr(fn, "func", None), _dunder_call(fn)):
        if inspect.iscoroutinefunction(target):
            return "async"
        if inspect.isasyncgenfunction(target):
            return "parts"
    return "sync"


def mode_for(verb: str, fn: Any) -> Mode:
    """The mode of an operator; where instances of a class do the work, theirs."""
    if isinstance(fn, type) and verb == "map_batch" and instances_do(fn, "function"):
        return mode_of(fn.__call__)
    return mode_of(fn) if callable(fn) else "sync"


def _dunder_call(fn: Any) -> Any:
    return None if inspect.isroutine(fn) or isinstance(fn, type) else type(fn).__call__


def instances_do(kind: type, role: str) -> bool:
    """Whether the work is done by instances: `map_batch(Model)`, not `map_batch(list)`."""
    wanted = ("write", "__call__") if role == "sink" else ("__call__",)
    return any(name in vars(base) for base in kind.__mro__ for name in wanted)
