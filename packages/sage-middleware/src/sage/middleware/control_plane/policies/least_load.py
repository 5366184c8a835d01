"""The engine with the least to do."""

from __future__ import annotations

from collections.abc import Sequence

from sage.middleware.control_plane.policies.base import BasePolicy, least_loaded
from sage.middleware.control_plane.policy import Choice, EngineView, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["LeastLoad"]


class LeastLoad(BasePolicy):
    """Each request goes to the free engine with the fewest running requests and tokens for its size.

    It is right when requests differ in length and engines in size, and nothing is known of their speed.
    It is not right when prompts share prefixes or goals differ between requests, which it does not look at.
    """

    name = "least_load"

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The free engine with the smallest load, the least recently used among equals."""
        return least_loaded(engines)
