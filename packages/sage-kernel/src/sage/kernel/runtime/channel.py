"""A queue of batches between two stages, bounded by items and bytes; messages keep their place among them.

Where several writers meet, the watermark that comes out is the least of theirs, and a barrier comes out
behind the barriers of all: a writer whose barrier is in is held until then. A barrier that is in a hurry
overtakes what is queued, which then belongs to the checkpoint, and nobody waits for room any more who has to
let it pass.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from sage.kernel.runtime.columns import Barrier, Batch, Columns, Control, Idle, Watermark, joined, part
from sage.kernel.runtime.weight import BATCH_BYTES, CHANNEL_BYTES, weigh

__all__ = ["Channel", "Writer"]


class Writer:
    """One writer's end. `side`: what its columns are marked with, for a reader that tells inputs apart."""

    __slots__ = (
        *("_behind", "_channel", "_let_go", "_side", "_turn"),
        *("closed", "held", "hurried", "idle", "watermark"),
    )

    def __init__(self, channel: Channel, side: int) -> None:
        self._channel = channel
        self._side = side
        self.idle = False
        self.closed = False
        self.watermark = float("-inf")
        self.held = False
        self.hurried = False
        self._turn: asyncio.Future[None] | None = None
        self._behind: list[Control | None] = []  # messages that came while it is held; None: its end
        self._let_go: asyncio.Future[None] | None = None

    def try_put(self, batch: Batch) -> bool:
        """Queue the whole batch if there is room and nobody waits for it."""
        channel = self._channel
        size = channel.size + len(batch)
        if size > channel.capacity or channel.putters or self.held:
            return False
        weight = weigh(batch)
        if weight and channel.bytes + weight > channel.capacity_bytes and channel.size:
            return False
        channel.size = size
        channel.bytes += weight
        channel.weights.append(weight)
        channel.entries.append(self._marked(batch))
        if channel.getter is not None:
            channel.wake_getter()
        return True

    async def put(self, batch: Batch) -> None:
        """Queue the batch, in pieces where it is larger than the room there is."""
        channel, start, total = self._channel, 0, len(batch)
        each = -(-weigh(batch) // total)
        while self.held:
            self._let_go = asyncio.get_running_loop().create_future()
            await self._let_go
        # Once this writer has waited it is its turn: writers that come later queue behind it.
        my_turn = not channel.putters
        while start < total:
            room = total if self.hurried else channel.room(each)
            if room <= 0 or not (my_turn or self.hurried):
                self._turn = asyncio.get_running_loop().create_future()
                await channel.turn(self._turn)
                my_turn = True
                continue
            piece = part(batch, start, start + room)
            start += len(piece)
            channel.size += len(piece)
            channel.bytes += each * len(piece)
            channel.weights.append(each * len(piece))
            channel.entries.append(self._marked(piece))
            channel.wake_getter()
        channel.wake_putter()

    def control(self, message: Control) -> None:
        """Send a message behind what was put so far. It needs no room."""
        if self.held:
            self._behind.append(message)
            return
        if type(message) is Barrier:
            self.held, self.hurried = True, False
            self._channel.align(message)
            return
        if type(message) is Watermark:
            self.idle = False
            self.watermark = max(self.watermark, message.time)
        elif type(message) is Idle:
            self.idle = True
        self._channel.advance()

    def close(self) -> None:
        """This writer has ended."""
        if self.held:
            self._behind.append(None)
            return
        self.closed = True
        self._channel.closed()

    def hurry(self) -> None:
        """Let the batch that is being put go in, room or not: behind it comes a barrier."""
        self.hurried = True
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def let_go(self) -> None:
        """The barrier has come out: what was held back goes on."""
        self.held = False
        behind, self._behind = self._behind, []
        for message in behind:
            if message is None:
                self.close()
            else:
                self.control(message)
        if self._let_go is not None and not self._let_go.done():
            self._let_go.set_result(None)

    def _marked(self, batch: Batch) -> Batch:
        if self._side and isinstance(batch, Columns):
            return Columns(batch.values, batch.times, self._side)
        return batch


class Channel:
    """Many writers, one reader, at most `capacity` items queued, of about `capacity_bytes` bytes.

    One item has room in an empty channel, however large it is.
    """

    __slots__ = (
        *("_barrier", "_hurried", "_idle", "_loop", "_watermark", "bytes", "capacity", "capacity_bytes"),
        *("entries", "getter", "marks", "on_front", "overtaken", "passed", "putters", "size", "weights"),
        "writers",
    )

    def __init__(self, capacity: int, capacity_bytes: int = CHANNEL_BYTES) -> None:
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self.size = 0
        self.bytes = 0
        self.writers: list[Writer] = []
        self.entries: deque[Any] = deque()
        self.weights: deque[int] = deque()  # of the batches among the entries, in their order
        self.getter: asyncio.Future[None] | None = None
        self.putters: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._watermark = float("-inf")
        self._idle = False
        self._barrier: Barrier | None = None
        self._hurried = False
        self.passed = 0
        self.overtaken: list[Any] = []
        self.on_front: Callable[[], None] | None = None
        self.marks = self._marks()

    def writer(self, side: int = 0) -> Writer:
        """A new writer; all are made before the first of them closes."""
        self.writers.append(Writer(self, side))
        return self.writers[-1]

    @property
    def ended(self) -> bool:
        """Whether all writers are closed; something may be queued yet."""
        return all(writer.closed for writer in self.writers)

    @property
    def barred(self) -> bool:
        """Whether a barrier is the next thing to come out."""
        return bool(self.entries) and type(self.entries[0]) is Barrier

    async def get(self, limit: int = 0) -> Batch | Control | None:
        """The next message, or the next batch: at most `limit` items, joined with those queued behind it.

        None once every writer has closed and the queue is empty. Cancelling it loses nothing.
        """
        while not self.entries:
            if self.ended:
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
        weight = self.weights.popleft()
        batch: Batch = entry
        if limit and len(entry) != limit:
            batch, weight = self._fit(entry, weight, limit)
        self.size -= len(batch)
        self.bytes -= weight
        if self.putters:
            self.wake_putter()
        return batch

    def unget(self, message: Control) -> None:
        """Put back a message that was taken a moment too early."""
        self.entries.appendleft(message)

    def _fit(self, first: Batch, weight: int, limit: int) -> tuple[Batch, int]:
        entries, count = self.entries, len(first)
        batches = [first]
        while entries and count < limit and weight < BATCH_BYTES and _same_kind(entries[0], first):
            batches.append(entries.popleft())
            weight += self.weights.popleft()
            count += len(batches[-1])
        batch = joined(batches)
        if count > limit:
            rest = weight * (count - limit) // count
            entries.appendleft(part(batch, limit, None))
            self.weights.appendleft(rest)
            batch, weight = part(batch, 0, limit), weight - rest
        return batch, weight

    # ---- checkpoints -----------------------------------------------------------------------------------

    def align(self, barrier: Barrier) -> None:
        """A barrier has come in: it comes out once all writers that are not closed have brought theirs."""
        self._barrier = barrier
        if all(writer.held or writer.closed for writer in self.writers):
            self.inject(barrier)

    def inject(self, barrier: Barrier) -> None:
        """Let a barrier come out behind all that is queued, or before it if there is a hurry.

        `marks` and what was `overtaken` are then what a checkpoint keeps.
        """
        self.mark(barrier)
        self._append(barrier)
        if self._hurried:
            self._overtake(barrier)
        for writer in self.writers:
            if writer.held:
                writer.let_go()

    def mark(self, barrier: Barrier) -> None:
        """A barrier passes now."""
        self._barrier = None
        self.passed = barrier.epoch
        self.marks = self._marks()
        self.overtaken = []

    def hurry(self) -> None:
        """The barrier that is queued, or else the next one, comes out before all that is queued."""
        self._hurried = True
        queued = next((one for one in self.entries if type(one) is Barrier), None)
        if queued is not None:
            self._overtake(queued)

    def _overtake(self, barrier: Barrier) -> None:
        entries = list(self.entries)
        at = next(at for at, one in enumerate(entries) if one is barrier)
        self.overtaken = entries[:at]
        self.entries = deque([barrier, *self.overtaken, *entries[at + 1 :]])
        if self.on_front is not None:
            self.on_front()

    def settle(self) -> None:
        """The barrier has been taken, and what it had overtaken is kept."""
        self._hurried = False
        self.overtaken = []

    def begin(self, marks: tuple[Any, ...], queued: list[Any]) -> None:
        """Go on from the `marks` of a checkpoint, with what its barrier had overtaken."""
        self.entries.extend(queued)
        batches = [one for one in queued if not isinstance(one, Control)]
        self.size = sum(map(len, batches))
        self.weights.extend(map(weigh, batches))
        self.bytes = sum(self.weights)
        self._watermark, self._idle, writers = marks
        for writer, (watermark, idle) in zip(self.writers, writers, strict=True):
            writer.watermark, writer.idle = watermark, idle

    def _marks(self) -> tuple[Any, ...]:
        writers = [(writer.watermark, writer.idle) for writer in self.writers]
        return (self._watermark, self._idle, writers)

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
        if self._barrier is not None:
            self.align(self._barrier)
        if self.ended:
            self.wake_getter()

    def room(self, each: int) -> int:
        """How many items of that many bytes may come in now."""
        room = self.capacity - self.size
        if not each or room <= 0:
            return room
        return min(room, max((self.capacity_bytes - self.bytes) // each, 0 if self.size else 1))

    async def turn(self, mine: asyncio.Future[None]) -> None:
        """Wait until there is room and it is the caller's turn, which is what `mine` is for.

        It keeps its place in line until it goes on, so that nobody takes the room meanwhile.
        """
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
        full = self.size >= self.capacity or (self.bytes >= self.capacity_bytes and self.size > 0)
        if self.putters and not full and not self.putters[0].done():
            self.putters[0].set_result(None)


def _same_kind(entry: Any, first: Batch) -> bool:
    """Whether this is a batch that can be joined to another."""
    if isinstance(first, list) or not isinstance(entry, Columns):
        return type(entry) is type(first)
    return entry.side == first.side
