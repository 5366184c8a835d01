"""Sync operators as list-to-list kernels, and the calls of async ones.

A loop inside `try` costs nothing until an item fails: the kernel then settles that item and resumes the
same iterator behind it, so no item is computed twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from operator import length_hint
from typing import Any, TypeAlias

from sage.kernel.compile import Op
from sage.kernel.options import Call, Failure, OnError, Part, Retry
from sage.kernel.runtime.report import CheckpointError, Counters, operator_error, spell

__all__ = [
    "PARTS",
    "AsyncCall",
    "ChosenError",
    "FatalError",
    "Faults",
    "GaveUpError",
    "Kernel",
    "call_of",
    "kernel_of",
    "mapped",
]

Kernel: TypeAlias = Callable[[list[Any]], list[Any]]
AsyncCall: TypeAlias = Callable[[Any], Awaitable[Any]]
PARTS: ContextVar[Callable[[Any], Awaitable[None]] | None] = ContextVar("sage_parts", default=None)
"""Where the partial results of the current request go."""


class GaveUpError(Exception):
    """A call failed for good after `attempts` attempts."""

    def __init__(self, error: Exception, attempts: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.attempts = attempts


class FatalError(Exception):
    """Stops the run, whatever the operator's `on_error` says."""


class ChosenError(Exception):
    """A failure of `item` whose outcome is chosen where it happens, whatever the operator's `on_error` is."""

    def __init__(self, item: Any, error: Exception, on_error: OnError) -> None:
        super().__init__(str(error))
        self.item = item
        self.error = error
        self.on_error: OnError = on_error


class Faults:
    """Settles the failed items of one operator as its `on_error` says."""

    __slots__ = ("_name", "_on_error", "counters", "failures", "lost")

    def __init__(self, op: Op, counters: Counters) -> None:
        self._name = op.node.name
        self._on_error = op.node.call.on_error
        self.counters = counters
        self.failures: list[Failure[Any]] = []
        self.lost: list[int] | None = None  # places in the present batch, where somebody asks for them

    def settle(self, item: Any, error: Exception, position: int, on_error: OnError | None = None) -> None:
        """Count and keep the failure, or raise what stops the run; `on_error`: in place of the operator's."""
        if isinstance(error, CheckpointError):
            raise error  # it is the run's, not the item's
        attempts = 1
        if isinstance(error, GaveUpError):
            attempts, error = error.attempts, error.error
        if isinstance(error, ChosenError):
            item, on_error, error = error.item, error.on_error, error.error
        wanted = self.wanted(error, on_error)
        if wanted == "skip":
            self.counters.skipped += 1
        elif wanted == "divert":
            self.counters.diverted += 1
            text = f"{type(error).__name__}: {error}"
            self.failures.append(Failure(item, self._name, text, attempts))
        else:
            where = f"operator {self._name!r} failed on item {position} ({spell(item)})"
            raise operator_error(where, error) from error
        if self.lost is not None:
            self.lost.append(position - self.counters.items_in)

    def wanted(self, error: Exception, on_error: OnError | None = None) -> OnError:
        """What is to be done about an error."""
        return "fail" if isinstance(error, FatalError) else on_error or self._on_error

    def take(self) -> list[Failure[Any]]:
        """The failures since the last call."""
        taken, self.failures = self.failures, []
        return taken


def kernel_of(op: Op, faults: Faults) -> Kernel:
    """The list-to-list kernel of a sync operator without state."""
    makers = {"map": mapped, "flatmap": _flatmap, "filter": _filter, "sink": _sink, "map_batch": _map_batch}
    return makers[op.node.verb](op.fn, faults)


def mapped(fn: Callable[[Any], Any], faults: Faults) -> Kernel:
    """One result per item, but for those that fail."""
    counters, settle = faults.counters, faults.settle

    def run(items: list[Any]) -> list[Any]:
        out: list[Any] = []
        try:
            out.extend(map(fn, items))
            if len(out) == len(items):
                return out
            # `map` takes a StopIteration out of `fn` for its own end.
            error: Exception = RuntimeError("it raised StopIteration")
        except Exception as caught:
            error = caught
        first = len(out)
        settle(items[first], error, counters.items_in + first)
        for at in range(first + 1, len(items)):
            try:
                out.append(fn(items[at]))
            except Exception as error:
                settle(items[at], error, counters.items_in + at)
        return out

    return run


def _flatmap(fn: Callable[[Any], Any], faults: Faults) -> Kernel:
    counters, settle = faults.counters, faults.settle

    def run(items: list[Any]) -> list[Any]:
        out: list[Any] = []
        extend = out.extend
        rest, whole, item = iter(items), 0, None
        while True:
            try:
                for item in rest:
                    extend(fn(item))
                    whole = len(out)
                return out
            except Exception as error:
                del out[whole:]
                settle(item, error, counters.items_in + len(items) - length_hint(rest) - 1)

    return run


def _filter(fn: Callable[[Any], object], faults: Faults) -> Kernel:
    counters, settle = faults.counters, faults.settle

    def run(items: list[Any]) -> list[Any]:
        out: list[Any] = []
        rest, item = iter(items), None
        while True:
            try:
                for item in rest:
                    if fn(item):
                        out.append(item)
                return out
            except Exception as error:
                settle(item, error, counters.items_in + len(items) - length_hint(rest) - 1)

    return run


def _sink(fn: Callable[[Any], object], faults: Faults) -> Kernel:
    write = mapped(fn, faults)

    def run(items: list[Any]) -> list[Any]:
        write(items)
        return []

    return run


def _map_batch(fn: Callable[[list[Any]], Sequence[Any]], faults: Faults) -> Kernel:
    def run(items: list[Any]) -> list[Any]:
        try:
            return check_length(fn(items), items)
        except Exception as error:
            for at, item in enumerate(items):
                faults.settle(item, error, faults.counters.items_in + at)
            return []

    return run


def check_length(results: Sequence[Any], items: Sequence[Any]) -> list[Any]:
    """`results` as a list, one per item; raises ValueError where they are more or fewer."""
    if len(results) != len(items):
        raise ValueError(f"it gave {len(results)} results for a batch of {len(items)}; it gives one per item")
    return results if type(results) is list else list(results)


def call_of(op: Op, counters: Counters) -> AsyncCall:
    """The call of an async operator, wrapped in as much as it asks for."""
    call: AsyncCall = _last_of(op.fn) if op.mode == "parts" else op.fn
    if op.node.verb == "map_batch":
        call = _whole(call)
    options = op.node.call
    if options.timeout is None and options.retry is None:
        return call
    return _guarded(call, options, counters)


def _last_of(fn: Callable[[Any], Any]) -> AsyncCall:
    async def call(item: Any) -> Any:
        results = []
        send = PARTS.get()
        async for value in fn(item):
            if not isinstance(value, Part):
                results.append(value)
            elif send is not None:
                await send(value.value)
        if len(results) != 1:
            raise ValueError(f"it yielded {len(results)} values that are no Part; the last one is the result")
        return results[0]

    return call


def _whole(fn: AsyncCall) -> AsyncCall:
    async def call(items: list[Any]) -> list[Any]:
        return check_length(await fn(items), items)

    return call


def _guarded(call: AsyncCall, options: Call, counters: Counters) -> AsyncCall:
    import asyncio  # both cost 20 ms, and worker processes, whose calls are plain, never need them
    import random

    retry = options.retry or Retry(attempts=1)
    timeout = options.timeout

    async def once(item: Any) -> Any:
        if timeout is None:
            return await call(item)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await call(item)
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(f"no result within {timeout:g} s") from error
            raise

    async def guarded(item: Any) -> Any:
        attempt = 1
        while True:
            try:
                return await once(item)
            except Exception as error:
                if attempt >= retry.attempts or not isinstance(error, retry.on):
                    raise GaveUpError(error, attempt) from error
            counters.retries += 1
            # Jitter, so that what failed together does not come back together.
            await asyncio.sleep(retry.ceiling(attempt) * random.uniform(0.5, 1.0))  # noqa: S311
            attempt += 1

    return guarded
