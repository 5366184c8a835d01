"""What checkpoints of the local engine cost: the pause, the share of the work, and calls in flight.

python benchmarks/dataflow/checkpoints.py [--out FILE.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sage.benchmark.environment import describe
from sage.kernel import Checkpoints, Flow, LocalEnvironment, Run

KEYS = 1_000_000
DIRTY = 10_000
ITEMS = 4_000_000
CALLS = 4_000
IN_FLIGHT = 1_000


def inc(x: int) -> int:
    return x + 1


def nothing(_x: Any) -> None:
    return None


def fold(state: tuple[int, int], x: int) -> tuple[tuple[int, int], int]:
    return (state[0] + 1, state[1] + x), x


class Steps:
    """A source that gives the next range when it is told to."""

    def __init__(self, *ranges: range) -> None:
        self.ranges = ranges
        self.told = asyncio.Semaphore(0)

    async def read(self, _position: int | None) -> AsyncIterator[tuple[int, Sequence[int]]]:
        for number, found in enumerate(self.ranges):
            await self.told.acquire()
            for start in range(0, len(found), 1000):
                yield number, found[start : start + 1000]


class Lag:
    """How long the event loop was kept, at most: a task that only takes turns.

    By the CPU time of its thread, too, which other processes do not lengthen.
    """

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._task = asyncio.create_task(self._turn())

    async def _turn(self) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0)
            now, used = time.perf_counter(), time.thread_time()
            self.wall, self.cpu = max(self.wall, now - wall), max(self.cpu, used - cpu)
            wall, cpu = now, used

    def stop(self) -> tuple[float, float]:
        """Milliseconds of the clock and of CPU time."""
        self._task.cancel()
        return self.wall * 1e3, self.cpu * 1e3


async def read(run: Run, count: int) -> None:
    while run.reports()[-1].items_in < count:  # noqa: ASYNC110 - it looks at counters
        await asyncio.sleep(0.01)


async def pauses(folder: Path, rounds: int) -> dict[str, Any]:
    """How long the loop is kept, and how long a checkpoint takes, with one key in 100 changed."""
    source = Steps(range(KEYS), *(range(at, KEYS, KEYS // DIRTY) for at in range(rounds)), range(0))
    flow = Flow("keys")
    keyed = flow.source(source).keyby(lambda x: x)
    keyed.scan(lambda: (0, 0), fold, name="fold").sink(nothing, name="out")
    run = await LocalEnvironment(checkpoints=Checkpoints(folder, every=0)).start(flow)
    source.told.release()
    await read(run, KEYS)
    start = time.perf_counter()
    await run.checkpoint()
    first = time.perf_counter() - start
    idle = Lag()
    await asyncio.sleep(0.5)
    quiet = idle.stop()
    kept, took = [], []
    for number in range(rounds):
        source.told.release()
        await read(run, KEYS + (number + 1) * DIRTY)
        lag, start = Lag(), time.perf_counter()
        await run.checkpoint()
        took.append((time.perf_counter() - start) * 1e3)
        kept.append(lag.stop())
    await run.stop(drain=False)
    states = {x: (1, x) for x in range(KEYS)}
    start = time.perf_counter()
    pickle.dumps(states, pickle.HIGHEST_PROTOCOL)
    full = time.perf_counter() - start
    walls, cpus = [wall for wall, _ in kept], [cpu for _, cpu in kept]
    return {
        "loop_kept_cpu_ms": {"median": median(cpus), "most": max(cpus)},
        "loop_kept_ms": {"median": median(walls), "most": max(walls)},
        "checkpoint_ms": {"median": median(took), "most": max(took)},
        "loop_kept_without_checkpoint_ms": quiet[0],
        "first_checkpoint_of_all_keys_ms": first * 1e3,
        "full_pickle_ms": full * 1e3,
    }


async def overhead(keys: int, rounds: int) -> dict[str, float]:
    """CPU time per item of three fused maps and a keyed fold, without and with a checkpoint every second."""

    def flow() -> Flow:
        flow = Flow("folded")
        maps = flow.source(range(ITEMS)).map(inc).map(inc).map(inc)
        maps.keyby(lambda x: x % keys).scan(int, lambda s, x: (s + x, s)).sink(nothing)
        return flow

    found: dict[str, list[float]] = {"without_us": [], "with_us": []}
    epochs = 0
    for _ in range(rounds):
        for name, times in found.items():
            with tempfile.TemporaryDirectory() as folder:
                options = Checkpoints(folder, every=1.0) if name == "with_us" else None
                start = time.process_time()
                report = await LocalEnvironment(checkpoints=options).run(flow())
                times.append((time.process_time() - start) / ITEMS * 1e6)
                epochs = max(epochs, report.epoch)
    best = {name: min(times) for name, times in found.items()}
    return {**best, "share": best["with_us"] / best["without_us"] - 1, "checkpoints": epochs}


async def in_flight(rounds: int) -> dict[str, float]:
    """Wall and CPU time of calls that take a second, a thousand at a time."""

    async def call(x: int) -> dict[str, Any]:
        await asyncio.sleep(1)
        return {"answer": f"{x} " * 50, "tokens": x}

    found: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    for _ in range(rounds):
        for name, times in found.items():
            with tempfile.TemporaryDirectory() as folder:
                options = Checkpoints(folder, every=1.0) if name == "with" else None
                flow = Flow("calls")
                flow.source(range(CALLS)).map(call, concurrency=IN_FLIGHT).sink(nothing)
                start, used = time.perf_counter(), time.process_time()
                await LocalEnvironment(checkpoints=options).run(flow)
                times.append((time.perf_counter() - start, time.process_time() - used))
    wall = {name: min(one for one, _ in times) for name, times in found.items()}
    cpu = {name: min(one for _, one in times) for name, times in found.items()}
    return {
        "seconds_without": wall["without"],
        "seconds_with": wall["with"],
        "share": wall["with"] / wall["without"] - 1,
        "cpu_us_per_call_without": cpu["without"] / CALLS * 1e6,
        "cpu_us_per_call_with": cpu["with"] / CALLS * 1e6,
    }


async def measured() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        found["pause_1M_keys_10000_changed"] = await pauses(Path(folder), 9)
    found["fold_100_keys"] = await overhead(100, 2)
    found["fold_100000_keys"] = await overhead(100_000, 2)
    found["1000_calls_in_flight"] = await in_flight(1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {"environment": describe(), "results": asyncio.run(measured())}
    print(json.dumps(found["results"], indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
