"""The first stage of a finite run: a source, read from where the last checkpoint was, with a fused kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from time import perf_counter_ns
from typing import Any

from sage.kernel.compile import Op
from sage.kernel.options import Use
from sage.kernel.runtime.columns import Barrier
from sage.kernel.runtime.participant import Participant
from sage.kernel.runtime.report import CheckpointError, Counters, operator_error, spell
from sage.kernel.runtime.resources import call
from sage.kernel.runtime.turns import TURN_NS, Turn
from sage.kernel.runtime.weight import BATCH_BYTES, weigh

__all__ = ["Reader", "Stop", "is_replayable", "once_only"]

_SKIP = 4096


def once_only(op: Op) -> str:
    """Why a source cannot be read again from the middle; "" if it can."""
    made_here = isinstance(op.node.fn, Use) or _makes(op.fn)
    if not made_here and isinstance(op.fn, Iterator | AsyncIterator):
        return (
            f"source {op.node.name!r} is {spell(op.fn, 60)}, which can be read only once: give it the "
            "function that makes it, or an object with read(position)"
        )
    if not made_here and isinstance(op.fn, set | frozenset):
        return f"source {op.node.name!r} is a set, whose order another run does not have: give it sorted(...)"
    return ""


def _makes(source: Any) -> bool:
    """Whether it is a function or class that makes what is read."""
    return callable(source) and (isinstance(source, type) or not hasattr(source, "__iter__"))


class Stop:
    """A request to end the sources, or to hold them for a while, and let what was read drain."""

    def __init__(self) -> None:
        self.asked = False
        self.paused = False
        self._go = asyncio.Event()
        self._reading: set[asyncio.Task[Any]] = set()
        self._woken: set[asyncio.Task[Any]] = set()

    def ask(self) -> None:
        """Stop reading; a source that waits for its next record is woken."""
        self.asked = True
        self.resume()
        self._woken = set(self._reading)
        for task in self._woken:
            task.cancel()

    def pause(self) -> None:
        """Hold the sources, unless they are to stop; one that waits for its next record keeps it back."""
        if not self.asked:
            self.paused = True
            self._go.clear()

    def resume(self) -> None:
        """Let them go on."""
        self.paused = False
        self._go.set()

    async def resumed(self) -> None:
        """Return once nothing holds the sources."""
        while self.paused:
            await self._go.wait()

    async def next_of(self, source: AsyncIterator[Any]) -> Any:
        """The next record; raises StopAsyncIteration at the end or when asked to stop."""
        task = asyncio.current_task()
        if self.asked or task is None:
            raise StopAsyncIteration
        self._reading.add(task)
        try:
            return await anext(source)
        except asyncio.CancelledError:
            # Our own cancellation is the end of the source; one from outside goes on.
            if task in self._woken and task.uncancel() == 0:
                raise StopAsyncIteration from None
            raise
        finally:
            self._reading.discard(task)


class Reader:
    """Reads one source to its end. Its state is how far it has come: a position, or a count of records.

    `position` is that of a `Replayable`, behind all that was passed on.
    """

    def __init__(self, op: Op, counters: Counters, stop: Stop, size: int, participant: Participant) -> None:
        self._op = op
        self._name = op.node.name
        self._counters = counters
        self._stop = stop
        self._limit = size
        self._participant = participant
        self._outputs = participant.outputs
        state: dict[str, Any] = participant.restored or {}
        self._count = state.get("count", 0)
        self.position: Any = state.get("position")
        self._covered = self.position
        self._due: Barrier | None = None
        # While it rests, all that it has read is passed on: a barrier may pass at once, in another task.
        self._rests = False
        self._passing: asyncio.Task[None] | None = None
        participant.begin = self.begin
        participant.on_commit = self.committed

    async def run(self) -> None:
        """Read on from where the last checkpoint was."""
        op = self._op
        source = op.fn() if _makes(op.fn) else op.fn
        if is_replayable(source):
            await self._feed_pairs(source.read(self.position))
        elif hasattr(source, "__aiter__"):
            await self._feed_async(aiter(source))
        elif hasattr(source, "__iter__"):
            await self._feed_sync(iter(source))
        else:
            error = TypeError(f"{spell(source)} cannot be iterated; a list or a generator can")
            raise operator_error(f"source {self._name!r}", error)
        await self._let_pass()
        self._participant.final = self._state()
        self._covered = self.position
        self._outputs.close()

    def begin(self, barrier: Barrier) -> None:
        """See `Participant`."""
        if self._rests:
            self._passing = self._participant.spawn(self._pass(barrier))
        else:
            self._due = barrier

    async def committed(self) -> None:
        """The last checkpoint is durable: tell the source up to where nobody asks again."""
        if self._covered is not None:
            await call(self._op, "committed", self._covered)

    async def _let_pass(self) -> None:
        if self._passing is not None:
            await self._passing
            self._passing = None
        if self._due is not None:
            barrier, self._due = self._due, None
            await self._pass(barrier)

    async def _pass(self, barrier: Barrier) -> None:
        self._covered = self.position
        await self._participant.take(barrier, self._state())

    def _state(self) -> dict[str, Any]:
        return {"count": self._count} if self.position is None else {"position": self.position}

    async def _held(self) -> None:
        self._rests = True
        try:
            await self._stop.resumed()
        finally:
            self._rests = False
        await self._let_pass()

    async def _next_of(self, source: AsyncIterator[Any]) -> Any:
        """The next of an async source; raises StopAsyncIteration at its end, or when asked to stop."""
        if self._due is not None:
            await self._let_pass()
        self._rests = True
        try:
            item = await self._stop.next_of(source)
            if self._stop.paused:
                await self._stop.resumed()
        except StopAsyncIteration:
            raise
        except Exception as error:
            raise self._failed(error) from error
        finally:
            self._rests = False
        if self._passing is not None:
            await self._let_pass()
        return item

    def _failed(self, error: Exception, more: str = "") -> Exception:
        where = f"source {self._name!r} failed after {self._counters.items_out} items{more}"
        return operator_error(where, error)

    async def _feed_sync(self, source: Iterator[Any]) -> None:
        # Batches begin small and grow while they come fast, so that the first records of a slow source
        # are not held back, and no more is read ahead than the channels hold.
        stop, counters, limit = self._stop, self._counters, self._limit
        run, outputs = self._participant.chain.run, self._outputs
        await self._skip(source)
        size, turn = 1, Turn()
        while not stop.asked:
            if stop.paused or self._due is not None:
                await self._let_pass()
                await self._held()
                continue
            start = perf_counter_ns()
            try:
                items = list(islice(source, size))
            except Exception as error:
                raise self._failed(error, " or more") from error
            now = perf_counter_ns()
            counters.busy += now - start
            if not items:
                return
            counters.items_out += len(items)
            self._count += len(items)
            heavy = weigh(items) > BATCH_BYTES
            items = run(items)
            if outputs.any:
                await outputs.send(items)
            if size < limit and now - start < TURN_NS:
                size = min(limit, 2 * size)
            elif now - start >= TURN_NS:
                size = max(1, size // 2)
            if heavy:
                size = max(1, size // 4)
            if turn.is_over(now):
                await turn.end(now)

    async def _feed_async(self, source: AsyncIterator[Any]) -> None:
        counters, run, outputs = self._counters, self._participant.chain.run, self._outputs
        await self._skip_async(source)
        turn = Turn()
        while True:
            start = perf_counter_ns()
            try:
                item = await self._next_of(source)
            except StopAsyncIteration:
                return
            now = perf_counter_ns()
            counters.wait += now - start
            counters.items_out += 1
            self._count += 1
            await outputs.send(run([item]))
            if turn.is_over(now):
                await turn.end(now)

    async def _feed_pairs(self, pairs: Any) -> None:
        # What the source gives at once goes on in pieces, small at first and while what is behind is slow.
        run, outputs = self._participant.chain.run, self._outputs
        size, turn = 1, Turn()
        try:
            while (pair := await self._next_pair(pairs)) is not None:
                position, records = pair
                self._counters.items_out += len(records)
                at = 0
                while at < len(records):
                    start = perf_counter_ns()
                    piece = list(records[at : at + size])
                    at += size
                    items = run(piece)
                    now = perf_counter_ns()
                    if outputs.any:
                        await outputs.send(items)
                    size = min(self._limit, 2 * size) if now - start < TURN_NS else max(1, size // 2)
                    if turn.is_over(now):
                        await turn.end(now)
                self.position = position
        finally:
            if hasattr(pairs, "aclose"):
                await pairs.aclose()
            elif hasattr(pairs, "close"):
                pairs.close()

    async def _next_pair(self, pairs: Any) -> Any:
        start = perf_counter_ns()
        try:
            if hasattr(pairs, "__aiter__"):
                return await self._next_of(pairs)
            while self._stop.paused or self._due is not None:
                await self._let_pass()
                await self._held()
            return None if self._stop.asked else self._pair_of(pairs)
        except StopAsyncIteration:
            return None
        finally:
            self._counters.busy += perf_counter_ns() - start

    def _pair_of(self, pairs: Iterator[Any]) -> Any:
        try:
            return next(pairs, None)
        except Exception as error:
            raise self._failed(error) from error

    async def _skip(self, source: Iterator[Any]) -> None:
        left = self._count
        while left:
            found = sum(1 for _ in islice(source, min(left, _SKIP)))
            self._need(found, left)
            left -= found
            await asyncio.sleep(0)

    async def _skip_async(self, source: AsyncIterator[Any]) -> None:
        for at in range(self._count):
            self._need(await anext(source, self) is not self, self._count - at)

    def _need(self, found: int, left: int) -> None:
        if not found:
            raise CheckpointError(
                f"source {self._name!r} gave {self._count - left} records, and the checkpoint had read "
                f"{self._count} of them.",
                hint="It has to give the same records again; where it cannot, give it read(position).",
            )


def is_replayable(source: Any) -> bool:
    """Whether it is a `Replayable`: an open file has a `read` too, but can be iterated."""
    return hasattr(source, "read") and not hasattr(source, "__iter__")
