"""Runs batches: each from where it stands to its end, however often this process is started anew.

What was done is in the store, so that nothing here needs to outlive the process: a line without a result is
run again, one with a result is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final

from sage.common.clock import Clock
from sage.common.errors import SageError, UnauthorizedError
from sage.gateway.batch import states
from sage.gateway.batch.batchstore import BatchStore
from sage.gateway.batch.caller import ENDPOINTS, LineCaller
from sage.gateway.batch.files import Files
from sage.gateway.batch.lines import Inspector, Line, LineBounds, Lines
from sage.gateway.batch.outputs import Outputs, lines_of
from sage.gateway.batch.share import Share
from sage.gateway.batch.states import Batch, Problem

__all__ = ["Runner"]

log = logging.getLogger("sage.gateway")

AGAIN_S: Final = 5.0  # after a fault of the store or the disk


class Runner:
    """All batches under way. `in_flight`: lines of one batch at once; `share` bounds those of one key.

    `bounds`: those of an input that is looked at now.
    """

    def __init__(
        self,
        store: BatchStore,
        files: Files,
        caller: LineCaller,
        share: Share,
        clock: Clock,
        bounds: Callable[[], LineBounds],
        in_flight: int,
    ) -> None:
        self._store = store
        self._files = files
        self._caller = caller
        self._share = share
        self._clock = clock
        self._bounds = bounds
        self._in_flight = in_flight
        self._outputs = Outputs(store, files, clock)
        self._closing = asyncio.Event()
        self._until = 0.0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancels: dict[str, asyncio.Event] = {}

    def take(self, ident: str) -> None:
        """Run this batch from where it stands."""
        if self._closing.is_set():
            return  # the next start finds it
        self._cancels[ident] = asyncio.Event()
        task = self._tasks[ident] = asyncio.create_task(self._run(ident))
        task.add_done_callback(lambda task: self._left(ident, task))

    def nudge(self, ident: str) -> None:
        """It was cancelled in the store: stop its lines."""
        if ident in self._cancels:
            self._cancels[ident].set()

    def begin_drain(self, seconds: float) -> None:
        """Start no more lines; those that run have so long."""
        self._closing.set()
        self._until = asyncio.get_running_loop().time() + seconds

    async def close(self) -> None:
        """Put back what still runs, once its time is over."""
        self._closing.set()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, self._until - asyncio.get_running_loop().time()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _left(self, ident: str, task: asyncio.Task[None]) -> None:
        del self._tasks[ident], self._cancels[ident]
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("batch %s is left until the next start", ident, exc_info=fault)

    async def _run(self, ident: str) -> None:
        """Step by step, until it has ended or we have. A fault of the disk is waited out."""
        while not self._closing.is_set():
            try:
                batch = (await self._store.get(ident)).batch
                if batch.ended:
                    log.info("batch %s of key %s is %s", ident, batch.owner, batch.status)
                    return
                await self._advance(batch)
            except (SageError, OSError) as error:
                log.error("batch %s cannot go on, and is tried again: %s", ident, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), AGAIN_S)

    async def _advance(self, batch: Batch) -> None:
        """The next step of one that has not ended."""
        if batch.status == "validating":
            await self._validate(batch)
        elif batch.status == "in_progress":
            await self._work(batch)
        else:
            await self._outputs.write(batch)

    # ---- its input -----------------------------------------------------------------------------------------

    async def _validate(self, batch: Batch) -> None:
        """Look at all lines before any runs."""
        bounds = self._bounds()
        inspector = Inspector(batch.endpoint, bounds)
        file = await self._files.get(batch.owner, batch.input)
        stop = self._cancels[batch.id]
        with await asyncio.to_thread(Lines, self._files.path(file), bounds.line_bytes) as reader:
            while not inspector.full and (some := await asyncio.to_thread(reader.some)):
                if stop.is_set() or self._closing.is_set():
                    return
                await asyncio.to_thread(_look, inspector, some)
        inspector.finish()
        now = self._clock.wall()
        if inspector.problems:
            problems = inspector.problems
            await self._change(batch, lambda one: states.reject(one, problems, now))
        else:
            await self._change(batch, lambda one: states.begin(one, inspector.total, now))

    async def _change(self, batch: Batch, edit: states.Edit) -> None:
        """Unless it was cancelled meanwhile."""
        await self._store.change(batch.id, lambda one: one if one.status == "cancelling" else edit(one))

    # ---- its lines -----------------------------------------------------------------------------------------

    async def _work(self, batch: Batch) -> None:
        """Run what is not done, until all is, or the window ends, or somebody ends it."""
        done = await self._store.done(batch.id)
        pulling = asyncio.Lock()
        async with contextlib.aclosing(lines_of(self._files, batch, done)) as lines:
            workers = [
                asyncio.create_task(self._worker(batch, lines, pulling)) for _ in range(self._in_flight)
            ]
            try:
                await self._settle(batch, workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _settle(self, batch: Batch, workers: Sequence[asyncio.Task[None]]) -> None:
        """Await the first thing that ends its lines, and say what that was."""
        work = asyncio.gather(*workers)
        stop = asyncio.create_task(self._cancels[batch.id].wait())
        left = max(0.0, batch.expires - self._clock.wall())
        ends: tuple[asyncio.Future[Any], ...] = (work, stop)
        try:
            await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        now = self._clock.wall()
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if not self._cancels[batch.id].is_set():
                await self._change(batch, lambda one: states.wind_up(one, "expired", now))
            return
        try:
            work.result()
        except UnauthorizedError as error:
            problem = Problem("key_invalid", f"The batch was ended with its key: {error.message}")
            await self._change(batch, lambda one: states.wind_up(one, "failed", now, [problem]))
            return
        if not self._closing.is_set():
            await self._change(batch, lambda one: states.wind_up(one, "completed", now))

    async def _worker(self, batch: Batch, lines: AsyncGenerator[Line, None], pulling: asyncio.Lock) -> None:
        """One line after the other."""
        route = ENDPOINTS[batch.endpoint]
        while not self._closing.is_set():
            async with pulling:
                line = await anext(lines, None)
            if line is None:
                return
            async with self._share.slot(batch.owner):
                if self._closing.is_set():
                    return
                result = await self._caller.call(batch.owner, route, line, self._closing)
            if result is None:
                return
            await self._store.put(batch.id, result)


def _look(inspector: Inspector, some: list[tuple[int, bytes | None]]) -> None:
    for number, raw in some:
        inspector.look(number, raw)
