"""A queue in the memory of one process: nothing survives it. Otherwise it does what every queue does."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sage.common.clock import Clock, SystemClock
from sage.platform.queue._waiting import POLL, Signal
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

__all__ = ["MemoryQueue"]


class _State(Enum):
    READY = 0
    DELAYED = 1
    LEASED = 2
    DEAD = 3


@dataclass(slots=True, eq=False)
class _Entry:
    seq: int
    message: Message
    state: _State = _State.READY
    due: float = 0.0
    attempts: int = 0
    token: int = 0
    reason: str = ""


class MemoryQueue:
    """A `Queue` for one event loop."""

    def __init__(
        self, name: str = "queue", options: QueueOptions | None = None, *, clock: Clock | None = None
    ) -> None:
        self.name = name
        self.options = options or QueueOptions()
        self._clock = clock or SystemClock()
        self._entries: dict[str, _Entry] = {}
        self._dead: dict[str, _Entry] = {}
        self._ready: list[tuple[int, int, _Entry]] = []
        self._due: list[tuple[float, str]] = []
        self._keys: dict[str, str] = {}
        self._forget: deque[tuple[float, str]] = deque()
        self._seq = 0
        self._bytes = 0
        self._arrived = Signal()
        self._room = Signal()

    async def put(self, body: bytes, *, priority: int = 0, delay: float = 0.0, key: str | None = None) -> str:
        """See `Queue.put`."""
        return (await self.put_many([Message(body, priority, delay, key)]))[0]

    async def put_many(self, messages: Sequence[Message]) -> list[str]:
        """See `Queue.put_many`."""
        check(messages, self.options)
        if not messages:
            return []

        async def look() -> tuple[list[str] | None, float]:
            return self._store(messages), POLL

        ids = await self._room.until(look, self.options.patience)
        if ids is None:
            raise full(self.name, self.options)
        self._arrived.notify()
        return ids

    async def get(self, limit: int = 1, *, wait: float | None = None, lease: float = 30.0) -> list[Lease]:
        """See `Queue.get`."""
        check_lease(limit, lease)

        async def look() -> tuple[list[Lease], float]:
            leases = self._take(limit, lease)
            return leases, self._due[0][0] - self._clock.wall() if self._due else POLL

        return await self._arrived.until(look, wait)

    async def ack(self, *leases: Lease) -> None:
        """See `Queue.ack`."""
        self._sweep()
        missing = []
        for lease in leases:
            entry = self._held(lease)
            if entry is None:
                missing.append(lease.id)
                continue
            del self._entries[lease.id]
            self._bytes -= len(entry.message.body)
            if entry.message.key is not None:
                self._forget.append((self._clock.wall() + self.options.remember, entry.message.key))
        self._room.notify()
        if missing:
            raise lost(*missing)

    async def nack(self, lease: Lease, *, delay: float = 0.0, reason: str = "") -> None:
        """See `Queue.nack`."""
        self._sweep()
        entry = self._held(lease)
        if entry is None:
            raise lost(lease.id)
        self._failed(entry, reason, delay)
        self._arrived.notify()

    async def extend(self, lease: Lease, seconds: float) -> Lease:
        """See `Queue.extend`."""
        check_lease(1, seconds)
        self._sweep()
        entry = self._held(lease)
        if entry is None:
            raise lost(lease.id)
        self._wait(entry, _State.LEASED, seconds)
        return self._lease(entry)

    async def stats(self) -> QueueStats:
        """See `Queue.stats`."""
        self._sweep()
        states = [entry.state for entry in self._entries.values()]
        return QueueStats(
            ready=states.count(_State.READY),
            delayed=states.count(_State.DELAYED),
            leased=states.count(_State.LEASED),
            dead=len(self._dead),
            bytes=self._bytes,
        )

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """See `Queue.dead_letters`."""
        self._sweep()
        return [
            DeadLetter(ident, entry.message.body, entry.message.priority, entry.attempts, entry.reason)
            for ident, entry in sorted(self._dead.items(), key=lambda item: item[1].seq)[:limit]
        ]

    async def requeue(self, *ids: str) -> int:
        """See `Queue.requeue`."""
        self._sweep()
        chosen = [ident for ident in ids or list(self._dead) if ident in self._dead]
        for ident in chosen:
            entry = self._dead.pop(ident)
            entry.attempts, entry.reason = 0, ""
            self._entries[ident] = entry
            self._bytes += len(entry.message.body)
            self._make_ready(entry)
        self._arrived.notify()
        return len(chosen)

    async def close(self) -> None:
        """See `Queue.close`: here nothing is held."""

    def _store(self, messages: Sequence[Message]) -> list[str] | None:
        """Their ids, or None if there is no room for all of them."""
        now = self._clock.wall()
        while self._forget and self._forget[0][0] <= now:
            self._keys.pop(self._forget.popleft()[1], None)
        self._sweep()
        new: dict[str, Message] = {}
        ids, keys = [], dict[str, str]()
        for message in messages:
            known = None
            if message.key is not None:
                known = self._keys.get(message.key) or keys.get(message.key)
            if known is None:
                known = str(self._seq + len(new) + 1)
                new[known] = message
                if message.key is not None:
                    keys[message.key] = known
            ids.append(known)
        size = sum(len(message.body) for message in new.values())
        room = self.options.max_items - len(self._entries) >= len(new)
        if new and not (room and self.options.max_bytes - self._bytes >= size):
            return None
        self._keys |= keys
        self._bytes += size
        for ident, message in new.items():
            self._seq += 1
            entry = self._entries[ident] = _Entry(self._seq, message)
            if message.delay:
                self._wait(entry, _State.DELAYED, message.delay)
            else:
                self._make_ready(entry)
        return ids

    def _take(self, limit: int, seconds: float) -> list[Lease]:
        self._sweep()
        leases: list[Lease] = []
        while self._ready and len(leases) < limit:
            entry = heapq.heappop(self._ready)[2]
            entry.attempts += 1
            entry.token += 1
            self._wait(entry, _State.LEASED, seconds)
            leases.append(self._lease(entry))
        return leases

    def _sweep(self) -> None:
        """Delays and leases that are over."""
        now = self._clock.wall()
        while self._due and self._due[0][0] <= now:
            due, ident = heapq.heappop(self._due)
            entry = self._entries.get(ident)
            # What was acknowledged, given back or extended leaves its old place in the heap behind.
            if entry is None or due != entry.due:
                continue
            if entry.state is _State.LEASED:
                self._failed(entry, "the lease ended", 0.0)
            elif entry.state is _State.DELAYED:
                self._make_ready(entry)

    def _failed(self, entry: _Entry, reason: str, delay: float) -> None:
        entry.reason = reason
        if entry.attempts >= self.options.max_attempts:
            ident = str(entry.seq)
            entry.state = _State.DEAD
            self._dead[ident] = self._entries.pop(ident)
            self._bytes -= len(entry.message.body)
            self._room.notify()
        elif delay:
            self._wait(entry, _State.DELAYED, delay)
        else:
            self._make_ready(entry)

    def _make_ready(self, entry: _Entry) -> None:
        entry.state = _State.READY
        heapq.heappush(self._ready, (-entry.message.priority, entry.seq, entry))

    def _wait(self, entry: _Entry, state: _State, seconds: float) -> None:
        entry.state, entry.due = state, self._clock.wall() + seconds
        heapq.heappush(self._due, (entry.due, str(entry.seq)))
        if len(self._due) > 2 * len(self._entries) + 64:
            waiting = (_State.DELAYED, _State.LEASED)
            self._due = [(e.due, ident) for ident, e in self._entries.items() if e.state in waiting]
            heapq.heapify(self._due)

    def _held(self, lease: Lease) -> _Entry | None:
        entry = self._entries.get(lease.id)
        valid = entry is not None and entry.state is _State.LEASED and entry.token == lease.token
        return entry if valid else None

    def _lease(self, entry: _Entry) -> Lease:
        message = entry.message
        return Lease(
            str(entry.seq),
            message.body,
            message.priority,
            entry.attempts,
            entry.due,
            entry.token,
            entry.reason,
        )
