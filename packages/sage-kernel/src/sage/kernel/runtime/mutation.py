"""The debug mode that finds operators which change records that other operators have as well.

Records are never copied: where a stream has several readers, all get the same objects. In this mode each of
these has a fingerprint, which is compared before and after every call that it is given to.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from sage.kernel.compile import Compiled, Loop, Op
from sage.kernel.plan import EventTime, Fold, WindowFold
from sage.kernel.runtime.channel import Writer
from sage.kernel.runtime.columns import Batch
from sage.kernel.runtime.kernels import FatalError, Faults, Kernel
from sage.kernel.runtime.outputs import Outputs
from sage.kernel.runtime.report import Counters

__all__ = ["SharedRecordError", "Shares", "SharingOutputs", "guarded"]

_REMEMBERED: Final = 100_000
_UNCHANGING: Final = frozenset({str, bytes, int, float, bool, complex, type(None)})


class SharedRecordError(FatalError):
    """A record that several operators have was changed; it stops the run whatever `on_error` says."""


class Shares:
    """The records that several operators have, the last 100,000 of them, with their fingerprints."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[Any, int, str]] = OrderedDict()

    def remember(self, records: Iterable[Any], giver: str) -> None:
        """Operator `giver` gives these to several others."""
        for record in records:
            if type(record) not in _UNCHANGING and id(record) not in self._known:
                # It is kept, so that no other record can have its id.
                self._known[id(record)] = (record, _fingerprint(record), giver)
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)

    def remembering(self, kernel: Kernel, giver: str) -> Kernel:
        """The kernel, whose results go to several others."""

        def run(items: list[Any]) -> list[Any]:
            results = kernel(items)
            self.remember(results, giver)
            return results

        return run

    def check(self, record: Any, when: str) -> None:
        """Raises SharedRecordError where it is one of them, and not as it was."""
        found = self._known.get(id(record))
        if found is not None and found[0] is record and _fingerprint(record) != found[1]:
            raise SharedRecordError(
                f"{when} a record that {found[2]!r} gives to several operators; change a copy of it instead"
            )

    def before(self, records: Iterable[Any]) -> None:
        """A call begins."""
        for record in records:
            self.check(record, "another operator had changed")

    def after(self, records: Iterable[Any]) -> None:
        """It has ended."""
        for record in records:
            self.check(record, "it changed")


class SharingOutputs(Outputs):
    """Outputs that tell what they give to several readers."""

    def __init__(
        self,
        outs: list[Writer],
        diverted: list[tuple[Faults, list[Writer]]],
        counters: Counters,
        shares: Shares,
    ) -> None:
        super().__init__(outs, diverted, counters)
        self._shares = shares if len(outs) > 1 else None
        self._giver = counters.name

    async def send(self, items: Batch) -> None:
        """See `Outputs`."""
        if self._shares is not None:
            self._shares.remember(items if isinstance(items, list) else items.values, self._giver)
        await super().send(items)


def guarded(plan: Compiled, shares: Shares) -> Compiled:
    """The plan with a comparison around each call; a process has copies of its own, and needs none."""
    ops = [replace(op, fn=_guarded(op, shares)) for op in plan.ops]
    stages = [
        replace(
            stage,
            head=stage.head and ops[stage.head.index],
            fused=[ops[op.index] for op in stage.fused],
        )
        for stage in plan.stages
    ]
    return replace(plan, ops=tuple(ops), stages=tuple(stages))


def _guarded(op: Op, shares: Shares) -> Any:
    fn, parallel = op.fn, op.parallel
    if isinstance(fn, Loop):
        return Loop(guarded(fn.body, shares), _call(fn.until, shares, _all))
    if isinstance(fn, Fold | WindowFold):
        return replace(fn, step=_call(fn.step, shares, _behind_the_state))
    if isinstance(fn, EventTime):
        return replace(fn, at=_call(fn.at, shares, _all))
    if op.node.verb not in ("map", "flatmap", "filter", "map_batch", "sink") or hasattr(fn, "write"):
        return fn
    given: Callable[[Any], Any] = _first if op.node.verb == "map_batch" else _all
    if parallel is not None:
        make = fn
        return make if parallel.kind == "process" else lambda: _call(make(), shares, given)
    wrappers = {"sync": _call, "async": _async_call, "parts": _generator}
    return wrappers[op.mode](fn, shares, given)


def _all(args: Any) -> Any:
    return args


def _first(args: Any) -> Any:
    return args[0]


def _behind_the_state(args: Any) -> Any:
    return args[1:]


def _call(fn: Callable[..., Any], shares: Shares, given: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        shares.before(given(args))
        result = fn(*args)
        shares.after(given(args))
        return result

    # A worker looks for the `setup` and `close` of an object.
    for name in ("setup", "close"):
        if hasattr(fn, name):
            setattr(call, name, getattr(fn, name))
    return call


def _async_call(fn: Callable[..., Any], shares: Shares, given: Callable[[Any], Any]) -> Callable[..., Any]:
    async def call(*args: Any) -> Any:
        shares.before(given(args))
        result = await fn(*args)
        shares.after(given(args))
        return result

    return call


def _generator(fn: Callable[..., Any], shares: Shares, given: Callable[[Any], Any]) -> Callable[..., Any]:
    async def call(*args: Any) -> AsyncIterator[Any]:
        shares.before(given(args))
        async for value in fn(*args):
            yield value
        shares.after(given(args))

    return call


def _fingerprint(record: Any) -> int:
    try:
        return hash(pickle.dumps(record, pickle.HIGHEST_PROTOCOL))
    except Exception:  # what cannot be pickled is compared by how it shows itself
        return hash(repr(record))
