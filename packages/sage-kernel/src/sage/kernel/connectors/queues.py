"""Messages of a queue of `sage.platform.queue` as records, and records as messages."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from sage.common.errors import BadRequestError, UsageError
from sage.common.ids import new_id
from sage.kernel.connectors.held import Held
from sage.kernel.connectors.plain import as_message, of_message
from sage.platform.queue import Lease, LeaseLostError, Message, Queue

__all__ = ["QueueSink", "QueueSource"]

Format: TypeAlias = Literal["json", "text"]
CHUNK: Final = 500
"""Messages that are put or acknowledged in one call."""


async def _open(queue: Queue | str, name: str, stack: AsyncExitStack) -> Queue:
    """The queue as it is, or the one at a URL, which ends with the stack."""
    if not isinstance(queue, str):
        return queue
    if not name:
        raise BadRequestError(f"which queue at {queue!r} is meant? Its `name` is missing.")
    if queue.startswith("sqlite:///"):
        from sage.platform.queue.sqlite import SqliteQueue
        from sage.platform.storage.sqlite import Database

        database = Database(Path(unquote(queue.removeprefix("sqlite:///"))))
        stack.push_async_callback(database.close)
        try:
            return await SqliteQueue.open(database, name)
        except BaseException:
            await stack.aclose()
            raise
    if urlsplit(queue).scheme in ("redis", "rediss"):
        from sage.platform.queue.redis import RedisQueue

        opened = await RedisQueue.open(queue, name)
        stack.push_async_callback(opened.close)
        return opened
    raise BadRequestError(
        f"the queue URL is {queue!r}.", hint="Valid are sqlite:///FILE and redis://HOST:PORT/DB."
    )


class QueueSource:
    """The messages of a queue, acknowledged when a checkpoint that covers them is durable.

    A run without checkpoints acknowledges at its end. Until then leases are extended; a run that fails gives
    its messages back. `queue`: a `Queue`, or its URL (sqlite:///FILE, redis://HOST:PORT/DB) with its `name`.
    The source ends when there was no message for `wait` seconds; None: never. A position lists what was read
    and is not acknowledged: who resumes there skips these messages, should they come again.
    """

    def __init__(
        self,
        queue: Queue | str,
        name: str = "",
        format: Format = "json",
        wait: float | None = None,
        *,
        lease: float = 60.0,
        batch: int = 100,
    ) -> None:
        self._where, self._name, self._format = queue, name, format
        self._wait, self._lease, self._limit = wait, lease, batch
        self._stack = AsyncExitStack()
        self._queue: Queue | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._held: dict[str, Lease] = {}  # what was read and is not acknowledged, by id
        self._batches: dict[int, list[tuple[str, int]]] = {}  # ids and tokens of the same
        self._read = 0  # number of the last batch
        self._done: set[str] = set()  # ids that a durable checkpoint covers, and that may come once more

    async def setup(self) -> None:
        """Open the queue."""
        self._queue = await _open(self._where, self._name, self._stack)
        self._keeper = asyncio.create_task(self._keep())

    async def read(self, position: Any | None) -> AsyncIterator[tuple[dict[str, Any], list[Any]]]:
        """Records and what is not acknowledged; raises BadRequestError for a message that cannot be read."""
        queue = self._opened()
        # Numbers go on, so that `committed` with this position covers nothing that is read now.
        self._read = position["last"] if position else 0
        for batch in position["open"] if position else ():
            covered = [Lease(ident, b"", 0, 0, 0.0, token) for ident, token in batch]
            held = await asyncio.gather(*(self._acknowledge([lease]) for lease in covered))
            self._done |= {lease.id for lease, was_held in zip(covered, held, strict=True) if not was_held}
        while leases := await queue.get(self._limit, wait=self._wait, lease=self._lease):
            if self._keeper and self._keeper.done():
                self._keeper.result()  # raises why no lease is extended any more
            fresh = await self._fresh(leases)
            if fresh:
                records = [of_message(lease.body, self._format, "message", lease.id) for lease in fresh]
                yield self._position(fresh), records

    async def committed(self, position: Any) -> None:
        """Acknowledge what is covered."""
        numbers = [number for number in self._batches if number <= position["last"]]
        leases = [self._held.pop(ident) for number in numbers for ident, _ in self._batches.pop(number)]
        for at in range(0, len(leases), CHUNK):
            chunk = leases[at : at + CHUNK]
            if not await self._acknowledge(chunk):
                self._done |= {lease.id for lease in chunk}

    async def close(self) -> None:
        """Give back what was read and not acknowledged, and let go of the queue."""
        async with self._stack:
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.gather(self._keeper, return_exceptions=True)
            await asyncio.gather(*map(self._give_back, self._held.values()))
            self._held.clear()

    def _opened(self) -> Queue:
        if self._queue is None:
            raise UsageError("the queue is not set up.")
        return self._queue

    async def _fresh(self, leases: list[Lease]) -> list[Lease]:
        """Those that were not read before; the leases of others had ended."""
        again = [lease for lease in leases if lease.id in self._done]
        if again and await self._acknowledge(again):
            self._done -= {lease.id for lease in again}
        fresh = [lease for lease in leases if lease.id not in self._held and lease not in again]
        self._held |= {lease.id: lease for lease in leases if lease not in again}
        return fresh

    def _position(self, fresh: list[Lease]) -> dict[str, Any]:
        self._read += 1
        self._batches[self._read] = [(lease.id, lease.token) for lease in fresh]
        # The batches are shared by all positions, so one costs little; they never change.
        done = [[(ident, 0) for ident in sorted(self._done)]] if self._done else []
        return {"last": self._read, "open": [*done, *self._batches.values()]}

    async def _acknowledge(self, leases: list[Lease]) -> bool:
        """Whether every one of these leases was still held."""
        try:
            await self._opened().ack(*leases)
        except LeaseLostError:
            return False
        return True

    async def _give_back(self, lease: Lease) -> None:
        with suppress(LeaseLostError):  # it is somebody else's by now
            await self._opened().nack(lease, reason="the run ended before it was done")

    async def _keep(self) -> None:
        """Extend the leases before they end."""
        while True:
            await asyncio.sleep(self._lease / 3)
            held = list(self._held.values())
            for at in range(0, len(held), CHUNK):
                await asyncio.gather(*map(self._extend, held[at : at + CHUNK]))

    async def _extend(self, lease: Lease) -> None:
        with suppress(LeaseLostError):  # it comes again, and is known then
            longer = await self._opened().extend(lease, self._lease)
            if lease.id in self._held:
                self._held[lease.id] = longer


class QueueSink:
    """Puts records into a queue, as JSON or as the text that they are; a `Transactional` sink.

    Records appear when their epoch is committed. Until then they are held in memory, `max_bytes` of them at
    most, and are part of the checkpoint. A message has a key of run, epoch, number and content, so one that
    is put again after a crash is the first one, within the queue's `remember` (an hour) after it was
    consumed. With `at="write"` records are put as they come, at least once. `queue` and `name`: see
    `QueueSource`.
    """

    def __init__(
        self,
        queue: Queue | str,
        name: str = "",
        format: Format = "json",
        at: Literal["commit", "write"] = "commit",
        *,
        max_bytes: int = 64 << 20,
    ) -> None:
        self._where, self._name, self._format = queue, name, format
        self._at = at
        self._stack = AsyncExitStack()
        self._queue: Queue | None = None
        self._run = new_id("run")
        self._held = Held(max_bytes)

    async def setup(self) -> None:
        """Open the queue."""
        self._queue = await _open(self._where, self._name, self._stack)

    async def write(self, epoch: int, items: Sequence[Any]) -> None:
        """Hold them, or put them; raises OverloadedError where an epoch is more than `max_bytes`."""
        bodies = [as_message(item, self._format) for item in items]
        if self._at == "write":
            await self._opened().put_many([Message(body) for body in bodies])
        else:
            self._held.add(epoch, [(None, body) for body in bodies])

    async def prepare(self, epoch: int) -> dict[str, Any]:
        """The messages of this epoch."""
        return {"run": self._run, "bodies": [body.decode() for _, body in self._held.of(epoch)]}

    async def commit(self, epoch: int) -> None:
        """Put the messages of this epoch."""
        await self._put(epoch, [body for _, body in self._held.of(epoch)])
        self._held.drop(epoch)

    async def recover(self, epoch: int, prepared: Any) -> None:
        """Put what was prepared, once more."""
        if epoch:
            self._run = prepared["run"]
            await self._put(epoch, [body.encode() for body in prepared["bodies"]])

    async def close(self) -> None:
        """Let go of the queue."""
        await self._stack.aclose()

    def _opened(self) -> Queue:
        if self._queue is None:
            raise UsageError("the queue is not set up.")
        return self._queue

    async def _put(self, epoch: int, bodies: list[bytes]) -> None:
        for at in range(0, len(bodies), CHUNK):
            chunk = enumerate(bodies[at : at + CHUNK], at)
            messages = [Message(body, key=self._key(epoch, number, body)) for number, body in chunk]
            await self._opened().put_many(messages)

    def _key(self, epoch: int, number: int, body: bytes) -> str:
        # With the body: a run that goes on from an older checkpoint may cut its epochs elsewhere.
        return f"{self._run}-{epoch}-{number}-{hashlib.sha256(body).hexdigest()[:16]}"
