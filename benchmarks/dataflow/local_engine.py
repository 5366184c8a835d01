"""CPU time per item of the local engine: best of five, user + system time of this process.

python benchmarks/dataflow/local_engine.py
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from sage.kernel import Flow, LocalEnvironment

ITEMS = 400_000
CALLS = 50_000
REQUESTS = 20_000


def inc(x: int) -> int:
    return x + 1


def nothing(_x: Any) -> None:
    return None


async def io(x: int) -> int:
    await asyncio.sleep(0)
    return x


def fused(items: Iterable[int]) -> Flow:
    flow = Flow("fused")
    flow.source(items).map(inc).map(inc).map(inc).sink(nothing)
    return flow


def folded() -> Flow:
    flow = Flow("folded")
    maps = flow.source(range(ITEMS)).map(inc).map(inc).map(inc)
    maps.keyby(lambda x: x % 100).scan(int, lambda s, x: (s + x, s)).sink(nothing)
    return flow


def waiting(order: Any) -> Flow:
    flow = Flow("waiting")
    flow.source(range(CALLS)).map(io, concurrency=64, order=order).sink(nothing)
    return flow


def broken(x: int) -> int:
    if x % 100 == 0:
        raise ValueError(x)
    return x


def diverting() -> Flow:
    flow = Flow("diverting")
    stream = flow.source(range(ITEMS)).map(broken, on_error="divert")
    stream.map(inc).map(inc).sink(nothing)
    stream.diverted.sink(nothing)
    return flow


def service() -> Flow:
    flow = Flow("service")
    flow.reply(flow.requests(int).map(inc).map(inc).map(inc).map(inc).map(inc))
    return flow


async def serve(clients: int) -> None:
    async with await LocalEnvironment().submit(service()) as job:

        async def client() -> None:
            for i in range(REQUESTS // clients):
                await job.request(i)

        await asyncio.gather(*(client() for _ in range(clients)))


async def bare_maps() -> None:
    """The floor of the fused maps: the same calls in batches of 64, with nothing around them."""
    for start in range(0, ITEMS, 64):
        items = list(range(start, start + 64))
        for fn in (inc, inc, inc, nothing):
            items = list(map(fn, items))


async def bare_calls() -> None:
    """The floor of the async maps: 64 tasks that call in a loop, without queue, order or bound."""

    async def work(items: Iterable[int]) -> None:
        for item in items:
            await io(item)

    await asyncio.gather(*(work(range(CALLS // 64)) for _ in range(64)))


def cpu(label: str, make: Callable[[], Coroutine[Any, Any, Any]], items: int, target: float) -> None:
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        asyncio.run(make())
        best = min(best, time.process_time() - start)
    aim = f"   target {target:g}" if target else ""
    print(f"{label:<58} {best / items * 1e6:9.3f} us{aim}", flush=True)


def importing() -> None:
    code = "import time; t = time.process_time(); import sage.kernel; print(time.process_time() - t)"
    runs = (subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(5))
    print(f"{'import sage.kernel':<58} {min(float(r.stdout) for r in runs) * 1e3:9.1f} ms   target 150")


def main() -> None:
    run = LocalEnvironment().run
    cpu("floor: four map() passes over lists of 64", bare_maps, ITEMS, 0)
    cpu("three fused maps, batch 64", lambda: run(fused(range(ITEMS))), ITEMS, 0.30)
    cpu("three fused maps, batch 1", lambda: LocalEnvironment(batch=1).run(fused(range(ITEMS))), ITEMS, 4)
    cpu("three fused maps, one in 100 diverted", lambda: run(diverting()), ITEMS, 0)
    cpu("three maps and a keyed fold, 100 keys", lambda: run(folded()), ITEMS, 0.7)
    cpu("floor: 64 tasks that await in a loop", bare_calls, CALLS, 0)
    cpu("async map, 64 in flight, any order", lambda: run(waiting("any")), CALLS, 2.5)
    cpu("async map, 64 in flight, input order", lambda: run(waiting("input")), CALLS, 7)
    cpu("request through five maps, 1 client", lambda: serve(1), REQUESTS, 30)
    cpu("request through five maps, 32 clients", lambda: serve(32), REQUESTS, 30)
    cpu("an empty job, event loop included", lambda: run(fused([])), 1, 5000)
    importing()


if __name__ == "__main__":
    main()
