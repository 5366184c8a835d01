"""A store of checkpoints as a run or a job uses it: off the event loop, and for one plan."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sage.kernel.compile import Compiled
from sage.kernel.options import Checkpoints
from sage.kernel.plan import PlanError
from sage.kernel.runtime.archive import Archive, Restored
from sage.kernel.runtime.manifest import Manifest, need_fit, shape_of
from sage.kernel.runtime.sources import once_only
from sage.kernel.runtime.store import store_of

__all__ = ["Keeper", "need_checkpointable", "whatever_comes"]

T = TypeVar("T")


class Keeper:
    """What those who take checkpoints have in common."""

    def __init__(self, plan: Compiled, options: Checkpoints) -> None:
        need_checkpointable(plan)
        self._store = store_of(options)
        self._flow = plan.name
        self._shape = shape_of(plan)
        self._every = options.every
        self._archive = Archive(self._store, options.keep)
        self._thread = ThreadPoolExecutor(1, "sage-checkpoints")
        self._lock = asyncio.Lock()  # one checkpoint at a time
        self.epoch = 0
        """That of the last checkpoint that is complete; 0 = none yet."""
        self.resumed = 0
        self.warnings: tuple[str, ...] = ()

    async def _newest(self) -> Restored | None:
        """Open the store; the newest sound checkpoint in it. Raises `CheckpointError` if it does not fit."""
        await self._do(self._store.open)
        found, warnings = await self._do(self._archive.newest)
        self.warnings = tuple(warnings)
        if found is not None:
            need_fit(found.manifest, self._flow, self._shape)
            self.epoch = self.resumed = found.manifest.epoch
        return found

    def _manifest(self, epoch: int, prepared: dict[str, Any], *, done: bool = False) -> Manifest:
        return Manifest(self._flow, epoch, done, self._shape, (), prepared)

    async def _close_store(self) -> None:
        await self._do(self._store.close)
        self._thread.shutdown(wait=False)

    async def _do(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


async def whatever_comes(work: Coroutine[Any, Any, None]) -> None:
    """Do it to its end, also when it is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def need_checkpointable(plan: Compiled) -> None:
    """Raise `PlanError` with all that keeps checkpoints of this plan from being taken."""
    problems = [*_problems(plan)]
    if problems:
        raise PlanError(plan.name, problems)


def _problems(plan: Compiled) -> Iterable[str]:
    owners: dict[int, str] = {}
    for op in plan.ops:
        if op.node.verb == "source" and (problem := once_only(op)):
            yield f"checkpoints: {problem}"
        elif op.node.verb == "sink" and hasattr(op.fn, "prepare"):
            other = owners.setdefault(id(op.fn), op.node.name)
            if other != op.node.name:
                yield f"checkpoints: sinks {other!r} and {op.node.name!r} are one object: make one for each"
