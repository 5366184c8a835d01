"""The autoscaler's eyes and ears: what each configured engine is asked for, read from table and lanes."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from math import inf
from typing import Final

from sage.middleware.control_plane.autoscale import Autoscaler, DrainEngine
from sage.middleware.control_plane.engine_table import EngineLoad, EngineTable
from sage.middleware.control_plane.fleet import Demand, Replica
from sage.middleware.control_plane.lanes import Lane, Lanes
from sage.middleware.control_plane.options import CoreOptions
from sage.middleware.control_plane.types import Job, StartEngine

__all__ = ["Scaling"]

SAMPLE: Final = 256  # waiting requests of a lane that are looked at


class Scaling:
    """Feeds an `Autoscaler`. Without templates it wants nothing."""

    def __init__(self, options: CoreOptions, engines: EngineTable, lanes: Lanes) -> None:
        self._templates = {one.name: one for one in options.templates}
        self._autoscaler = Autoscaler(options.templates, options.device_cores, options.autoscale)
        self._engines = engines
        self._lanes = lanes
        self._shed: Counter[str] = Counter()

    def shed(self, job: Job) -> None:
        """Such a request was refused for lack of capacity."""
        if self._templates:
            self._shed.update(self._serving(job))

    def held(self, job: Job, deadline: float | None, now: float) -> float | None:
        """What a request that no engine can take now should do: 0 = wait for one that starts.

        Else the seconds after which to come again; None when nothing is going to start. An engine that is
        made anew is waited for as long as anything may wait.
        """
        if any(load.returning and load.can(job) for load in self._engines):
            return 0.0
        waits = [self._autoscaler.retry_after(name, deadline, now) for name in self._serving(job)]
        if not waits:
            return None
        return min(0.0 if wait is None else wait for wait in waits)

    def decide(self, now: float) -> list[StartEngine | DrainEngine]:
        """What to start and to drain."""
        demands = self._demands(now)
        self._shed.clear()
        return self._autoscaler.decide(demands, now)

    def _serving(self, job: Job) -> list[str]:
        """The templates of engines that are made for such a job."""
        names = {load.spec.template or load.name for load in self._engines if load.can(job)}
        return [name for name in names if name in self._templates]

    def _demands(self, now: float) -> list[Demand]:
        replicas: dict[str, list[EngineLoad]] = {name: [] for name in self._templates}
        for load in self._engines:
            name = load.spec.template or load.name
            if name in replicas:
                replicas[name].append(load)
        lanes: dict[str, list[Lane]] = {name: [] for name in self._templates}
        for lane in self._lanes.busy():
            for name in self._serving(lane.job):
                lanes[name].append(lane)
        return [self._demand(name, replicas[name], lanes[name], now) for name in self._templates]

    def _demand(self, name: str, loads: list[EngineLoad], lanes: list[Lane], now: float) -> Demand:
        ready = sum(load.state == "ready" for load in loads)
        queued = sum(len(lane.records) for lane in lanes)
        backlog = sum(lane.ahead for lane in lanes) / max(1, ready)
        in_time, goal = _prospects(lanes, backlog, now)
        idle = queued == 0 and not any(load.running for load in loads)
        return Demand(
            template=name,
            replicas=tuple(Replica(load.name, load.state, load.running, load.max_running) for load in loads),
            queued=queued,
            backlog_s=backlog,
            goal_s=goal,
            attainment=in_time,
            shed=self._shed[name],
            idle_since=max((load.idle_since for load in loads), default=0.0) if idle else None,
        )


def _prospects(lanes: list[Lane], backlog: float, now: float) -> tuple[float, float]:
    """Predicted share of what waits that will be in time, served evenly by arrival; and the tightest goal."""
    met = looked = 0
    goal = inf
    for lane in lanes:
        count = min(SAMPLE, len(lane.records))
        for at, record in enumerate(islice(lane.records.values(), SAMPLE)):
            looked += 1
            met += now + backlog * (at + 1) / count + record.quick <= record.due
            goal = min(goal, record.due - record.arrived)
    return met / looked if looked else 1.0, goal
