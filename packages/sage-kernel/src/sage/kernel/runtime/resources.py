"""Setting up what operators own, and closing it again whatever happens."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sage.kernel.compile import Op
from sage.kernel.ports import FIRST_EPOCH
from sage.kernel.runtime.report import operator_error

__all__ = ["call", "commit", "opened"]


@asynccontextmanager
async def opened(ops: Iterable[Op]) -> AsyncIterator[None]:
    """Call every `setup`, in the order of the plan; at the end every `close`, backwards, each once.

    An object that several operators share is set up and closed once.
    """
    seen: set[int] = set()
    async with AsyncExitStack() as stack:
        for op in ops:
            owner = op.owner
            if owner is None or isinstance(owner, type) or id(owner) in seen:
                continue
            seen.add(id(owner))
            await call(op, "setup")
            if _closes(op):
                stack.push_async_callback(call, op, "close")
        yield


async def commit(ops: Iterable[Op]) -> None:
    """Tell every `Sink` that all of its records are written."""
    for op in ops:
        if op.node.verb == "sink":
            await call(op, "commit", FIRST_EPOCH)


def _closes(op: Op) -> bool:
    # An open file that was given as a source is the caller's own; a generator is used up by the run.
    own = op.node.verb != "source" or inspect.isgenerator(op.owner) or hasattr(op.owner, "setup")
    return own and hasattr(op.owner, "close")


async def call(op: Op, method: str, *args: Any) -> Any:
    """What a method of the operator's object gives, sync or async; None where it has none of that name."""
    found: Callable[..., Any] | None = getattr(op.owner, method, None)
    if found is None:
        return None
    try:
        result = found(*args)
        return await result if inspect.isawaitable(result) else result
    except Exception as error:
        raise operator_error(f"{method} of operator {op.node.name!r} failed", error) from error
