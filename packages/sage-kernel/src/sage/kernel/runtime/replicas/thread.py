"""A worker thread as the run sees it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeAlias

from sage.kernel.compile import Op
from sage.kernel.runtime.replicas.bench import Bench, Done

__all__ = ["ThreadReplica"]

_Job: TypeAlias = "tuple[Callable[[], Any], asyncio.Future[Any]] | None"


class ThreadReplica:
    """One thread, one batch at a time. Whoever leaves early leaves it its batch: a thread cannot be ended."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self._ops = ops
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._bench: Bench | None = None

    async def start(self) -> None:
        """Start it and set its operators up; raises what failed there."""
        self._loop = asyncio.get_running_loop()
        # In the context of the run, whose services its operators call.
        work = (self._work,)
        threading.Thread(target=copy_context().run, args=work, name="sage-worker", daemon=True).start()
        try:
            bench = await self._do(lambda: Bench(self._ops, time.thread_time_ns))
            await self._do(bench.setup)
        except BaseException:
            self._jobs.put(None)
            raise
        self._bench = bench

    async def run(self, items: Any, one_by_one: bool) -> list[Done]:
        """What became of a batch, in one account or one for each item."""
        assert self._bench is not None, "it is started first"
        bench = self._bench
        done: list[Done] = await self._do(lambda: bench.each(items) if one_by_one else [bench.run(items)])
        return done

    async def close(self, _now: bool, /) -> None:
        """Close what its operators own, behind the batch that it has: no thread ends before that."""
        bench, self._bench = self._bench, None
        if bench is not None:
            try:
                await self._do(bench.close)
            finally:
                self._jobs.put(None)

    async def _do(self, job: Callable[[], Any]) -> Any:
        result = self._loop.create_future()
        self._jobs.put((job, result))
        return await result

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, result = job
            value, error = None, None
            try:
                value = call()
            except Exception as caught:
                error = caught
            except BaseException as caught:
                error = RuntimeError(f"it raised {type(caught).__name__}")
            try:
                self._loop.call_soon_threadsafe(_resolve, result, value, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return


def _resolve(result: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if result.done():
        return
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(value)
