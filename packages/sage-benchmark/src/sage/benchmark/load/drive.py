"""Run a plan within this event loop: shots at their times, storms beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from time import perf_counter
from typing import Final

from sage.benchmark.load.answer import Answer
from sage.benchmark.load.plan import Arrival, Plan, Request, Shot, Storm, Target
from sage.benchmark.load.wire import Endpoint
from sage.benchmark.metrics import Kind, Record

__all__ = ["ask", "drive"]

_LEAD_S: Final = 0.02  # between making the bytes and the start, for timers to be set
_RETRY_S: Final = 0.1  # a storm's client that was refused waits this long at least
_RETRY_MAX_S: Final = 5.0


async def drive(
    plan: Plan, on_record: Callable[[Record], None], on_start: Callable[[], None] = lambda: None
) -> float:
    """Send everything at its time and pass on each record as its request ends.

    The result is the wall time in seconds, from the start to the last answer of a shot, at least the plan's
    duration. Storms are awaited but do not count. Cancelling this breaks off what is in flight.
    """
    run = _Run(plan, on_record)
    try:
        return await run.go(on_start)
    finally:
        run.close()


async def ask(target: Target, kind: Kind, request: Request) -> Record:
    """Send one request now."""
    records: list[Record] = []
    shot = Shot(Arrival(0, 0.0, kind), "it", request)
    await drive(Plan({"it": target}, 0.0, (shot,)), records.append)
    return records[0]


class _Run:
    """A plan being carried out."""

    def __init__(self, plan: Plan, on_record: Callable[[Record], None]) -> None:
        self._plan = plan
        self._on_record = on_record
        self._loop = asyncio.get_running_loop()
        self._endpoints = {name: Endpoint(target) for name, target in plan.targets.items()}
        self._open = len(plan.shots)
        self._shots_over = asyncio.Event()
        self._storms_over = asyncio.Event()
        self._clients = sum(storm.workers for storm in plan.storms)
        self._numbers = count(len(plan.shots))
        self._stopping = False
        self._origin = 0.0

    async def go(self, on_start: Callable[[], None]) -> float:
        shots = [(shot, self._endpoints[shot.target].wire(shot.request)) for shot in self._plan.shots]
        storms = [
            [(request, self._endpoints[storm.target].wire(request)) for request in storm.requests]
            for storm in self._plan.storms
        ]
        self._origin = perf_counter() + _LEAD_S
        start = self._loop.time() + _LEAD_S
        for shot, payload in shots:
            self._loop.call_at(start + shot.arrival.at, self._fire, shot, payload)
        for storm, turns in zip(self._plan.storms, storms, strict=True):
            for client in range(storm.workers):
                self._loop.call_at(start, self._next, storm, turns, client)
        self._loop.call_at(start, on_start)
        await asyncio.sleep(_LEAD_S + self._plan.duration)
        if self._open:
            await self._shots_over.wait()
        wall = perf_counter() - self._origin
        self._stopping = True
        if self._clients:
            await self._storms_over.wait()
        return wall

    def close(self) -> None:
        for endpoint in self._endpoints.values():
            endpoint.close()

    def _fire(self, shot: Shot, payload: bytes) -> None:
        endpoint = self._endpoints[shot.target]

        def end(answer: Answer) -> None:
            index, at, kind = shot.arrival.index, shot.arrival.at, shot.arrival.kind
            self._on_record(answer.record(index, kind, at, self._origin, perf_counter()))
            self._open -= 1
            if not self._open:
                self._shots_over.set()

        endpoint.send(payload, Answer(shot.request, end, done=endpoint.target.done))

    def _next(self, storm: Storm, turns: list[tuple[Request, bytes]], turn: int) -> None:
        """One client of a storm sends its next request, or leaves."""
        if self._stopping:
            self._clients -= 1
            if not self._clients:
                self._storms_over.set()
            return
        request, payload = turns[turn % len(turns)]
        endpoint = self._endpoints[storm.target]

        def end(answer: Answer) -> None:
            record = answer.record(next(self._numbers), storm.kind, None, self._origin, perf_counter())
            self._on_record(record)
            pause = 0.0
            if record.outcome != "ok":
                pause = min(max(_RETRY_S, answer.retry_after), _RETRY_MAX_S)
            self._loop.call_later(pause, self._next, storm, turns, turn + storm.workers)

        endpoint.send(payload, Answer(request, end, done=endpoint.target.done))
