"""Processes that are killed: what was acknowledged stays, what was leased comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from sage.common.errors import BadRequestError, ConfigError, UnavailableError, UnreachableError
from sage.common.ids import new_id
from sage.common.testing import VirtualClock
from sage.platform.queue import Message, QueueOptions
from sage.platform.queue.redis import RedisQueue
from sage.platform.queue.shared import SharedMemoryQueue, remove_shared, shared_path
from sage.platform.queue.sqlite import SqliteQueue
from sage.platform.storage.sqlite import Database
from sage.platform.testing.queues import drain
from sage.platform.testing.redis import redis_server

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")

# Prints each id when its put or its lease is done, and never ends by itself.
CHILD = """
import asyncio, sys
from sage.platform.queue import Message

async def opened(where):
    if where.startswith("redis:"):
        from sage.platform.queue.redis import RedisQueue
        return await RedisQueue.open(where, "jobs")
    if not where.endswith(".db"):
        from sage.platform.queue.shared import SharedMemoryQueue
        return await SharedMemoryQueue.attach(where)
    from sage.platform.queue.sqlite import SqliteQueue
    from sage.platform.storage.sqlite import Database
    return await SqliteQueue.open(Database(where), "jobs")

async def produce(queue, number):
    for place in range(1_000_000):
        for ident in await queue.put_many([Message(b"%d" % place)] * (1 + number)):
            print(ident, flush=True)

async def consume(queue, seconds):
    for lease in await queue.get(2, lease=seconds):
        print(lease.id, flush=True)
    await asyncio.Event().wait()

async def work(queue):
    while leases := await queue.get(2, wait=3):
        for lease in leases:
            print(lease.id, flush=True)
            await asyncio.sleep(0)
        await queue.ack(*leases)

async def main(where, role):
    queue = await opened(where)
    if role == "work":
        return await work(queue)
    if role == "produce":
        await asyncio.gather(*(produce(queue, number) for number in range(4)))
    await consume(queue, float(role))

asyncio.run(main(*sys.argv[1:]))
"""


async def killed_after(lines: int, where: str, role: str) -> list[str]:
    """Run the child until it printed so many lines, kill it, and return all that it printed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, where, role, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    said = [await child.stdout.readline() for _ in range(lines)]
    os.kill(child.pid, signal.SIGKILL)
    said += (await child.stdout.read()).splitlines(keepends=True)
    assert await child.wait() == -signal.SIGKILL
    return [line.decode().strip() for line in said if line.endswith(b"\n")]


async def test_all_that_a_killed_producer_was_told_is_there(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    for lines in (1, 50, 400):
        acknowledged = await killed_after(lines, str(path), "produce")
        database = Database(path)
        queue = await SqliteQueue.open(database, "jobs")
        stats = await queue.stats()
        found = await drain(queue)
        assert len(acknowledged) >= lines
        assert set(acknowledged) <= {lease.id for lease in found}
        assert stats.ready == len(found)
        assert stats.bytes == sum(len(lease.body) for lease in found)
        assert (await queue.stats()).items == 0
        await database.close()


async def test_what_a_killed_consumer_had_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    clock = VirtualClock(wall=time.time())
    database = Database(path)
    ids = await (await SqliteQueue.open(database, "jobs")).put_many([Message(b"a"), Message(b"b")])
    await database.close()
    assert await killed_after(2, str(path), "600") == ids
    database = Database(path)
    queue = await SqliteQueue.open(database, "jobs", clock=clock)
    assert await queue.get(wait=0) == []
    assert (await queue.stats()).leased == 2
    clock.advance(700)
    assert [(lease.id, lease.attempts) for lease in await queue.get(2, wait=0)] == [(ids[0], 2), (ids[1], 2)]
    await database.close()


async def test_queues_in_one_database_are_apart(tmp_path: Path) -> None:
    database = Database(tmp_path / "queue.db")
    one = await SqliteQueue.open(database, "one", QueueOptions(max_items=1))
    other = await SqliteQueue.open(database, "other")
    await one.put(b"1", key="k")
    ident = await other.put(b"2", key="k")
    (lease,) = await other.get()
    assert (lease.id, lease.body) == (ident, b"2")
    assert (await one.stats()).ready == 1
    assert await one.requeue() == 0
    again = await SqliteQueue.open(database, "one")
    assert [lease.body for lease in await drain(again)] == [b"1"]
    await database.close()


async def test_two_objects_of_one_queue_wake_each_other(tmp_path: Path) -> None:
    database = Database(tmp_path / "queue.db")
    one = await SqliteQueue.open(database, "jobs")
    other = await SqliteQueue.open(database, "jobs")
    waiting = asyncio.create_task(other.get())
    await asyncio.sleep(0)
    await one.put(b"x")
    (lease,) = await asyncio.wait_for(waiting, 20)
    assert lease.body == b"x"
    await database.close()


@pytest.fixture
def shared_name() -> Iterator[str]:
    name = new_id("test")
    yield name
    remove_shared(name)


async def test_shared_memory_gives_a_lease_to_one_process(shared_name: str) -> None:
    queue = await SharedMemoryQueue.attach(shared_name)
    workers = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, shared_name, "work", stdout=asyncio.subprocess.PIPE
        )
        for _ in range(3)
    ]
    ids: list[str] = []
    for _ in range(40):
        ids += await queue.put_many([Message(b"x")] * 10)
    said = [line for worker in workers for line in (await worker.communicate())[0].decode().split()]
    assert sorted(said, key=int) == ids
    assert (await queue.stats()).items == 0
    await queue.close()


async def test_shared_memory_survives_killed_processes(shared_name: str) -> None:
    acknowledged = await killed_after(100, shared_name, "produce")
    queue = await SharedMemoryQueue.attach(shared_name)
    assert set(acknowledged) <= {lease.id for lease in await drain(queue)}
    ids = await queue.put_many([Message(b"a"), Message(b"b")])
    assert await killed_after(2, shared_name, "0.3") == ids
    found = await queue.get(2, wait=20)
    found += await queue.get(2, wait=0)
    assert {lease.attempts for lease in found} == {2}
    assert shared_path(shared_name).stat().st_mode & 0o777 == 0o600
    await queue.close()


async def test_shared_memory_names_are_checked() -> None:
    for name in ("", "../x", "a/b", ".hidden", "x" * 65):
        with pytest.raises(BadRequestError, match="valid are"):
            await SharedMemoryQueue.attach(name)


async def test_a_locked_shared_queue_does_not_stop_the_event_loop(shared_name: str) -> None:
    queue = await SharedMemoryQueue.attach(shared_name)
    other = apsw.Connection(str(shared_path(shared_name)))
    other.execute("BEGIN IMMEDIATE")
    putting = asyncio.create_task(queue.put(b"x"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not putting.done()
    other.execute("ROLLBACK")
    await asyncio.wait_for(putting, 20)
    other.close()
    await queue.close()


@needs_redis
async def test_redis_killed_processes_and_a_killed_server(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        acknowledged = await killed_after(100, url, "produce")
    with redis_server(tmp_path) as url:  # it was killed too, and reads what is on disk
        queue = await RedisQueue.open(url, "jobs")
        assert set(acknowledged) <= {lease.id for lease in await drain(queue)}
        ids = await queue.put_many([Message(b"a"), Message(b"b")])
        assert await killed_after(2, url, "0.3") == ids
        found = await queue.get(2, wait=20)
        found += await queue.get(2, wait=0)
        assert {lease.attempts for lease in found} == {2}
        await queue.close()


@needs_redis
async def test_redis_that_may_lose_data_is_refused(tmp_path: Path) -> None:
    with redis_server(tmp_path, durable=False) as url:
        with pytest.raises(ConfigError, match=r"appendonly no.*appendfsync always"):
            await RedisQueue.open(url, "jobs")
        queue = await RedisQueue.open(url, "jobs", require_disk=False)
        await queue.put(b"x")
    with pytest.raises(UnreachableError, match="does not answer"):
        await queue.put(b"y")
    await queue.close()
    with pytest.raises(UnreachableError, match="does not answer"):
        await RedisQueue.open(url, "jobs")


@needs_redis
async def test_redis_refusals_are_ours(tmp_path: Path) -> None:
    from redis.asyncio import Redis

    with redis_server(tmp_path) as url:
        queue = await RedisQueue.open(url, "jobs")
        await queue.put(b"x")
        client = Redis.from_url(url)
        await client.config_set("maxmemory", 1)
        with pytest.raises(UnavailableError, match=r"refused.*maxmemory"):
            await queue.put(b"y")
        assert [lease.body for lease in await drain(queue)] == [b"x"]  # consumers can make room
        await client.config_set("maxmemory", 0)
        await queue.put(b"z")
        assert [lease.body for lease in await drain(queue)] == [b"z"]
        await client.aclose()
        await queue.close()


async def test_redis_without_its_client_says_what_to_install() -> None:
    code = (
        "import asyncio, sys; sys.modules['redis'] = None\n"
        "from sage.common.errors import ConfigError\n"
        "from sage.platform.queue.redis import RedisQueue\n"
        "try: asyncio.run(RedisQueue.open('redis://127.0.0.1:1/0', 'jobs'))\n"
        "except ConfigError as error: print(error)"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    said, _ = await child.communicate()
    assert b"sage-platform[redis]" in said
