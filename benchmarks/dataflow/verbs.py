"""CPU time of loops, gates, caches and state with a time to live: best of five, user + system time.

python benchmarks/dataflow/verbs.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from local_engine import ITEMS, REQUESTS, cpu, inc, nothing

from sage.kernel import Cache, Flow, LocalEnvironment, Stream

CALLS = 20_000
ROUNDS = 5

Build = Callable[[Stream[int]], Stream[int]]


def never(_x: int) -> bool:
    return False


def looped(stream: Stream[int]) -> Stream[int]:
    return stream.iterate(lambda s: s.map(inc), until=never, max_rounds=ROUNDS, on_rounds="emit")


def gated(stream: Stream[int]) -> Stream[int]:
    return stream.gate("desk", when=never, timeout=60)


def kept(stream: Stream[int]) -> Stream[int]:
    return stream.map(lambda x: x % 100).map(inc, cache=Cache())


def folded(ttl: float) -> Build:
    return lambda s: s.keyby(lambda x: x % 100).scan(int, lambda state, x: (state + x, state), ttl=ttl)


def run(build: Build, items: int) -> Callable[[], Coroutine[Any, Any, Any]]:
    flow = Flow("verbs")
    build(flow.source(range(items))).sink(nothing)
    return lambda: LocalEnvironment().run(flow)


def serve(build: Build) -> Callable[[], Coroutine[Any, Any, Any]]:
    flow = Flow("verbs")
    flow.reply(build(flow.requests(int)))

    async def main() -> None:
        async with await LocalEnvironment().submit(flow) as job:
            for i in range(REQUESTS):
                await job.request(i)

    return main


async def parked() -> None:
    """Park in groups of 100, and decide on them."""
    flow = Flow("verbs")
    flow.reply(flow.requests(int).gate("desk", timeout=60))
    async with await LocalEnvironment().submit(flow) as job:
        for _ in range(REQUESTS // 100):
            tasks = [asyncio.create_task(job.request(i)) for i in range(100)]
            await asyncio.sleep(0)
            for one in job.parked("desk"):
                await job.resolve("desk", one.id)
            await asyncio.gather(*tasks)


def main() -> None:
    cpu(f"record of a run, {ROUNDS} rounds of a loop", run(looped, CALLS), CALLS, 0)
    cpu(f"request, {ROUNDS} rounds of a loop", serve(looped), REQUESTS, 0)
    cpu("record of a run past a gate", run(gated, CALLS), CALLS, 0)
    cpu("request past a gate", serve(gated), REQUESTS, 0)
    cpu("request that is parked and decided on", parked, REQUESTS, 0)
    cpu("record of a run, cached", run(kept, CALLS), CALLS, 0)
    cpu("request, cached", serve(kept), REQUESTS, 0)
    cpu("keyed fold, 100 keys", run(folded(0), ITEMS), ITEMS, 0)
    cpu("keyed fold, 100 keys, with a time to live", run(folded(60), ITEMS), ITEMS, 0)


if __name__ == "__main__":
    main()
