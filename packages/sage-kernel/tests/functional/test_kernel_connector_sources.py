"""Every source passes the suite of sources."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from sage.common.ids import new_id
from sage.common.testing import VirtualClock
from sage.kernel.connectors import (
    Csv,
    Document,
    Files,
    HttpLines,
    HttpPages,
    Jsonl,
    Lines,
    Parquet,
    ParquetFolder,
    QueueSource,
    Sql,
)
from sage.kernel.connectors.databases import connect
from sage.kernel.testing.connectors import LiveSource, SourceConformance
from sage.platform.queue import Message, Queue
from sage.platform.queue.memory import MemoryQueue
from sage.platform.queue.redis import RedisQueue
from sage.platform.queue.sqlite import SqliteQueue
from sage.platform.storage.sqlite import Database

Fresh = Callable[[], Awaitable[LiveSource]]
LINES = ["", "a", "ä" * 40, "c\rd", " ", "e" * 70, "", "last"]
TEXT = "\r\n".join(LINES).encode()
VALUES = [{"n": i, "text": text} for i, text in enumerate(LINES)]


def always(live: LiveSource) -> Fresh:
    """Of a source that changes nothing outside: one world does for all."""

    async def fresh() -> LiveSource:
        return live

    return fresh


class TestLines(SourceConformance):
    @pytest.fixture(params=[1, 7, 64])
    def fresh(self, tmp_path: Path, request: pytest.FixtureRequest) -> Fresh:
        path = tmp_path / "in.txt"
        path.write_bytes(TEXT)
        return always(LiveSource(lambda: Lines(path, block=request.param), LINES))


class TestJsonl(SourceConformance):
    @pytest.fixture(params=[1, 50])
    def fresh(self, tmp_path: Path, request: pytest.FixtureRequest) -> Fresh:
        path = tmp_path / "in.jsonl"
        path.write_text("\n\r\n".join(map(json.dumps, VALUES)))
        return always(LiveSource(lambda: Jsonl(path, block=request.param), VALUES))


class TestCsv(SourceConformance):
    @pytest.fixture(params=[1, 12])
    def fresh(self, tmp_path: Path, request: pytest.FixtureRequest) -> Fresh:
        path = tmp_path / "in.csv"
        path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\n\n2,"""q"",\n\n"\r\n3,\xc3\xa4\r\n4,')
        records = [{"a": a, "b": b} for a, b in zip("1234", ("x\r\ny", '"q",\n\n', "ä", ""), strict=True)]
        return always(LiveSource(lambda: Csv(path, block=request.param), records))


class TestFiles(SourceConformance):
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Fresh:
        (tmp_path / "sub").mkdir()
        names = sorted([f"{i:03}.txt" for i in range(150)] + ["sub/a.txt", "sub/b.txt"])
        for name in names:
            (tmp_path / name).write_text(f"text of {name}")
        (tmp_path / "sub" / "large.txt").write_text("x" * 200_000)
        documents = [Document(name, f"text of {name}") for name in names]
        documents.append(Document("sub/large.txt", "x" * 200_000))
        return always(LiveSource(lambda: Files(tmp_path), documents))


class TestParquet(SourceConformance):
    @pytest.fixture(params=["folder", "file"])
    async def fresh(self, tmp_path: Path, request: pytest.FixtureRequest) -> Fresh:
        sink = ParquetFolder(tmp_path / "in", group=3)
        sink.setup()
        epochs = [VALUES] if request.param == "file" else [VALUES[:5], VALUES[5:6], VALUES[6:]]
        for epoch, records in enumerate(epochs, 1):
            await sink.write(epoch, records)
            await sink.commit(epoch)
        path = tmp_path / "in" / ("epoch-000001.parquet" if request.param == "file" else "")
        return always(LiveSource(lambda: Parquet(path, batch=2), VALUES))


QUERY = "SELECT n, text FROM numbers WHERE text <> ':no'; "


async def disconnected(source: Any) -> None:
    """The connections of a process end with it."""
    source._database.close()


def numbers(url: str) -> Fresh:
    database = connect(url)
    with database.transaction(write=True) as transaction:
        transaction.run("CREATE TABLE numbers (n INTEGER PRIMARY KEY, text VARCHAR)", {})
        transaction.insert("numbers", ["n", "text"], [(row["n"], row["text"]) for row in reversed(VALUES)])
    database.close()
    return always(LiveSource(lambda: Sql(url, QUERY, "n", batch=2), VALUES, disconnected))


class TestSqlite(SourceConformance):
    @pytest.fixture
    def fresh(self, tmp_path: Path) -> Fresh:
        apsw.Connection(str(tmp_path / "in.db")).pragma("journal_mode", "wal")
        return numbers(f"sqlite:///{tmp_path / 'in.db'}")


@pytest.fixture(scope="module")
def served_numbers(postgres_url: str) -> Fresh:
    return numbers(postgres_url)


class TestPostgres(SourceConformance):
    @pytest.fixture
    def fresh(self, served_numbers: Fresh) -> Fresh:
        return served_numbers


async def filled(queue: Queue, clock: VirtualClock | None) -> LiveSource:
    """A queue with the values, and a source whose keeper dies with it, so that its leases end.

    Where the clock is the server's own, they are given back instead, which has the same effect.
    """
    await queue.put_many([Message(json.dumps(value).encode()) for value in VALUES])

    async def killed(source: Any) -> None:
        source._keeper.cancel()
        if clock:
            clock.advance(100)
        else:
            for lease in source._held.values():
                await queue.nack(lease)

    return LiveSource(lambda: QueueSource(queue, wait=0, batch=2), VALUES, killed)


class TestMemoryQueue(SourceConformance):
    @pytest.fixture
    def fresh(self) -> Fresh:
        async def make() -> LiveSource:
            clock = VirtualClock()
            return await filled(MemoryQueue(new_id("queue"), clock=clock), clock)

        return make


class TestSqliteQueue(SourceConformance):
    @pytest.fixture
    async def fresh(self, tmp_path: Path) -> AsyncIterator[Fresh]:
        clock = VirtualClock()
        database = Database(tmp_path / "queue.db")

        async def make() -> LiveSource:
            return await filled(await SqliteQueue.open(database, new_id("q"), clock=clock), clock)

        yield make
        await database.close()


class TestRedisQueue(SourceConformance):
    @pytest.fixture
    async def fresh(self, redis_url: str) -> AsyncIterator[Fresh]:
        made: list[RedisQueue] = []

        async def make() -> LiveSource:
            made.append(await RedisQueue.open(redis_url, new_id("queue")))
            return await filled(made[-1], None)

        yield make
        for queue in made:
            await queue.close()


async def cut_off(source: Any) -> None:
    """The connections of a process end with it."""
    await source._web.close()


@pytest.fixture
async def server() -> AsyncIterator[BaseTestServer]:
    """Serves TEXT with and without ranges, breaking off each first answer, and VALUES in pages."""
    asked: set[str] = set()

    async def text(request: web.Request) -> web.StreamResponse:
        ranged = "Range" in request.headers and request.match_info["ranges"] == "ranges"
        start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-")) if ranged else 0
        response = web.StreamResponse(status=206 if ranged else 200, headers={"ETag": '"one"'})
        body = TEXT[start:]
        response.content_length = len(body)
        await response.prepare(request)
        if request.query_string not in asked:
            asked.add(request.query_string)
            await response.write(body[:10])
            raise ConnectionResetError  # half of what was promised
        for at in range(0, len(body), 60):
            await response.write(body[at : at + 60])
        return response

    async def pages(request: web.Request) -> web.Response:
        start = int(request.query.get("after", "0"))
        after = start + 2 if start + 2 < len(VALUES) else None
        follows = after if request.match_info["form"] == "cursor" else after and f"url?after={after}"
        return web.json_response({"data": {"rows": VALUES[start : start + 2]}, "next": follows})

    app = web.Application()
    app.router.add_get("/text/{ranges}", text)
    app.router.add_get("/pages/{form}", pages)
    async with TestServer(app, host="127.0.0.1") as server:
        yield server


class TestHttpLines(SourceConformance):
    @pytest.fixture(params=["ranges", "no-ranges"])
    def fresh(self, server: BaseTestServer, request: pytest.FixtureRequest) -> Fresh:
        async def make() -> LiveSource:
            url = str(server.make_url(f"/text/{request.param}?{new_id('q')}"))
            return LiveSource(lambda: HttpLines(url, "lines"), LINES, cut_off)

        return make


class TestHttpPages(SourceConformance):
    @pytest.fixture(params=["cursor", "url"])
    def fresh(self, server: BaseTestServer, request: pytest.FixtureRequest) -> Fresh:
        url = str(server.make_url(f"/pages/{request.param}"))
        cursor = "after" if request.param == "cursor" else ""
        return always(LiveSource(lambda: HttpPages(url, "data.rows", "next", cursor), VALUES, cut_off))
