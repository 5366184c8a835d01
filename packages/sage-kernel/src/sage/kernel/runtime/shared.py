"""The services of a run: made before its operators, called by name, closed behind them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

from sage.kernel.compile import compile_plan
from sage.kernel.flow import Flow
from sage.kernel.registry import Registry
from sage.kernel.runtime.engine import Engine
from sage.kernel.runtime.job import Job
from sage.kernel.runtime.report import operator_error

__all__ = ["LIMIT", "ServiceFactory", "serving"]

LIMIT = 1024
"""How many requests a job takes at once where nothing else is said."""

ServiceFactory: TypeAlias = "Callable[[], Any] | Flow"
"""What makes a service: a class, a function without parameters, or a flow of requests, run as a job."""


@asynccontextmanager
async def serving(
    factories: Mapping[str, ServiceFactory], registry: Registry, engine: Engine
) -> AsyncIterator[None]:
    """Make the services of a run, in the order they were registered.

    `setup` and `close` are called where they exist; they are closed in reverse, whatever happens.
    """
    async with AsyncExitStack() as stack:
        for name, factory in factories.items():
            if isinstance(factory, Flow):
                plan = compile_plan(factory.plan, registry, factories)
                inner = Engine(factory.name, engine.around, engine.inboxes, services=engine.services)
                engine.services[name] = job = await Job.start(plan, LIMIT, inner)
                stack.push_async_callback(job.stop)
                continue
            service = await _told(name, factory)
            await _told(name, getattr(service, "setup", None))
            engine.services[name] = service
            stack.push_async_callback(_told, name, getattr(service, "close", None))
        yield


async def _told(name: str, method: Callable[[], Any] | None) -> Any:
    if method is None:
        return None
    try:
        result = method()
        return await result if inspect.isawaitable(result) else result
    except Exception as error:
        what = getattr(method, "__name__", type(method).__name__)
        raise operator_error(f"{what} of service {name!r} failed", error) from error
