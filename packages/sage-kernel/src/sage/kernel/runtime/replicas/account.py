"""What workers did, in the counters of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.replicas.bench import Done
from sage.kernel.runtime.report import operator_error

__all__ = ["enter"]


def enter(done: Done, faults: Sequence[Faults], start: int) -> Any:
    """Count what one batch came to and give its results; raises what stops the run.

    `faults` are those of the operators; `start` is the position of the batch's first item.
    """
    if (broken := done.broken) is not None:
        stopped = faults[broken.op]
        position = (stopped.counters.items_in if broken.op else start) + broken.at
        where = f"operator {stopped.counters.name!r} failed on item {position} ({broken.item})"
        raise operator_error(where, broken.error) from broken.error
    faults[0].counters.cpu += done.cpu
    for (items_in, items_out, skipped, busy, failures), one in zip(done.tallies, faults, strict=True):
        counters = one.counters
        counters.items_in += items_in
        counters.items_out += items_out
        counters.skipped += skipped
        counters.busy += busy
        if failures:
            counters.diverted += len(failures)
            one.failures.extend(failures)
    return done.values
