"""Earliest deadline first."""

from __future__ import annotations

from collections.abc import Sequence

from sage.middleware.control_plane.policies.base import BasePolicy, by_due, least_loaded
from sage.middleware.control_plane.policy import Choice, Discipline, EngineView, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["Edf"]


class Edf(BasePolicy):
    """The request that is due first goes first, which meets all goals on one engine if any order can.

    It is right while the load fits the capacity and goals differ between requests.
    It is not right under overload, where it spends the engines on what is late already and all become late.
    """

    name = "edf"

    def discipline(self) -> Discipline:
        """Earliest due first."""
        return by_due()

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The free engine with the smallest load."""
        return least_loaded(engines)
