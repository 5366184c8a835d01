"""A queue of batches between two stages, bounded by items; control messages keep their place among them.

Where several writers meet, the watermark that comes out is the least of theirs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from sage.kernel.runtime.columns import Batch, Columns, Control, Idle, Watermark, joined, part

__all__ = ["Channel", "Writer"]


class Writer:
    """One writer's end. `side`: what its columns are marked with, for a reader that tells inputs apart."""

    __slots__ = ("_channel", "_side", "closed", "idle", "watermark")

    def __init__(self, channel: Channel, side: int) -> None:
        self._channel = channel
        self._side = side
        self.idle = False
        self.closed = False
        self.watermark = float("-inf")

    def try_put(self, batch: Batch) -> bool:
        """Queue the whole batch if there is room and nobody waits for it."""
        channel = self._channel
        size = channel.size + len(batch)
        if size > channel.capacity or channel.putters:
            return False
        channel.size = size
        channel.entries.append(self._marked(batch))
        if channel.getter is not None:
            channel.wake_getter()
        return True

    async def put(self, batch: Batch) -> None:
        """Queue the batch, in pieces where it is larger than the room there is."""
        channel, start, total = self._channel, 0, len(batch)
        # Once this writer has waited it is its turn: writers that come later queue behind it.
        my_turn = not channel.putters
        while start < total:
            room = channel.capacity - channel.size
            if room <= 0 or not my_turn:
                await channel.turn()
                my_turn = True
                continue
            piece = part(batch, start, start + room)
            start += len(piece)
            channel.size += len(piece)
            channel.entries.append(self._marked(piece))
            channel.wake_getter()
        channel.wake_putter()

    def control(self, message: Control) -> None:
        """Send a message behind what was put so far. It needs no room."""
        if type(message) is Watermark:
            self.idle = False
            self.watermark = max(self.watermark, message.time)
        elif type(message) is Idle:
            self.idle = True
        self._channel.advance()

    def close(self) -> None:
        """This writer has ended."""
        self.closed = True
        self._channel.closed()

    def _marked(self, batch: Batch) -> Batch:
        if self._side and isinstance(batch, Columns):
            return Columns(batch.values, batch.times, self._side)
        return batch


class Channel:
    """Many writers, one reader, at most `capacity` items queued."""

    __slots__ = (
        *("_idle", "_loop", "_watermark", "capacity", "entries", "getter", "putters", "size"),
        "writers",
    )

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.writers: list[Writer] = []
        self.entries: deque[Any] = deque()
        self.getter: asyncio.Future[None] | None = None
        self.putters: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._watermark = float("-inf")
        self._idle = False

    def writer(self, side: int = 0) -> Writer:
        """A new writer; all are made before the first of them closes."""
        self.writers.append(Writer(self, side))
        return self.writers[-1]

    async def get(self, limit: int = 0) -> Batch | Control | None:
        """The next message, or the next batch: at most `limit` items, joined with those queued behind it.

        None once every writer has closed and the queue is empty. Cancelling it loses nothing.
        """
        while not self.entries:
            if all(writer.closed for writer in self.writers):
                return None
            self.getter = self._loop.create_future()
            try:
                await self.getter
            finally:
                self.getter = None
        entry: Any = self.entries.popleft()
        if type(entry) is not list and type(entry) is not Columns:
            message: Control = entry
            return message
        batch: Batch = self._fit(entry, limit) if limit else entry
        self.size -= len(batch)
        if self.putters:
            self.wake_putter()
        return batch

    def unget(self, message: Control) -> None:
        """Put back a message that was taken a moment too early."""
        self.entries.appendleft(message)

    def _fit(self, first: Batch, limit: int) -> Batch:
        entries, count = self.entries, len(first)
        if count == limit or (count < limit and not entries):
            return first
        batches = [first]
        while entries and count < limit and _same_kind(entries[0], first):
            batches.append(entries.popleft())
            count += len(batches[-1])
        batch = joined(batches)
        if count > limit:
            entries.appendleft(part(batch, limit, None))
            batch = part(batch, 0, limit)
        return batch

    # ---- what writers call -----------------------------------------------------------------------------

    def advance(self) -> None:
        """Pass on the least watermark of the writers that are not idle and not closed, if it has risen.

        Where all are idle or closed nobody needs to be waited for, and the greatest counts.
        """
        live = [writer for writer in self.writers if not writer.closed]
        busy = [writer.watermark for writer in live if not writer.idle]
        resumes, self._idle = self._idle and bool(busy), self._idle and not busy
        time = min(busy) if busy else max(writer.watermark for writer in self.writers)
        if live and (time > self._watermark or (resumes and time > float("-inf"))):
            self._watermark = max(time, self._watermark)
            self._append(Watermark(self._watermark))
        if live and not busy and not self._idle:
            self._idle = True
            self._append(Idle())

    def closed(self) -> None:
        """A writer has ended: what waited for it goes on."""
        self.advance()
        if all(one.closed for one in self.writers):
            self.wake_getter()

    async def turn(self) -> None:
        """Wait until there is room and it is the caller's turn.

        It keeps its place in line until it goes on, so that nobody takes the room meanwhile.
        """
        mine = self._loop.create_future()
        self.putters.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            self.putters.remove(mine)
            self.wake_putter()
            raise
        self.putters.remove(mine)

    def _append(self, message: Control) -> None:
        self.entries.append(message)
        self.wake_getter()

    def wake_getter(self) -> None:
        """There is something to take, or nothing will come any more."""
        if self.getter is not None and not self.getter.done():
            self.getter.set_result(None)

    def wake_putter(self) -> None:
        """Give the turn to the first in line."""
        if self.putters and self.size < self.capacity and not self.putters[0].done():
            self.putters[0].set_result(None)


def _same_kind(entry: Any, first: Batch) -> bool:
    """Whether this is a batch that can be joined to another."""
    if isinstance(first, list) or not isinstance(entry, Columns):
        return type(entry) is type(first)
    return entry.side == first.side
