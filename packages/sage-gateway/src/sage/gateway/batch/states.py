"""What a batch is, and the steps that it may take. Pure: the time is an argument.

validating → in_progress → finalizing → completed or expired; validating → failed; from each of the first two
also cancelling → cancelled. A key that may not go on ends its batch as `failed`, by way of finalizing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from sage.common.batch import (
    ENDED,
    BatchInfo,
    BatchProblem,
    BatchProblems,
    BatchStatus,
    RequestCounts,
)
from sage.common.errors import ConflictError

__all__ = [
    "Batch",
    "Counts",
    "Edit",
    "Ending",
    "Problem",
    "begin",
    "cancel",
    "finish",
    "info",
    "reject",
    "wind_up",
]

Ending = Literal["completed", "failed", "expired", "cancelled"]
NEXT: Final[dict[BatchStatus, frozenset[BatchStatus]]] = {
    "validating": frozenset(("in_progress", "failed", "cancelling")),
    "in_progress": frozenset(("finalizing", "cancelling")),
    "finalizing": frozenset(("completed", "failed", "expired")),
    "cancelling": frozenset(("cancelled",)),
    **dict.fromkeys(ENDED, frozenset()),
}


class Problem(msgspec.Struct, frozen=True):
    """See `BatchProblem`."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One batch, but for the counts of its results. Times in Unix seconds.

    `stamps`: when it came into each status. `ending`: what it will be once its files are written.
    `total`: lines of its input, 0 until that was found right.
    """

    id: str
    owner: str
    endpoint: str
    window: str
    input: str
    created: int
    expires: int
    metadata: dict[str, str] | None = None
    status: BatchStatus = "validating"
    stamps: dict[BatchStatus, int] = {}
    ending: Ending = "completed"
    problems: tuple[Problem, ...] = ()
    total: int = 0
    output: str | None = None
    errors: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing about it changes any more."""
        return self.status in ENDED


Edit = Callable[[Batch], Batch]


class Counts(msgspec.Struct, frozen=True):
    """Lines that have their result."""

    completed: int = 0
    failed: int = 0


def begin(batch: Batch, total: int, now: float) -> Batch:
    """Its input is right, and has so many lines."""
    return _step(batch, "in_progress", now, total=total)


def reject(batch: Batch, problems: Sequence[Problem], now: float) -> Batch:
    """Its input is not right: it ends here."""
    return _step(batch, "failed", now, ending="failed", problems=tuple(problems))


def cancel(batch: Batch, now: float) -> Batch:
    """Its owner has no use for it any more; asked twice, nothing changes.

    Raises ConflictError if it has ended, or is about to.
    """
    if batch.status == "cancelling":
        return batch
    if "cancelling" not in NEXT[batch.status]:
        raise ConflictError(f"The batch {batch.id} is {batch.status}; it cannot be cancelled any more.")
    return _step(batch, "cancelling", now, ending="cancelled")


def wind_up(batch: Batch, ending: Ending, now: float, problems: Sequence[Problem] = ()) -> Batch:
    """No more lines are run; what there is goes into its files. One that is being cancelled stays so."""
    if batch.status == "cancelling":
        return batch
    return _step(batch, "finalizing", now, ending=ending, problems=tuple(problems))


def finish(batch: Batch, now: float, *, output: str | None, errors: str | None) -> Batch:
    """Its files are written, those that have lines."""
    return _step(batch, batch.ending, now, output=output, errors=errors)


def _step(batch: Batch, status: BatchStatus, now: float, **changes: object) -> Batch:
    if status not in NEXT[batch.status]:
        raise ConflictError(f"The batch {batch.id} is {batch.status}; it cannot become {status}.")
    stamps = {**batch.stamps, status: int(now)}
    return msgspec.structs.replace(batch, status=status, stamps=stamps, **changes)


def info(batch: Batch, counts: Counts) -> BatchInfo:
    """As OpenAI shows it."""
    problems = [BatchProblem(**msgspec.structs.asdict(one)) for one in batch.problems]
    counted = RequestCounts(total=batch.total, completed=counts.completed, failed=counts.failed)
    fields = {
        "id": batch.id,
        "endpoint": batch.endpoint,
        "errors": BatchProblems(data=problems) if problems else None,
        "input_file_id": batch.input,
        "completion_window": batch.window,
        "status": batch.status,
        "output_file_id": batch.output,
        "error_file_id": batch.errors,
        "created_at": batch.created,
        "expires_at": batch.expires,
        "request_counts": counted,
        "metadata": batch.metadata,
    }
    stamps = {f"{status}_at": at for status, at in batch.stamps.items()}
    return BatchInfo.model_validate({**fields, **stamps})
