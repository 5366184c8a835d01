"""The way to worker processes and back, beside `concurrent.futures` with chunks of the same size.

python benchmarks/dataflow/workers.py [--rounds N] [--out FILE]

Each measurement is a process of its own. Of each there is a short and a long one: what the long one takes
more, per item, has no start of a process in it. All take turns; the least of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

BATCH: Final = 1024
"""What a worker takes at once at most, 16 times the batch of 64 of the run, and the chunk of the peer."""
WORK: Final = {"cheap": (100_000, 1_100_000), "10 µs": (20_000, 120_000)}
ENGINES: Final = ("event loop", "SAGE", "concurrent.futures")


def inc(x: int) -> int:
    return x + 1


def digest(x: int) -> int:
    """About 10 microseconds of work."""
    for _ in range(150):
        x = (x * 48271) % 2147483647
    return x


def nothing(_: Any) -> None:
    return None


def sage(fn: Callable[[int], int], items: int, workers: int) -> None:
    from sage.kernel import Flow, LocalEnvironment

    flow = Flow("workers")
    flow.source(range(items)).map(fn, parallelism=workers or None).sink(nothing)
    LocalEnvironment(batch=64).run_sync(flow)


def futures(fn: Callable[[int], int], items: int, workers: int) -> None:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for result in pool.map(fn, range(items), chunksize=BATCH):
            nothing(result)


def one(engine: str, work: str, workers: int, items: int) -> None:
    """A measurement: seconds of CPU, of this process and its children, and by the clock, as JSON."""
    run = partial(futures if engine == "concurrent.futures" else sage, inc if work == "cheap" else digest)
    began, wall = _cpu(), time.perf_counter()
    run(items, workers)
    wall = time.perf_counter() - wall
    print(json.dumps([_cpu() - began, wall]))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(engine: str, work: str, workers: int) -> list[list[float]]:
    """[CPU, wall] of the short and of the long run."""
    both = []
    for items in WORK[work]:
        command = [sys.executable, __file__, "--one", engine, work, str(workers), str(items)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        both.append(json.loads(done.stdout))
    return both


def rates(work: str, rounds: list[list[list[float]]]) -> list[float]:
    """Microseconds of CPU and by the clock per item, then milliseconds of CPU besides."""
    few, many = WORK[work]
    (cpu, wall), (cpus, walls) = ([min(one[at][of] for one in rounds) for of in (0, 1)] for at in (0, 1))
    each = (cpus - cpu) / (many - few)
    return [each * 1e6, (walls - wall) / (many - few) * 1e6, (cpu - few * each) * 1e3]


def table(found: dict[tuple[str, str, int], list[list[list[float]]]]) -> str:
    """Markdown; over the event loop: what the way costs."""
    lines = [
        "| work | workers | engine | CPU per item | over the event loop | by the clock | CPU of the start |",
        "|---|---|---|---|---|---|---|",
    ]
    for (engine, work, workers), rounds in found.items():
        cpu, wall, start = rates(work, rounds)
        floor = rates(work, found["event loop", work, 0])[0]
        over = f"{cpu - floor:.2f} µs" if workers else ""
        cells = (work, str(workers or ""), engine, f"{cpu:.2f} µs", over, f"{wall:.2f} µs", f"{start:.0f} ms")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", choices=WORK, action="append", help="only this")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        engine, work, workers, items = options.one
        one(engine, work, int(workers), int(items))
        return
    wanted = [
        (engine, work, workers)
        for work in options.work or WORK
        for workers in (0, 1, 2)
        for engine in ENGINES
        if (engine == "event loop") == (not workers)
    ]
    found: dict[tuple[str, str, int], list[list[list[float]]]] = {key: [] for key in wanted}
    for _ in range(options.rounds):
        for key in wanted:
            found[key].append(measured(*key))
    print(table(found))
    if options.out:
        record = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "load": [round(load, 1) for load in os.getloadavg()],
            "unit": "seconds of CPU (process tree) and by the clock, short and long run, each round",
            "items": WORK,
            "batch": BATCH,
            "runs": [
                {"engine": engine, "work": work, "workers": workers, "rounds": rounds}
                for (engine, work, workers), rounds in found.items()
            ],
        }
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
