"""Shortest job first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sage.middleware.control_plane.disciplines import Keyed
from sage.middleware.control_plane.policies.base import BasePolicy, least_loaded
from sage.middleware.control_plane.policy import Choice, Discipline, EngineView, Traits, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["Sjf"]

AGING: Final = 0.1  # predicted engine-seconds that a second of waiting makes good for


class Sjf(BasePolicy):
    """The request with the fewest predicted engine-seconds goes first, which keeps the mean wait short.

    It is right for mixed sizes whose cost is predicted well and who all count the same.
    It is not right when long requests have goals too, as they wait for ten times their cost under overload.
    """

    name = "sjf"
    traits = Traits(predicts=True)

    def discipline(self) -> Discipline:
        """By predicted engine-seconds less a tenth of the time waited."""
        return Keyed(_aged_cost)

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The free engine with the smallest load."""
        return least_loaded(engines)


def _aged_cost(record: Record) -> float:
    return record.cost + AGING * record.arrived
