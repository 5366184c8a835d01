"""How single requests reach the workers of a stage: together, as many as wait, and each for itself."""

from __future__ import annotations

from typing import Any, Final

from sage.kernel.options import Batch
from sage.kernel.runtime.batcher import Batcher
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.replicas.account import enter
from sage.kernel.runtime.replicas.bench import Done
from sage.kernel.runtime.replicas.pool import Pool

__all__ = ["Entrance"]

TOGETHER: Final = Batch(64)


class Entrance:
    """`await entrance(item)` gives what the operators on the workers make of one item."""

    def __init__(self, pool: Pool, faults: list[Faults], batch: Batch | None) -> None:
        self._pool = pool
        self._faults = faults
        self._taken = 0
        self.batcher = Batcher(self._call, batch or TOGETHER, len(pool))

    async def __call__(self, item: Any) -> list[Any]:
        """The results; raises what an operator raised, and what stops the request."""
        counters, position = self._faults[0].counters, self._taken
        self._taken += 1
        counters.in_flight += 1
        try:
            done: Done | Exception = await self.batcher(item)
        finally:
            counters.in_flight -= 1
        if isinstance(done, Exception):
            self._faults[0].settle(item, done, position)
            counters.items_in += 1
            return []
        values: list[Any] = enter(done, self._faults, position)
        return values

    async def _call(self, items: list[Any]) -> list[Done | Exception]:
        results: list[Done | Exception] = []
        for piece in await self._pool.call(items):
            lost = [piece.error] * (piece.end - piece.start) if piece.error else []
            results += piece.done or lost
        return results
