"""What a worker does with a batch: its own instances of the operators, and an account of what happened."""

from __future__ import annotations

import inspect
import pickle
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeAlias

from sage.common.clock import SystemClock
from sage.kernel.compile import Op
from sage.kernel.options import Failure, OnError
from sage.kernel.runtime.chain import Chain, step_of
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.replicas.wire import pack, unpack
from sage.kernel.runtime.report import Counters, operator_error, spell

__all__ = ["Bench", "BrokenError", "Done", "Tally", "portable_error"]


Tally: TypeAlias = tuple[int, int, int, int, Sequence[Failure[Any]]]
"""What one operator did with one batch: items in and out, skipped, nanoseconds busy, what it diverted."""

_NOTHING: Final[Tally] = (0, 0, 0, 0, ())


class Done(NamedTuple):
    """What became of a batch: its results, a tally of each operator, and nanoseconds of CPU time."""

    values: Any
    tallies: tuple[Tally, ...]
    broken: BrokenError | None
    cpu: int


class BrokenError(Exception):
    """Operator number `op` failed on the item that came `at`-th to it in this batch, and must not go on."""

    def __init__(self, op: int, at: int, item: str, error: Exception) -> None:
        super().__init__(op, at, item, error)
        self.op = op
        self.at = at
        self.item = item
        self.error = error


class _Recorder(Faults):
    """Leaves to the run what stops it: only there the positions are known."""

    __slots__ = ("_number",)

    def __init__(self, number: int, op: Op) -> None:
        super().__init__(op, Counters(op.node.name, op.node.verb))
        self._number = number

    def settle(self, item: Any, error: Exception, position: int, on_error: OnError | None = None) -> None:
        if self.wanted(error, on_error) == "fail":
            raise BrokenError(self._number, position, spell(item), error)
        super().settle(item, error, position, on_error)

    def tally(self) -> Tally:
        """The counts since the last call."""
        c = self.counters
        tally = (c.items_in, c.items_out, c.skipped, c.busy, self.take() if self.failures else ())
        c.items_in = c.items_out = c.skipped = c.busy = 0
        return tally


class Bench:
    """The operators of one worker. `clock` reads the CPU time that counts, in nanoseconds."""

    def __init__(self, ops: Sequence[Op], clock: Callable[[], int]) -> None:
        self._clock = clock
        # What the run owns, it sets up: threads share it.
        self._owned = [op.owner is None for op in ops]
        self._ops = [replace(op, fn=op.fn()) for op in ops]
        self._faults = [_Recorder(number, op) for number, op in enumerate(self._ops)]
        steps = [
            step_of(op, faults, SystemClock()) for op, faults in zip(self._ops, self._faults, strict=True)
        ]
        self._all, self._head, self._rest = Chain(steps), Chain(steps[:1]), Chain(steps[1:])

    def setup(self) -> None:
        """Call every `setup`; where one fails, those before it are closed."""
        for at in range(len(self._ops)):
            try:
                self._call(at, "setup")
            except BaseException:
                self._close(range(at))
                raise

    def run(self, items: Any) -> Done:
        """One batch through all the operators."""
        return self._measured(self._all, items)

    def each(self, items: list[Any]) -> list[Done]:
        """The same with an account of each item, for those who wait for theirs alone."""
        if self._ops[0].node.verb != "map_batch":
            return [self.run([item]) for item in items]
        whole = self._measured(self._head, items)
        if len(whole.values) == len(items):
            found = [self._measured(self._rest, [value]) for value in whole.values]
        else:  # the batch failed, and counts for each of its items
            rest = (_NOTHING,) * (len(self._ops) - 1)
            lost: list[Sequence[Failure[Any]]] = [(one,) for one in whole.tallies[0][4]] or [()] * len(items)
            found = [Done([], ((0, 0, 0, 0, mine), *rest), whole.broken, 0) for mine in lost]
        first = (*whole.tallies[0][:4], found[0].tallies[0][4])
        tallies = (first, *found[0].tallies[1:])
        return [Done(found[0].values, tallies, found[0].broken, found[0].cpu + whole.cpu), *found[1:]]

    def close(self) -> None:
        """Call every `close`, backwards, each once, whatever the others do."""
        self._close(range(len(self._ops)))

    def sendable(self, done: Done) -> Done:
        """`done` without what cannot be pickled: the last operator has failed on that."""
        last, kept = self._faults[-1], []
        values = done.values if isinstance(done.values, list) else []
        broken = done.broken
        try:
            for at, value in enumerate(values):
                try:
                    pickle.dumps(value, 5)
                    kept.append(value)
                except Exception as error:
                    last.settle(spell(value), error, at)
            pickle.dumps(done.tallies, 5)
        except BrokenError as error:
            broken = error
        except Exception as error:
            broken = BrokenError(len(self._ops) - 1, 0, "a diverted item", error)
        if broken is not None:
            return Done([], (_NOTHING,) * len(self._ops), portable_error(broken), done.cpu)
        taken, _, skipped, busy, failures = done.tallies[-1]
        _, _, skipped_now, _, failures_now = last.tally()
        final = (taken, len(kept), skipped + skipped_now, busy, [*failures, *failures_now])
        return Done(kept, (*done.tallies[:-1], final), None, done.cpu)

    def _measured(self, chain: Chain, items: Any) -> Done:
        start, broken = self._clock(), None
        try:
            values = chain.run(items)
        except BrokenError as error:
            values, broken = [], error
        tallies = tuple([faults.tally() for faults in self._faults])
        return Done(values, tallies, broken, self._clock() - start)

    def _close(self, numbers: range) -> None:
        failed: Exception | None = None
        for at in reversed(numbers):
            try:
                self._call(at, "close")
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _call(self, at: int, method: str) -> None:
        op = self._ops[at]
        call: Callable[[], Any] | None = getattr(op.fn, method, None)
        if call is None or not self._owned[at]:
            return
        try:
            result = call()
            if inspect.isawaitable(result):
                import asyncio  # 16 ms, which few workers need

                asyncio.run(_awaited(result))
        except Exception as error:
            raise operator_error(f"{method} of operator {op.node.name!r} failed", error) from error


async def _awaited(result: Any) -> None:
    await result


def portable_error(broken: BrokenError) -> BrokenError:
    """`broken` with an error that comes out of a pickle as it went in; else one that says the same."""
    error = broken.error
    error.add_note("".join(traceback.format_exception(error)))  # a pickle has no traceback
    try:
        unpack(pack(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return BrokenError(broken.op, broken.at, broken.item, error)
