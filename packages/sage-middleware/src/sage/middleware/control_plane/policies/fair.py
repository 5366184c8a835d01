"""Tenants share the engines by weight."""

from __future__ import annotations

from collections.abc import Sequence

from sage.middleware.control_plane.disciplines import Accounts, Fifo
from sage.middleware.control_plane.disciplines import Fair as FairQueue
from sage.middleware.control_plane.policies.base import BasePolicy, least_loaded
from sage.middleware.control_plane.policy import Choice, Discipline, EngineView, PolicyOptions, Traits, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["Fair"]


class Fair(BasePolicy):
    """Tenants get engine-seconds in proportion to their weights, by deficit round robin, whatever they offer.

    It is right when tenants that do not know of each other share engines and one may flood them.
    It is not right for a single tenant, whose requests it leaves in arrival order however urgent they are.
    """

    name = "fair"
    traits = Traits(predicts=True)

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._accounts = Accounts(options.weights)

    def discipline(self) -> Discipline:
        """By tenants' credit, then by arrival."""
        return FairQueue(self._accounts, Fifo)

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The free engine with the smallest load."""
        return least_loaded(engines)

    def charge(self, record: Record, seconds: float) -> None:
        """The tenant pays what is predicted."""
        self._accounts.charge(record, seconds)

    def settle(self, record: Record, seconds: float) -> None:
        """The tenant pays, or gets back, what the prediction was wrong by."""
        self._accounts.settle(record, seconds)
