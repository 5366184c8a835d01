"""Operators that are fused: batches go through one after the other, and so do control messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from sage.common.clock import Clock
from sage.kernel.compile import Op
from sage.kernel.runtime.columns import Control, joined
from sage.kernel.runtime.expiry import ExpiringFold
from sage.kernel.runtime.joins import IntervalJoin
from sage.kernel.runtime.kernels import Faults, kernel_of
from sage.kernel.runtime.report import Counters
from sage.kernel.runtime.scans import Scan
from sage.kernel.runtime.state import Stateful
from sage.kernel.runtime.timed import one_to_one, timed_kernel_of
from sage.kernel.runtime.windows import windows_of

__all__ = ["Chain", "Step", "step_of"]


@dataclass(frozen=True, slots=True)
class Step:
    """One operator. `control`: what it gives when a message passes, where it gives anything then."""

    run: Callable[[Any], Any]
    counters: Counters
    control: Callable[[Control], Any] | None = None
    stateful: Stateful | None = None


def step_of(op: Op, faults: Faults, clock: Clock) -> Step:
    """The step of a sync operator."""
    counters = faults.counters
    if op.node.verb == "scan":
        if op.fn.ttl:
            fold = ExpiringFold(op.fn, faults, clock)
            heeds = fold.control if op.timed else None
            return Step(fold.run_timed if op.timed else fold.run, counters, heeds, fold)
        scan = Scan(op.fn, faults)
        return Step(one_to_one(scan.run, faults) if op.timed else scan.run, counters, stateful=scan)
    if op.node.verb == "window":
        windows = windows_of(op.fn, faults)
        return Step(windows.run, counters, windows.control, windows)
    if op.node.verb == "join":
        join = IntervalJoin(op.fn, faults)
        return Step(join.run, counters, join.control, join)
    return Step(timed_kernel_of(op, faults) if op.timed else kernel_of(op, faults), counters)


class Chain:
    """Steps in their order; `run` takes a batch, with two clock readings per batch and step.

    `stateful`: those with state, by the names of their operators.
    """

    __slots__ = ("_heed", "run", "stateful")

    def __init__(self, steps: Sequence[Step]) -> None:
        self.run = _fused(steps)
        self.stateful = [(step.counters.name, step.stateful) for step in steps if step.stateful is not None]
        # each step that heeds messages, with what is behind it
        self._heed = [
            (step.control, step.counters, _fused(steps[at + 1 :]))
            for at, step in enumerate(steps)
            if step.control is not None
        ]

    def control(self, message: Control) -> Any:
        """What comes out ahead of a message: what each step gives, through the steps behind it."""
        out: Any = ()
        for heed, counters, rest in self._heed:
            start = perf_counter_ns()
            given = heed(message)
            counters.busy += perf_counter_ns() - start
            counters.items_out += len(given)
            if given and (passed := rest(given)):
                out = joined([out, passed]) if out else passed
        return out


def _fused(steps: Sequence[Step]) -> Callable[[Any], Any]:
    parts = tuple((step.run, step.counters) for step in steps)

    def run(items: Any) -> Any:
        start = perf_counter_ns()
        for kernel, counters in parts:
            if not items:
                break
            count = len(items)
            items = kernel(items)
            counters.items_in += count
            counters.items_out += len(items)
            end = perf_counter_ns()
            counters.busy += end - start
            start = end
        return items

    return run
