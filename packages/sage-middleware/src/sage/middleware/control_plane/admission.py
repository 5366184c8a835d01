"""Who may not wait, and what may not be tried again: bounds, forecasts, the retry budget, quarantine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sage.common.telemetry import Bound, ShedReason
from sage.middleware.control_plane.engine_table import EngineLoad
from sage.middleware.control_plane.lanes import ClassCounts, Lane
from sage.middleware.control_plane.options import Limits
from sage.middleware.control_plane.policy import Policy, Shed
from sage.middleware.control_plane.records import CRASHES_TO_QUARANTINE, Record

__all__ = ["RetryBudget", "expiry", "full", "refusal"]


def refusal(
    record: Record,
    lane: Lane,
    engines: Sequence[EngineLoad],
    counts: ClassCounts,
    limits: Limits,
    policy: Policy,
    now: float,
) -> tuple[Shed, ShedReason] | None:
    """Why a newcomer that cannot go at once may not even wait; None when it may."""
    if refused := full(record, lane, len(engines), counts, limits):
        return refused
    shed = policy.admit(record, engines, lane.before(record), now)
    return None if shed is None else (shed, ShedReason.FORECAST)


def full(
    record: Record, lane: Lane, engines: int, counts: ClassCounts, limits: Limits
) -> tuple[Shed, ShedReason] | None:
    """Whether the queue of its class has no room for a newcomer. `engines`: how many serve its lane."""
    if counts.waiting >= limits.queue_max_requests:
        room, bound = f"{limits.queue_max_requests} requests", Bound.QUEUE_REQUESTS
    elif counts.waiting_bytes + record.job.body_bytes > limits.queue_max_bytes:
        room, bound = f"{limits.queue_max_bytes} bytes", Bound.QUEUE_BYTES
    else:
        return None
    wait = max(1.0, lane.ahead / engines)
    shed = Shed(f"the queue of {record.job.request_class} is full ({room})", wait, bound)
    return shed, ShedReason.QUEUE_FULL


def expiry(record: Record, now: float) -> tuple[Shed, ShedReason]:
    """Why a request that has waited until now waits no longer."""
    waited = now - record.arrived
    late = record.deadline is not None and now >= record.deadline
    why = "its deadline passed" if late else "no engine became free in time"
    bound = Bound.DEADLINE if late else Bound.QUEUE_TIME
    shed = Shed(f"{why}: it waited {waited:.1f} s", max(1.0, waited), bound)
    return shed, ShedReason.DEADLINE if late else ShedReason.EXPIRED


class RetryBudget:
    """Retries are a share of the traffic, so that faults do not multiply the load."""

    __slots__ = ("_left", "_limits")

    RESERVE: Final = 10.0  # that may come in a burst, and the first ones of a quiet server

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = self.RESERVE

    def change(self, limits: Limits) -> None:
        """From now on these bounds; what is left stays."""
        self._limits = limits

    def earn(self) -> None:
        """A request arrived."""
        left = self._left + self._limits.retry_share
        self._left = left if left < self.RESERVE else self.RESERVE

    def spend(self) -> bool:
        """Take one retry, if there is one."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def objection(self, record: Record, tries: int, reason: str, *, affordable: bool) -> str:
        """Why what has failed `tries` times, the last one for `reason`, ends; empty = it is tried again."""
        if record.crashes >= CRASHES_TO_QUARANTINE:
            return f"quarantined: {record.crashes} engines crashed while it ran there; the last one: {reason}"
        if tries >= self._limits.max_attempts:
            return f"{tries} attempts failed, the last one: {reason}"
        return "" if affordable else f"no retries left for now; it failed with: {reason}"
