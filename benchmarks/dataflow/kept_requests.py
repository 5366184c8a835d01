"""What checkpoints of requests cost: CPU per request at 64 clients, and the time of one alone.

python benchmarks/dataflow/kept_requests.py [--folder DIR] [--out FILE.json]

The journal is in a folder of its own below DIR, by default where you are: on a disk, not in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sage.benchmark.environment import describe
from sage.kernel import Checkpoints, Flow, Job, LocalEnvironment, Stream

CLIENTS = 64
EACH = 100
ALONE = 300
ROUNDS = 3


def inc(x: int) -> int:
    return x + 1


async def inc_later(x: int) -> int:
    return x + 1


def fold(count: int, x: int) -> tuple[int, int]:
    return count + 1, x


def five(fn: Callable[[int], Any]) -> Callable[[Stream[int]], Stream[int]]:
    def build(stream: Stream[int]) -> Stream[int]:
        for number in range(5):
            stream = stream.map(fn, name=f"step-{number}")
        return stream

    return build


FLOWS: dict[str, Callable[[Stream[int]], Stream[int]]] = {
    "five sync functions": five(inc),
    "five async calls": five(inc_later),
    "a keyed fold, 100 keys": lambda s: s.keyby(lambda x: x % 100).scan(int, fold),
}


async def measured(job: Job) -> tuple[float, list[float]]:
    """Microseconds of CPU time per request of many clients; milliseconds of each request of one client."""

    async def client() -> None:
        for x in range(EACH):
            await job.request(x)

    await asyncio.gather(*(job.request(x) for x in range(CLIENTS)))
    start = time.process_time()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    used = (time.process_time() - start) / (CLIENTS * EACH) * 1e6
    alone = []
    for x in range(ALONE):
        begun = time.perf_counter()
        await job.request(x)
        alone.append((time.perf_counter() - begun) * 1e3)
    return used, alone


async def compared(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, build in FLOWS.items():
        flow = Flow("service")
        flow.reply(build(flow.requests(int)))
        rows: dict[str, list[tuple[float, list[float]]]] = {"without": [], "with": []}
        for _ in range(ROUNDS):
            for kind, rounds in rows.items():
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    kept = Checkpoints(place) if kind == "with" else None
                    async with await LocalEnvironment(checkpoints=kept).submit(flow) as job:
                        rounds.append(await measured(job))
        found[name] = {kind: summary(rounds) for kind, rounds in rows.items()}
    return found


def summary(rounds: list[tuple[float, list[float]]]) -> dict[str, float]:
    """The round that used the least CPU, and the waits of all."""
    waits = [wait for _, alone in rounds for wait in alone]
    return {
        "cpu_us_64_clients": round(min(used for used, _ in rounds), 2),
        "p50_ms_1_client": round(median(waits), 3),
        "p99_ms_1_client": round(quantiles(waits, n=100)[98], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {"environment": describe(), "results": asyncio.run(compared(options.folder))}
    print(json.dumps(found["results"], indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
