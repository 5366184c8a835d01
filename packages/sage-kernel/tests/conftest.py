"""Tools for tests of flows: calls that wait until the test lets them go, never for a time; real servers."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sage.kernel.testing.kafka import KafkaCluster, mock_cluster
from sage.platform.testing.postgres import postgres_programs, postgres_server
from sage.platform.testing.redis import redis_server

# The operators of `kernel_worker_ops` are imported by worker processes, which find them by their name.
sys.path.append(str(Path(__file__).parent))


class Gate:
    """An async function whose calls end when the test says so; it counts how many are in flight."""

    def __init__(self) -> None:
        self.waiting: dict[Any, asyncio.Future[Any]] = {}
        self.most = 0
        self.cancelled: list[Any] = []

    async def __call__(self, item: Any) -> Any:
        self.waiting[item] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.waiting))
        try:
            return await self.waiting[item]
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            del self.waiting[item]

    async def until(self, count: int) -> None:
        """Let the loop turn until `count` calls wait."""
        async with asyncio.timeout(5):
            while len(self.waiting) < count:  # noqa: ASYNC110 - turns of the loop, no time
                await asyncio.sleep(0)

    def open(self, item: Any) -> None:
        """End one call with its own item."""
        self.waiting[item].set_result(item)


async def settle(turns: int = 50) -> None:
    """Let everything that can go on go on."""
    for _ in range(turns):
        await asyncio.sleep(0)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def turns() -> Any:
    return settle


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """One server for all tests: each makes tables of its own."""
    if postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for all tests: each makes queues of its own."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session", params=["mock", "real"])
def kafka(request: pytest.FixtureRequest) -> Iterator[KafkaCluster]:
    """librdkafka's mock cluster, and the cluster that SAGE_KAFKA names (host:port,…), if it does."""
    if request.param == "mock":
        with mock_cluster() as cluster:
            yield cluster
    elif servers := os.environ.get("SAGE_KAFKA"):
        yield KafkaCluster(servers, mock=False)
    else:
        pytest.skip("SAGE_KAFKA names no Kafka cluster")
