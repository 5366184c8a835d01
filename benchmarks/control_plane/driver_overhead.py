"""CPU time per request that the control plane adds, with an engine that answers from memory at once.

Run: python benchmarks/control_plane/driver_overhead.py [requests] — prints JSON, one line per case.
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
import time

from sage.common.clock import SystemClock
from sage.common.config import ControlPlaneConfig
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.driver import ControlPlane
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


def plane_with(engine: type[Instant], count: int) -> ControlPlane:
    plane = ControlPlane(ControlPlaneConfig(), SystemClock())
    for index in range(count):
        plane.add_engine(engine(f"e{index}"))
    return plane


def report(case: str, micros: list[float], count: int) -> None:
    best = {
        "case": case,
        "us_per_request": round(min(micros), 1),
        "worst": round(max(micros), 1),
        "requests": count,
    }
    print(json.dumps({**best, "python": platform.python_version(), "machine": platform.machine()}))


async def measure(count: int) -> None:
    parsing, direct, waiting = [], [], []
    for _ in range(REPEATS):
        began = time.process_time()
        work = requests(count)
        parsing.append((time.process_time() - began) / count * 1e6)
        began = time.process_time()
        await one_by_one(plane_with(Instant, 4), work)
        direct.append((time.process_time() - began) / count * 1e6)
        began = time.process_time()
        await queued(plane_with(Waiting, 4), work)
        waiting.append((time.process_time() - began) / count * 1e6)
    report("parse a chat of 2 KB", parsing, count)
    report("submit to 4 idle engines, 3 chunks", direct, count)
    report("submit with 500 at once over 4 slots (task and loop turns included)", waiting, count)


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5000))
