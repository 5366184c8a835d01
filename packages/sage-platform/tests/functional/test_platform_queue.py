"""Every queue passes the same suite."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from sage.common.ids import new_id
from sage.common.testing import VirtualClock
from sage.platform.queue import Queue, QueueOptions
from sage.platform.queue.memory import MemoryQueue
from sage.platform.queue.redis import RedisQueue
from sage.platform.queue.shared import SharedMemoryQueue, remove_shared
from sage.platform.queue.sqlite import SqliteQueue
from sage.platform.storage.sqlite import Database
from sage.platform.testing.queues import LiveQueue, QueueConformance
from sage.platform.testing.redis import redis_server


def virtual_time(clock: VirtualClock, make: Callable[[QueueOptions], Awaitable[Queue]]) -> LiveQueue:
    async def after(seconds: float) -> None:
        clock.advance(seconds)

    return LiveQueue(make, after)


class TestMemoryQueue(QueueConformance):
    @pytest.fixture
    def live(self) -> LiveQueue:
        clock = VirtualClock()

        async def make(options: QueueOptions) -> Queue:
            return MemoryQueue("test", options, clock=clock)

        return virtual_time(clock, make)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


class TestRedisQueue(QueueConformance):
    """Time is the server's own here, so the short waits are real."""

    @pytest.fixture
    async def live(self, redis_url: str) -> AsyncIterator[LiveQueue]:
        made: list[Queue] = []

        async def make(options: QueueOptions) -> Queue:
            made.append(await RedisQueue.open(redis_url, new_id("queue"), options))
            return made[-1]

        async def after(seconds: float) -> None:
            await asyncio.sleep(seconds + 0.01)

        yield LiveQueue(make, after, short=0.25)
        for queue in made:
            await queue.close()


class TestSqliteQueue(QueueConformance):
    @pytest.fixture
    async def live(self, tmp_path: Path) -> AsyncIterator[LiveQueue]:
        clock = VirtualClock()
        database = Database(tmp_path / "queue.db")

        async def make(options: QueueOptions) -> Queue:
            return await SqliteQueue.open(database, "test", options, clock=clock)

        yield virtual_time(clock, make)
        await database.close()


class TestSharedMemoryQueue(QueueConformance):
    @pytest.fixture
    async def live(self) -> AsyncIterator[LiveQueue]:
        clock = VirtualClock()
        name = new_id("test")
        made: list[Queue] = []

        async def make(options: QueueOptions) -> Queue:
            made.append(await SharedMemoryQueue.attach(name, options, clock=clock))
            return made[-1]

        yield virtual_time(clock, make)
        for queue in made:
            await queue.close()
        remove_shared(name)
