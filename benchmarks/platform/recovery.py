"""What failures and load cost: recovery after kill -9, and reads beside writes.

python benchmarks/platform/recovery.py [--rows 100000] [--repeat 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

from sage.platform.queue.port import Message, QueueOptions
from sage.platform.queue.sqlite import SqliteQueue
from sage.platform.storage.sqlite import Database

BODY = b"x" * 200


def spread(seconds: list[float], scale: float = 1e3) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * scale, 3)
        for name, share in at.items()
    }


# --- recovery -----------------------------------------------------------------------------------------------


def inserting(rows: list[tuple[int, bytes]]) -> Callable[[apsw.Connection], object]:
    return lambda db: db.executemany("INSERT INTO rows VALUES (?, ?)", rows)


def reading(key: int) -> Callable[[apsw.Connection], list[Any]]:
    return lambda db: db.execute("SELECT body FROM rows WHERE id = ?", (key,)).fetchall()


async def fill(database: Database, count: int) -> None:
    await database.write(lambda db: db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB)"))
    for begin in range(0, count, 1000):
        rows = [(row, BODY) for row in range(begin, min(begin + 1000, count))]
        await database.write(inserting(rows))


async def fill_rows(path: Path, count: int) -> None:
    await fill(Database(path), count)


async def open_queue(database: Database, count: int) -> SqliteQueue:
    return await SqliteQueue.open(database, "jobs", QueueOptions(max_items=2 * count))


async def fill_jobs(path: Path, count: int) -> None:
    queue = await open_queue(Database(path), count)
    for begin in range(0, count, 1000):
        await queue.put_many([Message(BODY) for _ in range(min(1000, count - begin))])
    await queue.get(1000, lease=3600)


async def fill_wal(path: Path, count: int) -> None:
    """Write rows while a read stays open, so that none of them moves from the WAL into the file."""
    database = Database(path)
    begun = threading.Event()

    def stay(db: apsw.Connection) -> None:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        begun.set()
        threading.Event().wait()

    threading.Thread(target=database.read_sync, args=(stay,), daemon=True).start()
    begun.wait()
    await fill(database, count)


async def child(what: str, path: Path, count: int) -> None:
    await {"rows": fill_rows, "wal": fill_wal, "jobs": fill_jobs}[what](path, count)
    print("filled", flush=True)
    await asyncio.Event().wait()


def leave_killed(what: str, folder: Path, count: int) -> None:
    """A database whose owner was killed: its WAL is as it was, no one has closed it."""
    command = [sys.executable, __file__, "--child", what, str(folder / "store.db"), "--rows", str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"filled\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


async def first_answer(what: str, path: Path, count: int) -> float:
    """Seconds from nothing open to the first row read, or to the first job leased."""
    begin = time.perf_counter()
    database = Database(path)
    if what != "jobs":
        found = await database.read(reading(count - 1))
        assert found == [(BODY,)]
    else:
        assert await (await open_queue(database, count)).get(1)
    taken = time.perf_counter() - begin
    counting = f"SELECT count(*) FROM {'queue_message' if what == 'jobs' else 'rows'}"  # noqa: S608
    assert await database.read(lambda db: db.execute(counting).fetchall()) == [(count,)]
    await database.close()
    return taken


def recovery(what: str, count: int, repeat: int) -> dict[str, Any]:
    taken: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        left = Path(name, "left")
        left.mkdir()
        leave_killed(what, left, count)
        sizes = {file.name: file.stat().st_size for file in left.iterdir()}
        for number in range(repeat):
            copy = shutil.copytree(left, Path(name, str(number)))
            taken.append(asyncio.run(first_answer(what, Path(copy, "store.db"), count)))
    return {
        "count": count,
        "seconds": [round(value, 4) for value in taken],
        "median_s": round(statistics.median(taken), 4),
        "wal_bytes": sizes.get("store.db-wal", 0),
        "database_bytes": sizes["store.db"],
    }


# --- reads while others write -------------------------------------------------------------------------------


async def read_latency(count: int, seconds: float, writers: int) -> dict[str, Any]:
    """One reader, one row by its key at a time; beside it `writers` tasks, each a row per transaction."""
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        database = Database(Path(name, "store.db"))
        await fill(database, count)
        written = 0
        stop = False

        async def write(first: int) -> None:
            nonlocal written
            row = first
            while not stop:
                await database.write(inserting([(row, BODY)]))
                row += writers
                written += 1

        tasks = [asyncio.create_task(write(count + number)) for number in range(writers)]
        taken: list[float] = []
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            key = rng.randrange(count)
            asked = time.perf_counter()
            found = await database.read(reading(key))
            taken.append(time.perf_counter() - asked)
            assert found == [(BODY,)]
            await asyncio.sleep(0)  # lets the writers run even if nothing above waited
        spent = time.perf_counter() - begin
        stop = True
        await asyncio.gather(*tasks)
        await database.close()
    return {
        "writers": writers,
        "writes_per_s": round(written / spent),
        "reads_per_s": round(len(taken) / spent),
        "read_ms": spread(taken),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        asyncio.run(child(options.child[0], Path(options.child[1]), options.rows))
        return
    results = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "recovery_rows": recovery("rows", options.rows, options.repeat),
        "recovery_rows_all_in_wal": recovery("wal", options.rows, options.repeat),
        "recovery_jobs": recovery("jobs", options.rows, options.repeat),
        "reads": [
            asyncio.run(read_latency(options.rows, options.seconds, writers)) for writers in (0, 1, 16, 64)
        ],
    }
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
