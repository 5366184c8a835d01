"""A queue of batches between two stages, bounded by items."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

__all__ = ["Channel"]


class Channel:
    """Many writers, one reader, at most `capacity` items queued.

    A batch is a list that nobody changes once it is put: several channels may hold the same one.
    """

    __slots__ = ("_batches", "_getter", "_loop", "_putters", "capacity", "size", "writers")

    def __init__(self, capacity: int, writers: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.writers = writers
        self._batches: deque[list[Any]] = deque()
        self._getter: asyncio.Future[None] | None = None
        self._putters: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()

    def try_put(self, batch: list[Any]) -> bool:
        """Queue the whole batch if there is room and nobody waits for it."""
        size = self.size + len(batch)
        if size > self.capacity or self._putters:
            return False
        self.size = size
        self._batches.append(batch)
        if self._getter is not None:
            self._wake_getter()
        return True

    async def put(self, batch: list[Any]) -> None:
        """Queue the batch, in pieces where it is larger than the room there is."""
        start, total = 0, len(batch)
        # Once this writer has waited it is its turn: writers that come later queue behind it.
        my_turn = not self._putters
        while start < total:
            room = self.capacity - self.size
            if room <= 0 or not my_turn:
                waiter = self._loop.create_future()
                self._putters.append(waiter)
                await self._wait(waiter)
                my_turn = True
                continue
            piece = batch[start : start + room]
            start += len(piece)
            self.size += len(piece)
            self._batches.append(piece)
            self._wake_getter()
        self._wake_putter()

    async def get(self, limit: int = 0) -> list[Any] | None:
        """The next batch, of at most `limit` items where given and joined with those queued behind it.

        None once every writer has closed and the queue is empty. Cancelling it loses nothing.
        """
        batches = self._batches
        while not batches:
            if self.writers <= 0:
                return None
            self._getter = self._loop.create_future()
            try:
                await self._getter
            finally:
                self._getter = None
        batch = batches.popleft()
        if limit:
            batch = self._fit(batch, limit)
        self.size -= len(batch)
        if self._putters:
            self._wake_putter()
        return batch

    def close(self) -> None:
        """One writer has ended."""
        self.writers -= 1
        if self.writers <= 0:
            self._wake_getter()

    def _fit(self, batch: list[Any], limit: int) -> list[Any]:
        batches = self._batches
        if batches and len(batch) < limit:
            batch = list(batch)
            while batches and len(batch) < limit:
                batch += batches.popleft()
        if len(batch) > limit:
            batches.appendleft(batch[limit:])
            batch = batch[:limit]
        return batch

    async def _wait(self, waiter: asyncio.Future[None]) -> None:
        try:
            await waiter
        except asyncio.CancelledError:
            # The turn that was given to a cancelled writer goes to the next one.
            if waiter in self._putters:
                self._putters.remove(waiter)
            else:
                self._wake_putter()
            raise

    def _wake_getter(self) -> None:
        if self._getter is not None and not self._getter.done():
            self._getter.set_result(None)

    def _wake_putter(self) -> None:
        while self._putters and self.size < self.capacity:
            waiter = self._putters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
