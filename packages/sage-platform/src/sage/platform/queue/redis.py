"""A queue in Redis, for several machines: streams per priority, a consumer group, sorted sets for what waits.

Needs the extra `sage-platform[redis]` and Redis 7 or later. Time is the clock of the Redis server.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sage.common.errors import ConfigError, UnavailableError, UnreachableError
from sage.platform.queue._redis_scripts import scripts
from sage.platform.queue._waiting import POLL, undone_if_cancelled
from sage.platform.queue.port import (
    DeadLetter,
    Lease,
    Message,
    QueueOptions,
    QueueStats,
    check,
    check_lease,
    full,
    lost,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisQueue"]


class RedisQueue:
    """A `Queue` on a Redis server; `await RedisQueue.open("redis://127.0.0.1:6379/0", "jobs")` makes one.

    What is acknowledged is on disk only if the server runs with `appendonly yes` and `appendfsync always`.
    Requeued dead letters and delayed messages are as new: behind what waits already with their priority.
    """

    def __init__(self, client: Redis, name: str, options: QueueOptions) -> None:
        self.name = name
        self.options = options
        self._client = client
        self._prefix = f"sage:queue:{{{name}}}"
        self._scripts = {key: client.register_script(text) for key, text in scripts().items()}
        # For those who look at the group; the same after a restart, so that names do not pile up.
        self._consumer = socket.gethostname()

    @classmethod
    async def open(
        cls, url: str, name: str, options: QueueOptions | None = None, *, require_disk: bool = True
    ) -> RedisQueue:
        """Connect, and check that the server writes to disk before it answers, unless `require_disk` is off.

        Raises ConfigError if it does not or if the client library is missing, UnreachableError.
        """
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as error:
            raise ConfigError(
                "The Redis queue needs the package redis, which is not installed.",
                hint="Install `sage-platform[redis]`, or use the SQLite queue.",
            ) from error
        # A step that was sent twice would be done twice: who calls decides about that.
        client = Redis.from_url(url, retry=Retry(NoBackoff(), 0))
        queue = cls(client, name, options or QueueOptions())
        try:
            await queue._check_disk(require_disk)
        except BaseException:
            await queue.close()
            raise
        return queue

    async def put(self, body: bytes, *, priority: int = 0, delay: float = 0.0, key: str | None = None) -> str:
        """See `Queue.put`."""
        return (await self.put_many([Message(body, priority, delay, key)]))[0]

    async def put_many(self, messages: Sequence[Message]) -> list[str]:
        """See `Queue.put_many`; one script."""
        check(messages, self.options)
        if not messages:
            return []
        arguments: list[bytes | str | int] = [
            self.options.max_items,
            self.options.max_bytes,
            self.options.max_attempts,
        ]
        for message in messages:
            key = "" if message.key is None else f"k{message.key}"
            arguments += [message.body, message.priority, _milliseconds(message.delay), key]
        now = asyncio.get_running_loop().time
        end = now() + self.options.patience
        while (ids := await self._run("put", *arguments)) is None:
            if (left := end - now()) <= 0:
                raise full(self.name, self.options)
            await self._sleep("room", min(left, POLL))
        return [ident.decode() for ident in ids]

    async def get(self, limit: int = 1, *, wait: float | None = None, lease: float = 30.0) -> list[Lease]:
        """See `Queue.get`."""
        check_lease(limit, lease)
        arguments = (self.options.max_attempts, limit, _milliseconds(lease), self._consumer)
        now = asyncio.get_running_loop().time
        end = math.inf if wait is None else now() + wait
        while True:
            rows, due = await undone_if_cancelled(self._run("take", *arguments), self._give_back)
            left = end - now()
            if rows or left <= 0:
                return [_lease(row) for row in rows]
            await self._sleep("wake", min(left, POLL, POLL if due < 0 else due / 1000))

    async def ack(self, *leases: Lease) -> None:
        """See `Queue.ack`."""
        if not leases:
            return
        held = [part for lease in leases for part in (lease.id, lease.token)]
        missing = await self._run("ack", _milliseconds(self.options.remember), *held)
        if missing:
            raise lost(*(ident.decode() for ident in missing))

    async def nack(self, lease: Lease, *, delay: float = 0.0, reason: str = "") -> None:
        """See `Queue.nack`."""
        arguments = (self.options.max_attempts, lease.id, lease.token, _milliseconds(delay), reason)
        if not await self._run("nack", *arguments):
            raise lost(lease.id)

    async def extend(self, lease: Lease, seconds: float) -> Lease:
        """See `Queue.extend`."""
        check_lease(1, seconds)
        until = await self._run("extend", lease.id, lease.token, _milliseconds(seconds))
        if not until:
            raise lost(lease.id)
        return replace(lease, leased_until=until / 1000)

    async def stats(self) -> QueueStats:
        """See `Queue.stats`."""
        return QueueStats(*await self._run("stats", self.options.max_attempts))

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """See `Queue.dead_letters`."""
        rows = await self._run("dead_letters", self.options.max_attempts, limit)
        return [
            DeadLetter(ident.decode(), body, priority, attempts, reason.decode())
            for ident, body, priority, attempts, reason in rows
        ]

    async def requeue(self, *ids: str) -> int:
        """See `Queue.requeue`."""
        return int(await self._run("requeue", self.options.max_attempts, *ids))

    async def close(self) -> None:
        """See `Queue.close`; closes the connections."""
        await self._client.aclose()

    async def _run(self, name: str, *arguments: bytes | str | int) -> Any:
        return await _translated(self._scripts[name](keys=[self._prefix], args=arguments))

    async def _sleep(self, name: str, seconds: float) -> None:
        """Until somebody tells the list of this name, or for so long."""
        await _translated(self._client.blpop([f"{self._prefix}:{name}"], timeout=max(0.001, seconds)))

    async def _give_back(self, taken: Any) -> None:
        held = [part for row in taken[0] for part in (row[0], row[5])]
        await self._run("give_back", *held)

    async def _check_disk(self, required: bool) -> None:
        wanted = {"appendonly": "yes", "appendfsync": "always"}
        found = await _translated(self._client.config_get(*wanted))
        has = {str(_text(key)): str(_text(value)) for key, value in found.items()}
        if required and has != wanted:
            says = " and ".join(f"`{key} {value}`" for key, value in has.items()) or "nothing about it"
            raise ConfigError(
                f"The Redis server may lose what it acknowledged: it says {says}.",
                hint="Set `appendonly yes` and `appendfsync always` there, or open the queue with"
                " require_disk=False.",
            )


async def _translated(command: Any) -> Any:
    """The answer to a command, or one of this project's errors."""
    from redis.exceptions import ConnectionError as NoConnection
    from redis.exceptions import RedisError
    from redis.exceptions import TimeoutError as NoAnswer

    doing = asyncio.ensure_future(command)
    try:
        # The client waits by `asyncio.wait_for`, which in Python 3.11 may swallow a cancellation that comes
        # together with the answer. So this task waits beside it.
        await asyncio.wait({doing})
        return doing.result()
    except asyncio.CancelledError:
        doing.cancel()
        await asyncio.wait({doing})
        raise
    except (NoConnection, NoAnswer) as error:
        raise UnreachableError(f"The Redis server does not answer: {error}.") from error
    except RedisError as error:
        raise UnavailableError(f"The Redis server refused: {error}.") from error


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _lease(row: Sequence[Any]) -> Lease:
    ident, body, priority, attempts, ends, token, reason = row
    return Lease(ident.decode(), body, priority, attempts, ends / 1000, token, reason.decode())
