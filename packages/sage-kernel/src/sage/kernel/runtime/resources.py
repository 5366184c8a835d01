"""Setting up what operators own, and closing it again whatever happens."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sage.kernel.compile import Op
from sage.kernel.ports import FIRST_EPOCH
from sage.kernel.runtime.report import operator_error

__all__ = ["begin_anew", "call", "commit", "opened"]


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


async def begin_anew(ops: Iterable[Op]) -> None:
    """Tell every `Transactional` sink that there is no checkpoint to go on from."""
    for op in ops:
        if op.node.verb == "sink":
            await call(op, "recover", 0, None)


async def commit(ops: Sequence[Op], positions: Mapping[int, Any]) -> None:
    """Tell every `Sink` that all is written, then every source that nobody asks for it again."""
    for op in ops:
        if op.node.verb == "sink":
            await call(op, "commit", FIRST_EPOCH)
    for index, position in positions.items():
        await call(ops[index], "committed", position)


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
