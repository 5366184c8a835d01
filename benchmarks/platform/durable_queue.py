"""Acknowledged puts per second: the queues here, persist-queue and bare SQLite, all with a sync per commit.

    .venv/bin/python benchmarks/platform/durable_queue.py [--seconds S] [--rounds N]

Each arm puts messages of 200 bytes into a new file on the same disk; the arms take turns, so that a slow
minute of the machine hits all of them. Writes `durable_queue.json` beside itself. The arms of `persist-queue`
and of `redis-server` are left out where these are not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import apsw

from sage.platform.queue import Message, Queue, QueueOptions
from sage.platform.queue.memory import MemoryQueue
from sage.platform.queue.redis import RedisQueue
from sage.platform.queue.sqlite import SqliteQueue
from sage.platform.storage.sqlite import Database
from sage.platform.testing.redis import redis_server

HERE = Path(__file__).resolve().parent
BODY = os.urandom(100).hex().encode()
MANY = QueueOptions(max_items=10_000_000, max_bytes=1 << 40)


@dataclass
class Arm:
    """`run(folder, seconds)` returns how many were acknowledged; CPU is that of this process."""

    run: Callable[[Path, float], int]
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, seconds: float) -> None:
        with tempfile.TemporaryDirectory(dir=HERE) as folder:
            cpu, begin = time.process_time(), time.perf_counter()
            count = self.run(Path(folder), seconds)
            self.rates.append(count / (time.perf_counter() - begin))
            self.cpu.append((time.process_time() - cpu) / count * 1e6)

    def result(self) -> dict[str, float]:
        return {
            "per_second": round(statistics.median(self.rates)),
            "min": round(min(self.rates)),
            "max": round(max(self.rates)),
            "cpu_us": round(statistics.median(self.cpu), 1),
        }


Load = Callable[[Queue, float], Awaitable[int]]


def batches(size: int, putters: int = 1) -> Load:
    """`putters` tasks at once, each waits for its put before the next one."""

    async def load(queue: Queue, seconds: float) -> int:
        end = time.perf_counter() + seconds

        async def put() -> int:
            count = 0
            while time.perf_counter() < end:
                if size == 1:
                    await queue.put(BODY)
                else:
                    await queue.put_many([Message(BODY)] * size)
                count += size
            return count

        return sum(await asyncio.gather(*(put() for _ in range(putters))))

    return load


def consume(size: int) -> Load:
    """Fill, then lease and acknowledge; counts puts, leases and acknowledgements as one."""

    async def load(queue: Queue, seconds: float) -> int:
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            await queue.put_many([Message(BODY)] * size)
            leases = await queue.get(size)
            await queue.ack(*leases)
            count += len(leases)
        return count

    return load


def on_sqlite(load: Load) -> Arm:
    async def run(folder: Path, seconds: float) -> int:
        database = Database(folder / "queue.db")
        try:
            return await load(await SqliteQueue.open(database, "bench", MANY), seconds)
        finally:
            await database.close()

    return Arm(lambda folder, seconds: asyncio.run(run(folder, seconds)))


def in_memory(load: Load) -> Arm:
    return Arm(lambda _, seconds: asyncio.run(_awaited(load(MemoryQueue("bench", MANY), seconds))))


async def _awaited(load: Awaitable[int]) -> int:
    return await load


def on_redis(load: Load) -> Arm:
    async def run(url: str, seconds: float) -> int:
        queue = await RedisQueue.open(url, "bench", MANY)
        try:
            return await load(queue, seconds)
        finally:
            await queue.close()

    def served(folder: Path, seconds: float) -> int:
        with redis_server(folder) as url:
            return asyncio.run(run(url, seconds))

    return Arm(served)


def bare(size: int) -> Arm:
    """One table, one INSERT per row, one commit per `size` rows."""

    def run(folder: Path, seconds: float) -> int:
        db = apsw.Connection(str(folder / "bare.db"))
        db.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, body BLOB)")
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            with db:
                db.executemany("INSERT INTO queue (body) VALUES (?)", [(BODY,)] * size)
            count += size
        db.close()
        return count

    return Arm(run)


def persist_queue() -> Arm:
    """Its acknowledging queue as its manual shows it: each put commits."""

    def run(folder: Path, seconds: float) -> int:
        from persistqueue import SQLiteAckQueue

        queue = SQLiteAckQueue(str(folder), auto_commit=True)
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            queue.put(BODY)
            count += 1
        queue.close()
        return count

    return Arm(run)


def arms() -> dict[str, Arm]:
    found = {
        "bare SQLite, 1 per commit": bare(1),
        "bare SQLite, 64 per commit": bare(64),
        "bare SQLite, 256 per commit": bare(256),
        "SqliteQueue put, one after another": on_sqlite(batches(1)),
        "SqliteQueue put, 64 at once": on_sqlite(batches(1, putters=64)),
        "SqliteQueue put_many of 64": on_sqlite(batches(64)),
        "SqliteQueue put_many of 256": on_sqlite(batches(256)),
        "SqliteQueue put_many, get, ack of 64": on_sqlite(consume(64)),
        "MemoryQueue put_many, get, ack of 64": in_memory(consume(64)),
    }
    if find_spec("persistqueue"):
        found["persist-queue put, one after another"] = persist_queue()
    if shutil.which("redis-server"):
        found["RedisQueue put, 64 at once (client's CPU)"] = on_redis(batches(1, putters=64))
        found["RedisQueue put_many of 64 (client's CPU)"] = on_redis(batches(64))
    return found


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "sqlite": apsw.sqlite_lib_version()}
    for name in ("persist-queue", "redis"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each arm in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    chosen, load = arms(), os.getloadavg()[0]
    for turn in range(options.rounds):
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
        for arm in chosen.values():
            arm.measure(options.seconds)
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True).strip()
    results = {
        "machine": machine(),
        "load_at_start": round(load, 2),  # of the last minute; other work on the machine slows all arms
        "versions": versions(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "body_bytes": len(BODY),
        "arms": {name: arm.result() for name, arm in chosen.items()},
    }
    (HERE / "durable_queue.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(results["machine"], results["versions"])
    print(f"{'acknowledged/s':>16} {'min':>8} {'max':>8} {'CPU µs':>8}")
    for name, arm in chosen.items():
        row = arm.result()
        print(f"{row['per_second']:>16} {row['min']:>8} {row['max']:>8} {row['cpu_us']:>8}  {name}")


if __name__ == "__main__":
    main()
