"""What a run counts, and the error it stops with."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from sage.common.errors import NotFoundError, SageError

__all__ = [
    "CheckpointError",
    "Counters",
    "OperatorError",
    "OperatorReport",
    "RunReport",
    "operator_error",
    "spell",
]


class OperatorError(SageError):
    """An operator failed; the message names it, the item and its position; the cause is its own error."""

    code = "operator_failed"


class CheckpointError(SageError):
    """A checkpoint cannot be taken or gone on from; the message names the operator, item or file."""

    code = "checkpoint_failed"


@dataclass(slots=True)
class Counters:
    """Live counts of one operator; times in nanoseconds."""

    name: str
    verb: str
    items_in: int = 0
    items_out: int = 0
    diverted: int = 0
    skipped: int = 0
    retries: int = 0
    in_flight: int = 0
    busy: int = 0
    wait: int = 0
    cpu: int = 0
    hits: int = 0
    misses: int = 0
    inner: list[Counters] = field(default_factory=list)
    """Those of the operators in the body of a loop."""

    def counts(self) -> tuple[int, ...]:
        """What a checkpoint keeps: in, out, diverted, skipped, retries, and hits and misses of a cache."""
        kept = (self.items_in, self.items_out, self.diverted, self.skipped, self.retries)
        return (*kept, self.hits, self.misses)

    def begin(self, counts: tuple[int, ...]) -> None:
        """Go on from the `counts` of a checkpoint."""
        self.items_in, self.items_out, self.diverted, self.skipped, self.retries, *cached = counts
        self.hits, self.misses = cached

    def report(self) -> OperatorReport:
        """The counts so far."""
        return OperatorReport(
            self.name,
            self.verb,
            self.items_in,
            self.items_out,
            self.diverted,
            self.skipped,
            self.retries,
            self.in_flight,
            self.busy / 1e9,
            self.wait / 1e9,
            self.hits,
            self.misses,
            self.cpu / 1e9,
        )


@dataclass(frozen=True, slots=True)
class OperatorReport:
    """Counts of one operator.

    `busy` is seconds inside its code, summed over calls in flight; `wait` is seconds its stage waited for
    input or for room downstream (0 for an operator that is fused behind another). `hits` and `misses` are of
    its cache. `cpu` is CPU seconds of the workers of its stage (0 for one on the event loop, or fused behind
    another).
    """

    name: str
    verb: str
    items_in: int
    items_out: int
    diverted: int
    skipped: int
    retries: int
    in_flight: int
    busy: float
    wait: float
    hits: int = 0
    misses: int = 0
    cpu: float = 0.0


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run went, operator by operator in the order of the plan; `report["split"]` is one of them.

    `resumed` is the epoch of the checkpoint that it went on from (0 = from the start), `epoch` that of its
    last one (0 = none). Counts go on from the checkpoint. `already_done`: an earlier run had come to its end,
    and this one did nothing. `warnings` tell what was not as it should be, such as a damaged checkpoint.
    """

    flow: str
    seconds: float
    interrupted: bool
    operators: tuple[OperatorReport, ...]
    resumed: int = 0
    epoch: int = 0
    already_done: bool = False
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> OperatorReport:
        for found in self.operators:
            if found.name == name:
                return found
        known = ", ".join(o.name for o in self.operators)
        raise NotFoundError(f"flow {self.flow!r} has no operator {name!r}; there are: {known}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def reports(counters: Iterable[Counters]) -> tuple[OperatorReport, ...]:
    """A snapshot of all counters, those of a loop's body behind those of the loop."""
    return tuple(report for c in counters for report in (c.report(), *reports(c.inner)))


def spell(value: Any, limit: int = 200) -> str:
    """A short `repr` that never raises."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}, whose repr fails: {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def operator_error(where: str, error: BaseException) -> SageError:
    """What to raise for `error` at `where`; a `SageError` keeps its class, so its status and exit code."""
    if isinstance(error, SageError):
        try:
            same = copy.copy(error)
        except TypeError:
            pass
        else:
            same.message = f"{where}: {error.message}"
            same.args = (same.message,)
            return same
    return OperatorError(f"{where}: {type(error).__name__}: {error}")
