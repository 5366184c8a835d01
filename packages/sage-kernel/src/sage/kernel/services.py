"""Calling what the operators of a run share by name: a client, a model, another flow.

    search = call_service("store", Store.search)

    async def retrieve(ask: Ask) -> Ask:
        return replace(ask, context=await search(ask.question))

`LocalEnvironment.register_service("store", Store)` says what is behind the name. A run makes it once, before
its operators are set up, and closes it once, behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from dis import get_instructions
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from sage.common.errors import NotFoundError, UsageError
from sage.kernel.registry import nearest

__all__ = ["SERVICES", "ServiceCall", "bound", "call_service", "service_calls", "unknown_services"]

P = ParamSpec("P")
R = TypeVar("R")

SERVICES: ContextVar[Mapping[str, Any] | None] = ContextVar("sage_services", default=None)
"""The services of the run that this code belongs to."""


@dataclass(frozen=True, slots=True)
class ServiceCall(Generic[P, R]):
    """A method of a service; without a method, the service itself is called. `fn` knows its signature."""

    name: str
    method: str = ""
    fn: Callable[..., Any] | None = None

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the service of this run gives, an awaitable where its method is asynchronous."""
        services = SERVICES.get()
        if services is None:
            raise UsageError(f"service {self.name!r} is called outside of a run.")
        if self.name not in services:
            raise NotFoundError(f"{_no_service(self.name, services)}.")
        service = services[self.name]
        target = getattr(service, self.method, None) if self.method else service
        if not callable(target):
            what = f"no method {self.method!r}" if self.method else "no method of its own: name one"
            raise UsageError(f"service {self.name!r}, a {type(service).__name__}, has {what}.")
        result: R = target(*args, **kwargs)
        return result


@overload
def call_service(name: str, method: Callable[Concatenate[Any, P], R]) -> ServiceCall[P, R]: ...
@overload
def call_service(name: str, method: str = "") -> ServiceCall[..., Any]: ...
def call_service(name: str, method: Any = "") -> ServiceCall[..., Any]:
    """What calls the service `name`, in operators or as one: `stream.map(call_service("answers"))`.

    A method given as such, `Store.search`, lends its types. Kept in a global, an attribute of an operator, or
    a variable of the function around, the name is checked before anything runs.
    """
    if isinstance(method, str):
        return ServiceCall(name, method)
    return ServiceCall(name, method.__name__, method)


@contextmanager
def bound(services: Mapping[str, Any]) -> Iterator[None]:
    """What runs inside, and the tasks that begin there, calls these services."""
    token = SERVICES.set(services)
    try:
        yield
    finally:
        SERVICES.reset(token)


def unknown_services(operator: str, fn: Any, known: Collection[str]) -> Iterator[str]:
    """One problem for each service that `fn` calls and that is not among the `known`."""
    for name in sorted({call.name for call in service_calls(fn)} - set(known)):
        yield f"{operator!r}: {_no_service(name, known)}"


def _no_service(name: str, known: Collection[str]) -> str:
    there = f"there are: {', '.join(sorted(known))}" if known else "this environment has none"
    return f"no service is named {name!r}{nearest(name, known)}; {there}"


def service_calls(fn: Any) -> Iterator[ServiceCall[..., Any]]:
    """The service calls that a function refers to by name, or an object has as attributes."""
    if isinstance(fn, ServiceCall):
        yield fn
    elif isinstance(fn, partial):
        for part in (fn.func, *fn.args, *fn.keywords.values()):
            yield from service_calls(part)
    elif isinstance(fn, MethodType):
        yield from service_calls(fn.__func__)
        yield from _attributes(fn.__self__)
    elif isinstance(fn, FunctionType):
        cells = [cell.cell_contents for cell in fn.__closure__ or () if _filled(cell)]
        found = [*cells, *(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
        yield from (one for one in (*found, *_globals(fn)) if isinstance(one, ServiceCall))
    elif isinstance(call := getattr(type(fn), "__call__", None), FunctionType):  # noqa: B004
        yield from service_calls(call)
        yield from _attributes(fn)


def _attributes(owner: Any) -> Iterator[ServiceCall[..., Any]]:
    mine = {**vars(type(owner)), **getattr(owner, "__dict__", {})}
    yield from (one for one in mine.values() if isinstance(one, ServiceCall))


def _globals(fn: FunctionType) -> Iterator[Any]:
    """The globals that a function refers to, with the functions in it."""
    todo = [fn.__code__]
    while todo:
        code = todo.pop()
        todo += [const for const in code.co_consts if isinstance(const, CodeType)]
        named = [name for name in code.co_names if isinstance(fn.__globals__.get(name), ServiceCall)]
        # The names of attributes are among them: telling which is which takes long, so only where it matters.
        if named:
            loaded = {found.argval for found in get_instructions(code) if found.opname == "LOAD_GLOBAL"}
            yield from (fn.__globals__[name] for name in named if name in loaded)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
