"""What became of all requests: counts, attainment and times for each class and tenant. Pure, bounded.

A request counts once, at its end. One whose client went away is not offered load. A goal that a class does
not have is met.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeVar

from sage.common.api import ClassStatus
from sage.common.errors import SageError
from sage.common.telemetry import Bound, RequestClass, ShedReason
from sage.middleware.control_plane.histogram import LogHistogram
from sage.middleware.control_plane.records import CRASHES_TO_QUARANTINE

if TYPE_CHECKING:
    from sage.middleware.control_plane.engine_table import Attempt
    from sage.middleware.control_plane.records import Record

__all__ = ["OTHER", "Books", "Calls", "Tally"]

OTHER: Final = "other"  # whoever has not been heard of for longest, when there are too many

_GENERATES: Final = frozenset((RequestClass.CHAT, RequestClass.COMPLETION, RequestClass.BATCH))


class Tally:
    """Requests of one class and tenant that have ended. Histograms in seconds."""

    __slots__ = (
        "cancelled",
        "done",
        "failed",
        "hedges",
        "met",
        "quarantined",
        "queue",
        "retries",
        "shed",
        "total",
        "tpot",
        "ttft",
    )

    def __init__(self) -> None:
        self.done = self.met = self.failed = self.cancelled = 0
        self.retries = self.hedges = self.quarantined = 0
        self.shed: Counter[ShedReason] = Counter()
        self.queue = LogHistogram()
        self.ttft = LogHistogram()
        self.tpot = LogHistogram()
        self.total = LogHistogram()

    @property
    def offered(self) -> int:
        """All but the cancelled ones."""
        return self.done + self.failed + sum(self.shed.values())

    def merge(self, other: Tally) -> None:
        """Count what another one has counted."""
        for name in ("done", "met", "failed", "cancelled", "retries", "hedges", "quarantined"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.shed.update(other.shed)
        for name in ("queue", "ttft", "tpot", "total"):
            getattr(self, name).merge(getattr(other, name))

    def status(self, request_class: RequestClass, tenant: str) -> ClassStatus:
        """As the admin API shows it."""
        return ClassStatus(
            request_class=request_class,
            tenant=tenant,
            offered=self.offered,
            met=self.met,
            done=self.done,
            failed=self.failed,
            shed={reason.value: count for reason, count in sorted(self.shed.items())},
            cancelled=self.cancelled,
            retries=self.retries,
            hedges=self.hedges,
            quarantined=self.quarantined,
            queue_s=self.queue.quantiles(),
            ttft_s=self.ttft.quantiles(),
            tpot_s=self.tpot.quantiles(),
            total_s=self.total.quantiles(),
        )


class Calls:
    """What one engine was sent, and how well its times were foreseen."""

    __slots__ = ("error", "ratio", "texts", "tokens")

    def __init__(self) -> None:
        self.texts = LogHistogram()  # of each embedding call
        self.tokens = LogHistogram()
        self.error = LogHistogram()  # |predicted - actual| / actual
        self.ratio = LogHistogram()  # actual / predicted

    def merge(self, other: Calls) -> None:
        """Count what another one has counted."""
        for name in self.__slots__:
            getattr(self, name).merge(getattr(other, name))


class _Sums(Protocol):
    def merge(self, other: Self) -> None: ...


_T = TypeVar("_T", bound=_Sums)


class _Newest(Generic[_T]):
    """Sums by name; of more than `size` the one that was quiet for longest is added to `OTHER`."""

    __slots__ = (
        "_kind",
        "_newest",
        "_size",
        "items",
    )

    def __init__(self, kind: type[_T], size: int) -> None:
        self._kind = kind
        self._size = size
        self.items: OrderedDict[str, _T] = OrderedDict()
        self._newest: tuple[str, _T] | None = None

    def get(self, name: str) -> _T:
        newest = self._newest
        if newest is not None and newest[0] == name:  # often the same as before
            return newest[1]
        found = self.items.get(name)
        if found is None:
            found = self.items[name] = self._kind()
            if len(self.items) > self._size + (OTHER in self.items):
                self._fold()
        self.items.move_to_end(name)
        self._newest = (name, found)
        return found

    def _fold(self) -> None:
        oldest = next(name for name in self.items if name != OTHER)
        gone = self.items.pop(oldest)
        if OTHER in self.items:
            self.items[OTHER].merge(gone)
        else:
            self.items[OTHER] = gone


class _Classes:
    """One tenant's tallies."""

    __slots__ = ("tallies",)

    def __init__(self) -> None:
        self.tallies: dict[RequestClass, Tally] = {}

    def get(self, request_class: RequestClass) -> Tally:
        found = self.tallies.get(request_class)
        if found is None:
            found = self.tallies[request_class] = Tally()
        return found

    def merge(self, other: _Classes) -> None:
        for request_class, tally in other.tallies.items():
            self.get(request_class).merge(tally)


class Books:
    """Counts every request and every call once. Keeps the newest `tenants` tenants and `engines` engines."""

    __slots__ = (
        "_engines",
        "_tenants",
        "bounds",
        "overhead",
        "tokens",
    )

    def __init__(self, tenants: int = 64, engines: int = 256) -> None:
        self._tenants = _Newest(_Classes, tenants)
        self._engines = _Newest(Calls, engines)
        self.overhead = LogHistogram()  # seconds of the control plane itself, for each newcomer
        self.bounds: Counter[Bound] = Counter()  # that were met here and at engines
        self.tokens: dict[str, list[int]] = {}  # by model, of what is done: read, written

    # ---- what it is told -----------------------------------------------------------------------------

    def ended(self, record: Record, now: float) -> None:
        """A request has reached its one end, at `now`."""
        job = record.job
        tally = self._tenants.get(job.tenant).get(job.request_class)
        if record.retries:
            tally.retries += record.retries
        if record.hedges:
            tally.hedges += record.hedges
        if record.dispatched is not None:
            tally.queue.add(record.dispatched - record.arrived)
        outcome = record.outcome
        if outcome == "done":
            tally.done += 1
            if self._done(record, tally, now):
                tally.met += 1
            if (usage := record.usage) is not None:
                tokens = self.tokens.get(job.model) or self.tokens.setdefault(job.model, [0, 0])
                tokens[0] += usage.prompt_tokens
                tokens[1] += usage.completion_tokens
        elif outcome == "rejected":
            tally.shed[record.refusal or ShedReason.OTHER] += 1
        elif outcome == "cancelled":
            tally.cancelled += 1
        else:
            tally.failed += 1
            tally.quarantined += record.crashes >= CRASHES_TO_QUARANTINE

    def answered(self, attempt: Attempt) -> None:
        """An engine that computes vectors or scores answered a call."""
        calls = self._engines.get(attempt.engine.name)
        calls.texts.add(attempt.texts)
        calls.tokens.add(attempt.tokens)

    def met(self, error: SageError) -> None:
        """Something has failed: at a bound, if the error names one."""
        if error.bound is not None:
            self.bounds[error.bound] += 1

    def _done(self, record: Record, tally: Tally, now: float) -> bool:
        """Observe its times; whether it met its goals."""
        job, slo = record.job, record.slo
        total = now - record.arrived
        tally.total.add(total)
        met = slo.total is None or total <= slo.total
        if job.request_class not in _GENERATES:
            if record.predicted > 0.0:
                self._check_prediction(record, now)
            return met
        gaps = 0 if record.usage is None else record.usage.completion_tokens - 1
        if not job.stream:  # in time if a stream within both goals would have been complete by now
            if slo.ttft is None or (slo.tpot is None and gaps > 0):
                return met
            return met and total <= slo.ttft + (slo.tpot or 0.0) * max(gaps, 0)
        if record.first_byte is None:  # a stream that ended without a token
            return met
        ttft = record.first_byte - record.arrived
        tally.ttft.add(ttft)
        if record.predicted > 0.0:
            self._check_prediction(record, record.first_byte)
        if gaps > 0:
            tpot = (now - record.first_byte) / gaps
            tally.tpot.add(tpot)
            met = met and (slo.tpot is None or tpot <= slo.tpot)
        return met and (slo.ttft is None or ttft <= slo.ttft)

    def _check_prediction(self, record: Record, then: float) -> None:
        """Only of requests that ran once: the others were predicted as something else than they became."""
        if record.attempts != 1 or record.hedges or record.dispatched is None:
            return
        actual = then - record.dispatched
        if actual > 0.0 and record.engine is not None:
            calls = self._engines.get(record.engine)
            calls.error.add(abs(record.predicted - actual) / actual)
            calls.ratio.add(actual / record.predicted)

    # ---- what it tells -------------------------------------------------------------------------------

    def tallies(self) -> Iterator[tuple[RequestClass, str, Tally]]:
        """Each class and tenant that had requests."""
        for tenant, classes in sorted(self._tenants.items.items()):
            for request_class in RequestClass:
                if request_class in classes.tallies:
                    yield request_class, tenant, classes.tallies[request_class]

    def calls(self) -> list[tuple[str, Calls]]:
        """Each engine that was sent embedding calls or whose times were predicted."""
        return sorted(self._engines.items.items())

    def classes(self) -> list[ClassStatus]:
        """Each class that had requests, all tenants together."""
        every = _Classes()
        for classes in self._tenants.items.values():
            every.merge(classes)
        return [every.tallies[one].status(one, "") for one in RequestClass if one in every.tallies]
