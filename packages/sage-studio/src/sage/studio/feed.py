"""What the page shows: snapshots of the stack, at most one in two seconds however many tabs are open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict

from sage.common.api import Decision, StackStatus
from sage.common.clock import Clock, SystemClock
from sage.common.errors import SageError
from sage.common.paths import SagePaths

__all__ = ["PERIOD_S", "Feed", "Snapshot", "stack_source"]

PERIOD_S: Final = 2.0
DECISIONS: Final = 50


class Snapshot(BaseModel):
    """The stack at one moment; `status` is None when it could not be asked, and `problem` says why."""

    model_config = ConfigDict(frozen=True)

    at: float
    status: StackStatus | None
    decisions: list[Decision]
    problem: str = ""


Source = Callable[[], tuple[StackStatus, list[Decision]]]


def stack_source(paths: SagePaths) -> Source:
    """Asks the stack that runs for `paths`, found anew each time, so that a restarted one is followed."""
    from sage.middleware.stack import admin_client

    def ask() -> tuple[StackStatus, list[Decision]]:
        admin = admin_client(paths, timeout=PERIOD_S)
        return admin.status(), admin.decisions(DECISIONS).decisions

    return ask


@dataclass(frozen=True, slots=True)
class _Kept:
    number: int
    taken: float
    snapshot: Snapshot


class Feed:
    """Snapshots from `source`, which blocks and runs on a thread. `close` ends all streams."""

    def __init__(self, source: Source, *, period: float = PERIOD_S, clock: Clock | None = None) -> None:
        self._source = source
        self._period = period
        self._clock = clock or SystemClock()
        self._kept: _Kept | None = None
        self._lock = asyncio.Lock()
        self._closed = asyncio.Event()

    async def latest(self) -> tuple[int, Snapshot]:
        """The newest snapshot and its number; the source is asked only when the last one is old enough."""
        async with self._lock:
            kept = self._kept
            if kept is None or self._clock.now() - kept.taken >= self._period:
                taken = self._clock.now()
                snapshot = await asyncio.to_thread(self._take)
                kept = self._kept = _Kept(kept.number + 1 if kept else 1, taken, snapshot)
            return kept.number, kept.snapshot

    async def stream(self) -> AsyncGenerator[str, None]:
        """Server-sent events, one per period, the first at once."""
        while not self._closed.is_set():
            number, snapshot = await self.latest()
            yield f"id: {number}\ndata: {snapshot.model_dump_json()}\n\n"
            try:
                await asyncio.wait_for(self._closed.wait(), self._period)
            except TimeoutError:
                continue

    def close(self) -> None:
        """End all streams, so that the server can stop."""
        self._closed.set()

    def _take(self) -> Snapshot:
        at = self._clock.wall()
        try:
            status, decisions = self._source()
        except SageError as error:
            return Snapshot(at=at, status=None, decisions=[], problem=str(error))
        return Snapshot(at=at, status=status, decisions=decisions)
