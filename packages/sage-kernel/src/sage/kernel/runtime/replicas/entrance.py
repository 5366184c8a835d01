"""How single requests reach the workers of a stage: together, as many as wait, and each for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sage.kernel.compile import Op
from sage.kernel.options import Batch
from sage.kernel.runtime.batcher import Batcher
from sage.kernel.runtime.kernels import Faults
from sage.kernel.runtime.replicas.account import enter
from sage.kernel.runtime.replicas.bench import Done
from sage.kernel.runtime.replicas.pool import Pool
from sage.kernel.runtime.replicas.scaling import Load

__all__ = ["Entrance"]

TOGETHER: Final = Batch(64)


class Entrance:
    """`await entrance(item)` gives what the operators on the workers make of one item.

    `pools` has that of `head` by its name, once it is open.
    """

    def __init__(self, head: Op, pools: Mapping[str, Pool], faults: list[Faults]) -> None:
        assert head.parallel is not None, "the operators behind an entrance are on workers"
        self._name = head.node.name
        self._pools = pools
        self._faults = faults
        self._taken = 0
        self._scale = head.node.provision.scale
        most = self._scale.max if self._scale else head.parallel.n
        self.batcher = Batcher(self._call, head.node.batch or TOGETHER, most)

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

    async def keep_scaled(self) -> None:
        """Have as many workers as the requests ask for, where the flow lets them scale."""
        if self._scale is not None:
            await self._pools[self._name].keep_scaled(self._scale, self._load)

    def _load(self) -> Load:
        pool = self._pools[self._name]
        queued = self.batcher.queued + pool.waiting
        return Load(queued, self._faults[0].counters.items_in, pool.working)

    async def _call(self, items: list[Any]) -> list[Done | Exception]:
        results: list[Done | Exception] = []
        for piece in await self._pools[self._name].call(items):
            lost = [piece.error] * (piece.end - piece.start) if piece.error else []
            results += piece.done or lost
        return results
