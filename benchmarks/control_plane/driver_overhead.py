"""CPU time per request that the control plane adds, with an engine that answers from memory at once.

Run: python benchmarks/control_plane/driver_overhead.py [requests] [policy] — prints JSON, one line per case.
`PROFILE=1` in the environment prints where the time of the direct case goes instead, `PROFILE=driver` without
the core.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import platform
import pstats
import sys
import time
from collections.abc import Awaitable
from typing import cast

from sage.common.clock import SystemClock
from sage.common.config import ControlPlaneConfig
from sage.middleware.control_plane.accounting import Books
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.core import Core
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.types import Action, Arrived, Dispatch, Event, Finished, Job, Slice
from sage.middleware.engines.port import Call, Capability, EngineSpec, Route, Sink, Usage

CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
BODY = json.dumps(
    {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x" * 400}] * 5}
).encode()
REPEATS = 5


class Instant:
    """An engine that answers with three chunks and never waits. Fits `Engine`."""

    def __init__(self, name: str) -> None:
        self.spec = EngineSpec(name, "instant", "m", frozenset(Capability), 1)

    async def send(self, call: Call, sink: Sink) -> Usage:  # noqa: ARG002
        sink.head(200, "text/event-stream")
        for _ in range(3):
            sink.data(CHUNK)
        sink.end()
        return Usage(1, 3)

    async def ready(self) -> bool:
        return True

    async def close(self) -> None:
        pass


class Nowhere:
    """Fits `Sink`."""

    full = False

    def head(self, status: int, content_type: str) -> None:
        pass

    def data(self, chunk: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    async def drain(self) -> None:
        pass


class Waiting(Instant):
    """Gives the loop one turn in each call, so that requests queue up."""

    async def send(self, call: Call, sink: Sink) -> Usage:
        await asyncio.sleep(0)
        return await super().send(call, sink)


class Decided:
    """A core that sends everything to the first engine at once: what is left is the driver's own time."""

    def __init__(self) -> None:
        self.books = Books()
        self._attempt = 0
        self._live: set[str] = set()

    def handle(self, event: Event) -> list[Action]:
        if isinstance(event, Arrived):
            self._attempt += 1
            ident = event.job.id
            self._live.add(ident)
            return [Dispatch(self._attempt, "e0", (Slice(ident, 0, 1),), "there is one")]
        if isinstance(event, Finished):
            self._live.pop()
        return []

    def check(self, job: Job) -> None:
        pass

    def is_live(self, ident: str) -> bool:
        return ident in self._live

    def next_wake(self) -> float | None:
        return None


def requests(count: int) -> list[Parsed]:
    limits = ParseLimits()
    return [parse(Route.CHAT, BODY, limits=limits, tenant="t", headers={}) for _ in range(count)]


async def one_by_one(plane: ControlPlane, work: list[Parsed]) -> None:
    for parsed in work:
        await plane.submit(parsed.job, parsed.call, Nowhere())


async def queued(plane: ControlPlane, work: list[Parsed]) -> None:
    for start in range(0, len(work), 500):
        batch = work[start : start + 500]
        await asyncio.gather(*(plane.submit(parsed.job, parsed.call, Nowhere()) for parsed in batch))


def plane_with(engine: type[Instant], count: int, policy: str, core: Decided | None = None) -> ControlPlane:
    """Without goals, so that a policy sheds nothing."""
    config = ControlPlaneConfig.model_validate(
        {"policy": policy, "slos": {"chat": {"ttft_s": None, "tpot_s": None}}}
    )
    plane = ControlPlane(config, SystemClock(), core=cast(Core | None, core))
    for index in range(count):
        plane.add_engine(engine(f"e{index}"))
    return plane


async def bare(work: list[Parsed]) -> None:
    """The engine without a control plane: what has to be subtracted."""
    engine = Instant("e0")
    for parsed in work:
        await engine.send(parsed.call, Nowhere())


def report(case: str, micros: list[float], count: int, policy: str) -> None:
    best = {
        "case": case,
        "us_per_request": round(min(micros), 1),
        "worst": round(max(micros), 1),
        "requests": count,
        "policy": policy,
    }
    print(json.dumps({**best, "python": platform.python_version(), "machine": platform.machine()}))


async def measure(count: int, policy: str) -> None:
    took: dict[str, list[float]] = {}

    async def timed(case: str, work: Awaitable[None]) -> None:
        began = time.process_time()
        await work
        took.setdefault(case, []).append((time.process_time() - began) / count * 1e6)

    for _ in range(REPEATS):
        began = time.process_time()
        work = requests(count)
        took.setdefault("parse a chat of 2 KB", []).append((time.process_time() - began) / count * 1e6)
        await timed("the engine alone", bare(work))
        decided = plane_with(Instant, 1, policy, Decided())
        await timed("submit to 1 engine, 3 chunks, driver alone", one_by_one(decided, work))
        await timed("submit to 4 idle engines, 3 chunks", one_by_one(plane_with(Instant, 4, policy), work))
        await timed(
            "submit with 500 at once over 4 slots (task and loop turns included)",
            queued(plane_with(Waiting, 4, policy), work),
        )
    for case, micros in took.items():
        report(case, micros, count, policy)


async def profiled(count: int, policy: str) -> None:
    work = requests(count)
    plane = plane_with(Instant, 4, policy, Decided() if os.environ["PROFILE"] == "driver" else None)
    profile = cProfile.Profile()
    profile.enable()
    await one_by_one(plane, work)
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def main(count: int | str = 5000, policy: str = "hybrid") -> None:
    asyncio.run((profiled if os.environ.get("PROFILE") else measure)(int(count), policy))


if __name__ == "__main__":
    main(*sys.argv[1:])
