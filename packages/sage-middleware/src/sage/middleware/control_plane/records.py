"""One request's record: what the core decided about it, when, and how it went; and its attempts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from math import inf
from typing import Final, Literal

import msgspec

from sage.common.telemetry import ShedReason
from sage.middleware.control_plane.types import Job, Slo
from sage.middleware.engines.port import Usage

__all__ = ["CRASHES_TO_QUARANTINE", "Candidate", "History", "Outcome", "Record"]

CRASHES_TO_QUARANTINE: Final = 2  # of engines while a request ran there, after which it is not tried again

Outcome = Literal["waiting", "running", "done", "failed", "rejected", "cancelled"]


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An engine that a decision could have fallen on. `predicted` in seconds."""

    engine: str
    running: int
    free: int
    predicted: float
    cached_tokens: int


class Record(msgspec.Struct, eq=False, gc=False):
    """A request from arrival to its one end. Times are the core's own, in seconds.

    A request has `units` to be served: the texts of an embedding request, one for a generation. Those from
    `taken` on wait, and so do the `returned` slices of failed attempts (first, last exclusive, attempts so
    far); `left` have no answer yet.

    Thousands are kept, so the garbage collector does not look at them: nothing here leads back to a record.
    """

    job: Job
    sequence: int  # order of arrival
    policy: str
    arrived: float
    deadline: float | None  # hard
    slo: Slo
    due: float  # when its first token (generation) or answer should be there; inf = whenever
    prompt_tokens: int  # estimate
    output_p50: float  # tokens of the answer, predicted; 0 for embeddings
    output_p90: float
    units: int
    left: int
    queued: float  # when it began to wait: at arrival, or at the failure that made it wait again
    taken: int = 0
    returned: tuple[tuple[int, int, int], ...] = ()
    cost: float = 0.0  # predicted engine-seconds on the engine that would be quickest
    quick: float = 0.0  # predicted seconds there, if it were idle, to the first token or answer
    ends_by: float = inf  # when the last token of a generation should be there; inf = whenever
    charged: float = 0.0  # engine-seconds that its tenant was charged for it
    cached: dict[str, int] | None = None  # engine to prompt tokens that it has cached
    outcome: Outcome = "waiting"
    reason: str = "waiting for a free engine"
    engine: str | None = None  # where it runs or ran last
    attempts: int = 0
    retries: int = 0  # slices sent once more after a fault
    hedges: int = 0  # slices sent twice because they were late
    crashes: int = 0  # of engines, while it was in flight there
    refusal: ShedReason | None = None  # the kind of `reason` of one that was refused
    ahead: int | None = None  # requests in its lane before it when it came
    ahead_seconds: float | None = None  # predicted engine-seconds of those
    dispatched: float | None = None
    first_byte: float | None = None
    ended: float | None = None
    usage: Usage | None = None
    predicted: float = 0.0  # by the last choice: seconds to the first token or answer; 0 = not predicted
    running: tuple[int, ...] = ()  # numbers of its attempts under way
    candidates: tuple[Candidate, ...] = ()  # of the last choice, where the decision was sampled

    @property
    def waiting_units(self) -> int:
        """Units in the queue."""
        waiting = self.units - self.taken
        if self.returned:
            waiting += sum(stop - start for start, stop, _ in self.returned)
        return waiting

    def end(self, outcome: Outcome, reason: str, now: float) -> None:
        """Close it. `reason` is kept only where it says more than why its engine was chosen."""
        self.outcome = outcome
        self.ended = now
        if reason:
            self.reason = reason


class History:
    """The newest `size` records, by arrival."""

    __slots__ = ("_records", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._records: OrderedDict[str, Record] = OrderedDict()

    def add(self, record: Record) -> None:
        """Keep it and drop the oldest if there are too many."""
        self._records.pop(record.job.id, None)  # an id that is used again is new again
        self._records[record.job.id] = record
        if len(self._records) > self._size:
            self._records.popitem(last=False)

    def resize(self, size: int) -> None:
        """Keep so many from now on."""
        self._size = size
        while len(self._records) > size:
            self._records.popitem(last=False)

    def get(self, ident: str) -> Record | None:
        """The newest record of that request id."""
        return self._records.get(ident)

    def newest_first(self) -> Iterator[Record]:
        """All that are kept."""
        return reversed(self._records.values())
