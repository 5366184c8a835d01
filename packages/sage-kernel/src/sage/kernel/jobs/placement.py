"""Which jobs run now: the scheduler's queue over the nodes that there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sage.common.errors import UsageError
from sage.common.jobs import JobResources
from sage.kernel.scheduler import (
    Change,
    Node,
    Placement,
    Policy,
    Queue,
    Resources,
    Unit,
    load_policy,
    require,
)
from sage.kernel.scheduler.snapshot import Snapshot

__all__ = ["Placed", "Placer", "unit_of"]


@dataclass(frozen=True, slots=True)
class Placed:
    """A job that starts now: where, on which devices of that node, and why there."""

    job: str
    node: str
    devices: tuple[int, ...]
    why: str


def unit_of(ident: str, name: str, resources: JobResources, arrival: float) -> Unit:
    """What the scheduler places for a job: its process. Raises UsageError for amounts that are none."""
    try:
        wanted = Resources(
            resources.cpu, resources.gpu, resources.memory, resources.gpu_memory or 0, resources.labels
        )
    except UsageError as error:
        error.message = f"Job {name}: {error.message}"
        error.param = "resources"
        raise
    return Unit(ident, wanted, arrival=arrival)


class Placer:
    """Jobs that wait for room, and those that have it. Each event tells who starts now."""

    def __init__(self, nodes: Iterable[Node], policy: Policy | None = None) -> None:
        self._nodes = tuple(nodes)
        self._queue = Queue(policy or load_policy("pack"), self._nodes)

    def check(self, unit: Unit) -> None:
        """Raises InfeasibleError, which names what is missing on which node, if it could never run here."""
        require(Snapshot(self._nodes), [unit], self._queue.policy)

    def submit(self, unit: Unit) -> list[Placed]:
        """It wants to run. Raises InfeasibleError, and OverloadedError when too many wait."""
        return _placed(self._queue.submit(unit))

    def release(self, job: str) -> list[Placed]:
        """It does not run or wait any more; one that did neither is passed over."""
        if job not in self._queue.placed and job not in self._queue.waiting:
            return []
        return _placed(self._queue.cancel(job))

    def why(self, job: str) -> str:
        """What it waits for; empty if it does not wait."""
        waits = self._queue.waiting.get(job)
        return "" if waits is None else waits.reason


def _placed(changes: Iterable[Change]) -> list[Placed]:
    """No node is ever lost here, so that nothing is withdrawn."""
    return [
        Placed(one.unit.id, one.node, one.devices, one.reason)
        for one in changes
        if isinstance(one, Placement)
    ]
