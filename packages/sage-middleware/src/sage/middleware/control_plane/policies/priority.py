"""Interactive before bulk, then by the caller's priority."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.disciplines import Keyed
from sage.middleware.control_plane.policies.base import BasePolicy, least_loaded
from sage.middleware.control_plane.policy import Choice, Discipline, EngineView, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["Priority"]

PATIENT: Final = frozenset((RequestClass.BATCH, RequestClass.EMBED_BULK))
CLASS_S: Final = 20.0  # seconds that a patient class lets others pass
STEP_S: Final = 0.95  # seconds of head start for one step of priority
STEPS: Final = 10  # above and below zero; together less than a class, which goes first


class Priority(BasePolicy):
    """Chats and single embeddings go before bulk and batch work, and within those by priority, with aging.

    It is right when some callers matter more than others and say so.
    It is not right when everything is urgent, or when goals in seconds are known, which `edf` and `slo` use.
    """

    name = "priority"

    def discipline(self) -> Discipline:
        """By arrival, put off or brought forward by seconds: so that what has waited long enough is first."""
        return Keyed(_urgency)

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The free engine with the smallest load."""
        return least_loaded(engines)


def _urgency(record: Record) -> float:
    job = record.job
    put_off = CLASS_S if job.request_class in PATIENT else 0.0
    return record.arrived + put_off - STEP_S * max(-STEPS, min(STEPS, job.priority))
