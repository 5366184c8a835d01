"""What flows between stages: batches of records, and control messages in band with them.

A batch is a plain list where records have no event time, and `Columns` where they have one. Nobody changes a
batch once it is put: several channels may hold the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

__all__ = ["LAST", "Barrier", "Batch", "Columns", "Control", "Idle", "Watermark", "joined", "part"]


class Columns:
    """Records and their event times in seconds, side by side; `side`: which input of a join they are for."""

    __slots__ = ("side", "times", "values")

    def __init__(self, values: list[Any], times: list[float], side: int = 0) -> None:
        self.values = values
        self.times = times
        self.side = side

    def __len__(self) -> int:
        return len(self.values)


Batch: TypeAlias = "list[Any] | Columns"


class Control:
    """A message in band."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Watermark(Control):
    """No record behind it is older than `time`, in seconds of event time, but those that are late."""

    time: float


@dataclass(frozen=True, slots=True)
class Idle(Control):
    """Its source has had nothing for a while: the others' watermarks need not wait for it."""


@dataclass(frozen=True, slots=True)
class Barrier(Control):
    """What was put before it belongs to the checkpoint that ends this epoch; what comes behind it does not.

    One that `drains` is the last of a run: async operators let their calls end before they pass it on.
    """

    epoch: int
    drains: bool = False


LAST: Final = Watermark(float("inf"))


def part(batch: Batch, start: int, end: int | None) -> Batch:
    """The records from `start` up to `end`."""
    if isinstance(batch, list):
        return batch[start:end]
    return Columns(batch.values[start:end], batch.times[start:end], batch.side)


def joined(batches: Sequence[Batch]) -> Batch:
    """These batches, all of one form and side, as one."""
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, list):
        return [value for batch in batches if isinstance(batch, list) for value in batch]
    columns = [batch for batch in batches if isinstance(batch, Columns)]
    values = [value for batch in columns for value in batch.values]
    return Columns(values, [time for batch in columns for time in batch.times], first.side)
