"""The keyed fold as a kernel, with its state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Any

from sage.kernel.plan import Fold
from sage.kernel.runtime.kernels import Faults

__all__ = ["Scan"]


class Scan:
    """`Stateful`: the states that changed since the last checkpoint, and behind them those that did not."""

    def __init__(self, fold: Fold, faults: Faults) -> None:
        self._fold = fold
        self._faults = faults
        self._fresh: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}

    def run(self, items: list[Any]) -> list[Any]:
        """One result per item; a step that fails ends the run."""
        out: list[Any] = []
        key, step, first, fresh = self._fold.key, self._fold.step, self._first, self._fresh
        append, get = out.append, fresh.get
        rest, item = iter(items), None
        try:
            for item in rest:
                k = key(item)
                state = get(k, fresh)
                # The dictionary itself stands for "not there": any other value may be a state.
                fresh[k], result = step(first(k) if state is fresh else state, item)
                append(result)
        except Exception as error:
            position = self._faults.counters.items_in + len(items) - length_hint(rest) - 1
            self._faults.settle(item, error, position)
        return out

    def begin(self, states: Iterable[tuple[Any, Any]], plain: None, /) -> None:  # noqa: ARG002
        """See `Stateful`."""
        self._fresh, self._old = {}, dict(states)

    def changes(self) -> Iterator[tuple[Any, Any]]:
        """See `Stateful`."""
        changed, self._fresh = self._fresh, {}
        self._old.update(changed)
        return iter(changed.items())

    def plain(self) -> None:
        """It has no other state."""

    def _first(self, key: Any) -> Any:
        state = self._old.get(key, self)
        return self._fold.init() if state is self else state
