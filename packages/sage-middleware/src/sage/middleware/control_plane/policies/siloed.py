"""Each class has its own engines: what runs where nothing schedules."""

from __future__ import annotations

from collections.abc import Sequence

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.policies.base import BasePolicy
from sage.middleware.control_plane.policy import Choice, EngineView, PolicyOptions, Traits
from sage.middleware.control_plane.records import Record

__all__ = ["Siloed"]


class Siloed(BasePolicy):
    """The engines of a model are divided among the request classes, and each class takes its own in turn.

    It is right as the baseline: clients that send straight to engines, each of which queues by arrival.
    It is not right to serve with, as one class waits while the engines of another one are idle.
    """

    name = "siloed"
    traits = Traits(unbounded=True)

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._classes: dict[str, list[RequestClass]] = {}  # by model, in the order in which they were seen

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice:  # noqa: ARG002
        """The engine of its class that was used least recently, however much waits there."""
        job = record.job
        classes = self._classes.setdefault(job.model, [])
        if job.request_class not in classes:
            classes.append(job.request_class)
        place = classes.index(job.request_class)
        own = engines[place :: len(classes)] or [engines[place % len(engines)]]  # fewer engines than classes
        engine = min(own, key=_turn)
        return Choice(engine.name, f"next in turn of the {len(own)} engines for {job.request_class}")


def _turn(engine: EngineView) -> int:
    return engine.last_dispatch
