"""Every sink passes the suite of sinks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from sage.common.ids import new_id
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
    SqlTable,
)
from sage.kernel.connectors.databases import connect
from sage.kernel.testing.connectors import LiveSink, SinkConformance, gathered
from sage.platform.queue import Queue
from sage.platform.queue.memory import MemoryQueue
from sage.platform.queue.redis import RedisQueue

Fresh = Callable[[], Awaitable[LiveSink]]
ROWS = [{"id": i, "text": text} for i, text in enumerate(['"', "a\r\nb", "ü,", "", "x" * 5000])]


def places(folder: Path, suffix: str) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        (folder / str(number)).mkdir()
        yield folder / str(number) / f"out{suffix}"


class TestLinesFile(SinkConformance):
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Fresh:
        paths = places(tmp_path, ".txt")

        async def make() -> LiveSink:
            path = next(paths)

            async def written() -> list[Any]:
                return await gathered(Lines(path)) if path.exists() else []

            return LiveSink(lambda: LinesFile(path), ["", "ä", " b ", "c\rd", "e"], written, undoes=True)

        return make


class TestJsonlFile(SinkConformance):
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Fresh:
        paths = places(tmp_path, ".jsonl")

        async def make() -> LiveSink:
            path = next(paths)

            async def written() -> list[Any]:
                return await gathered(Jsonl(path)) if path.exists() else []

            return LiveSink(lambda: JsonlFile(path), [*ROWS, None, "\ud800"], written, undoes=True)

        return make


class TestCsvFile(SinkConformance):
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Fresh:
        paths = places(tmp_path, ".csv")

        async def make() -> LiveSink:
            path = next(paths)
            records = [{key: str(value) for key, value in row.items()} for row in ROWS]

            async def written() -> list[Any]:
                return await gathered(Csv(path)) if path.exists() and path.stat().st_size else []

            return LiveSink(lambda: CsvFile(path), records, written, undoes=True)

        return make


class TestParquetFolder(SinkConformance):
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Fresh:
        paths = places(tmp_path, "")

        async def make() -> LiveSink:
            path = next(paths)

            async def written() -> list[Any]:
                return await gathered(Parquet(path)) if list(path.glob("*.parquet")) else []

            return LiveSink(lambda: ParquetFolder(path, group=2), ROWS, written, undoes=True)

        return make


TABLE = (
    "CREATE TABLE {} (id INTEGER PRIMARY KEY, text VARCHAR NOT NULL, at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
)


def table(url: str, name: str, key: list[str] | None) -> LiveSink:
    """A table, whose rows are read by another connection."""
    database = connect(url)
    with database.transaction(write=True) as transaction:
        transaction.run(TABLE.format(name), {})
    database.close()

    async def written() -> list[Any]:
        reader = connect(url)
        with reader.transaction(write=False) as transaction:
            rows = transaction.rows(f"SELECT id, text FROM {name} ORDER BY id", {})  # noqa: S608
        reader.close()
        return rows

    async def killed(sink: Any) -> None:
        sink._database.close()

    return LiveSink(lambda: SqlTable(url, name, key), ROWS, written, killed=killed)


@pytest.fixture(params=[None, ["id"]], ids=["insert", "upsert"])
def key(request: pytest.FixtureRequest) -> list[str] | None:
    found: list[str] | None = request.param
    return found


class TestSqliteTable(SinkConformance):
    @pytest.fixture
    def fresh(self, tmp_path: Path, key: list[str] | None) -> Fresh:
        paths = places(tmp_path, ".db")

        async def make() -> LiveSink:
            path = next(paths)
            connection = apsw.Connection(str(path))
            connection.pragma("journal_mode", "wal")
            connection.close()
            return table(f"sqlite:///{path}", "target", key)

        return make


class TestPostgresTable(SinkConformance):
    @pytest.fixture
    def fresh(self, postgres_url: str, key: list[str] | None) -> Fresh:
        async def make() -> LiveSink:
            return table(postgres_url, new_id("t").replace("-", "_").lower(), key)

        return make


def queue_sink(queue: Queue) -> LiveSink:
    """The reader looks without taking: it gives everything back."""

    async def written() -> list[Any]:
        import json

        leases = await queue.get(1000, wait=0)
        for lease in leases:
            await queue.nack(lease)
        return [json.loads(lease.body) for lease in leases]

    return LiveSink(lambda: QueueSink(queue), [*ROWS, "text", None], written)


class TestMemoryQueueSink(SinkConformance):
    @pytest.fixture
    def fresh(self) -> Fresh:
        async def make() -> LiveSink:
            return queue_sink(MemoryQueue(new_id("queue")))

        return make


class TestRedisQueueSink(SinkConformance):
    @pytest.fixture
    async def fresh(self, redis_url: str) -> AsyncIterator[Fresh]:
        made: list[RedisQueue] = []

        async def make() -> LiveSink:
            made.append(await RedisQueue.open(redis_url, new_id("queue")))
            return queue_sink(made[-1])

        yield make
        for queue in made:
            await queue.close()
