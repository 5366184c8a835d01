"""CPU time per record of sources and sinks: best of three, user + system time of this process.

python benchmarks/dataflow/connectors.py

"read" drains the source, "flow" runs it into a function that does nothing, "write" gives a sink batches of
64 and a checkpoint every 20,000 records. PostgreSQL and Redis run beside: their own time is not counted.
"""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw

from sage.kernel import Flow, LocalEnvironment
from sage.kernel.connectors import (
    Csv,
    CsvFile,
    Jsonl,
    JsonlFile,
    Lines,
    LinesFile,
    Parquet,
    ParquetFolder,
    QueueSink,
    QueueSource,
    Sql,
    SqlTable,
)
from sage.kernel.connectors.databases import connect
from sage.platform.testing.postgres import postgres_server
from sage.platform.testing.redis import redis_server

COUNT = 400_000
EPOCH = 20_000
RECORDS = [{"n": n, "text": f"line {n} of a file", "share": n / 7} for n in range(COUNT)]
LINES = [f"line {n} of a text file with some words in it" for n in range(COUNT)]


async def drain(source: Any) -> None:
    await opened(source)
    pairs, position = source.read(None), None
    if hasattr(pairs, "__aiter__"):
        async for pair in pairs:
            position = pair[0]
    else:
        for pair in pairs:
            position = pair[0]
    if hasattr(source, "committed"):
        await source.committed(position)
    await closed(source)


async def run(source: Any) -> None:
    flow = Flow("bench")
    flow.source(source).sink(nothing)
    await LocalEnvironment().run(flow)


def nothing(_record: Any) -> None:
    return None


async def fill(sink: Any, records: list[Any]) -> None:
    await opened(sink)
    await sink.recover(0, None)
    for epoch, start in enumerate(range(0, len(records), EPOCH), 1):
        part = records[start : start + EPOCH]
        for at in range(0, len(part), 64):
            await sink.write(epoch, part[at : at + 64])
        await sink.prepare(epoch)
        await sink.commit(epoch)
    await closed(sink)


async def opened(made: Any) -> None:
    result = made.setup() if hasattr(made, "setup") else None
    if result is not None:
        await result


async def closed(made: Any) -> None:
    result = made.close() if hasattr(made, "close") else None
    if result is not None:
        await result


def cpu(label: str, count: int, make: Callable[[], Awaitable[Any]], times: int = 3) -> None:
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        asyncio.run(make())  # type: ignore[arg-type]
        best = min(best, time.process_time() - start)
    print(f"{label:<42} {best / count * 1e6:8.2f} us  {count / best / 1e6:7.3f} M/s", flush=True)


async def plain_lines(path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        for line in file:
            line.rstrip("\r\n")


async def plain_json(path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        for line in file:
            json.loads(line)


async def plain_csv(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        for _ in csv.DictReader(file):
            pass


def files(folder: Path) -> None:
    text, lines, table, parquet = (folder / name for name in ("a.txt", "a.jsonl", "a.csv", "parquet"))
    cpu("lines: write", COUNT, lambda: fill(LinesFile(text), LINES))
    cpu("jsonl: write", COUNT, lambda: fill(JsonlFile(lines), RECORDS))
    cpu("csv: write", COUNT, lambda: fill(CsvFile(table), RECORDS))
    cpu("parquet: write", COUNT, lambda: fill(ParquetFolder(parquet), RECORDS))
    for label, source, plain in (
        ("lines", lambda: Lines(text), lambda: plain_lines(text)),
        ("jsonl", lambda: Jsonl(lines), lambda: plain_json(lines)),
        ("csv", lambda: Csv(table), lambda: plain_csv(table)),
        ("parquet", lambda: Parquet(parquet), None),
    ):
        cpu(f"{label}: read", COUNT, lambda source=source: drain(source()))
        cpu(f"{label}: flow", COUNT, lambda source=source: run(source()))
        if plain:
            cpu(f"{label}: floor, a loop over the open file", COUNT, plain)


def tables(url: str, name: str, count: int) -> None:
    database = connect(url)

    async def write() -> None:
        with database.transaction(write=True) as transaction:
            transaction.run("DROP TABLE IF EXISTS numbers", {})
            transaction.run("CREATE TABLE numbers (n BIGINT PRIMARY KEY, text VARCHAR, share FLOAT)", {})
        await fill(SqlTable(url, "numbers"), RECORDS[:count])

    cpu(f"{name}: write", count, write)
    cpu(f"{name}: read", count, lambda: drain(Sql(url, "SELECT * FROM numbers", "n")))
    cpu(f"{name}: flow", count, lambda: run(Sql(url, "SELECT * FROM numbers", "n")))
    database.close()


def queues(url: str, name: str, count: int) -> None:
    cpu(f"{name}: write", count, lambda: fill(QueueSink(url, "bench"), RECORDS[:count]), 1)
    cpu(f"{name}: read and acknowledge", count, lambda: drain(QueueSource(url, "bench", wait=0.0)), 1)


def main() -> None:
    wanted = sys.argv[1:] or ["files", "sql", "queues"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "files" in wanted:
            files(folder)
        if "sql" in wanted:
            apsw.Connection(str(folder / "a.db")).pragma("journal_mode", "wal")
            tables(f"sqlite:///{folder}/a.db", "sqlite", 100_000)
            with postgres_server() as url:
                tables(url, "postgresql", 100_000)
        if "queues" in wanted:
            (folder / "queues").mkdir()
            queues(f"sqlite:///{folder}/queues/a.db", "queue in sqlite", 20_000)
            (folder / "redis").mkdir()
            with redis_server(folder / "redis") as url:
                queues(url, "queue in redis", 20_000)


if __name__ == "__main__":
    main()
