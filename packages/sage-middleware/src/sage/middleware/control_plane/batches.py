"""What one call carries: a request as it is, or slices of embedding requests, coalesced and cut."""

from __future__ import annotations

from sage.middleware.control_plane.lanes import Lane, Lanes
from sage.middleware.control_plane.policy import BatchLimits
from sage.middleware.control_plane.records import Record

__all__ = ["Taken", "fill", "whole"]

Taken = tuple[Record, int, int, int]  # record, first unit, last unit (exclusive), which try of them


def whole(record: Record) -> Taken:
    """All that waits of a request that is not cut, or the first slice that came back."""
    if record.returned:
        (start, stop, tries), *rest = record.returned
        record.returned = tuple(rest)
        return record, start, stop, tries + 1
    start, record.taken = record.taken, record.units
    return record, start, record.units, 1


def fill(
    lanes: Lanes, lane: Lane, head: Record, limits: BatchLimits, now: float, *, coalesce: bool = True
) -> list[Taken]:
    """Slices from the head of the lane on, in its order, of one class, within `limits`; at least one text.

    Without `coalesce` they are of the head alone.

    What has nothing left to wait leaves the lane. A slice that came back goes alone: whatever broke its call
    must not break others'.
    """
    taken: list[Taken] = []
    texts, tokens = limits.texts, float(limits.tokens)
    record: Record | None = head
    while record is not None and record.job.request_class is head.job.request_class:
        if record.returned:
            if taken:
                break
            taken.append(whole(record))
            lanes.took(lane, record, taken[0][2] - taken[0][1])
            texts = 0
        else:
            each = max(1.0, record.prompt_tokens / record.units)
            room = max(min(texts, int(tokens / each)), 0 if taken else 1)
            count = min(record.units - record.taken, room)
            if count <= 0:
                break
            taken.append((record, record.taken, record.taken + count, 1))
            record.taken += count
            lanes.took(lane, record, count)
            texts -= count
            tokens -= count * each
        if record.waiting_units:
            break
        lanes.remove(lane, record)
        if texts <= 0 or not lane.records or not coalesce:
            break
        record = lane.discipline.head(now)
    return taken
