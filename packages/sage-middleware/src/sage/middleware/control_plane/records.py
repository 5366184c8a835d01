"""One request's record: what the core decided about it, when, and how it went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Usage

__all__ = ["History", "Outcome", "Record"]

Outcome = Literal["waiting", "running", "done", "failed", "rejected", "cancelled"]


@dataclass(slots=True, eq=False)
class Record:
    """A request from arrival to its one end. Times are the core's own, in seconds."""

    job: Job
    sequence: int  # order of arrival
    policy: str
    arrived: float
    deadline: float | None
    queued: float  # when it began to wait: at arrival, or at the failure that made it wait again
    outcome: Outcome = "waiting"
    reason: str = "waiting for a free engine"
    engine: str | None = None  # where it runs or ran last
    attempts: int = 0
    dispatched: float | None = None
    first_byte: float | None = None
    ended: float | None = None
    usage: Usage | None = None

    @property
    def cost_tokens(self) -> int:
        """Tokens it may take of an engine: its prompt, and the longest answer where it names one."""
        return self.job.prompt_tokens + (self.job.max_tokens or 0)

    def end(self, outcome: Outcome, reason: str, now: float) -> None:
        """Close it. `reason` is kept only where it says more than why its engine was chosen."""
        self.outcome = outcome
        self.ended = now
        if reason:
            self.reason = reason


class History:
    """The newest `size` records, by arrival."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._records: dict[str, Record] = {}

    def add(self, record: Record) -> None:
        """Keep it and drop the oldest if there are too many."""
        self._records.pop(record.job.id, None)  # an id that is used again is new again
        self._records[record.job.id] = record
        if len(self._records) > self._size:
            del self._records[next(iter(self._records))]

    def get(self, ident: str) -> Record | None:
        """The newest record of that request id."""
        return self._records.get(ident)

    def newest_first(self) -> Iterator[Record]:
        """All that are kept."""
        return reversed(self._records.values())
