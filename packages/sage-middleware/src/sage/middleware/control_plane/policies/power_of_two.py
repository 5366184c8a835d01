"""The better one of two drawn by chance."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from sage.middleware.control_plane.policies.base import BasePolicy, load_of
from sage.middleware.control_plane.policy import Choice, EngineView, PolicyOptions, Wait
from sage.middleware.control_plane.records import Record

__all__ = ["PowerOfTwo"]


class PowerOfTwo(BasePolicy):
    """Two free engines are drawn by chance and the less loaded one gets the request (Mitzenmacher 2001).

    It is right when several gateways place on the same engines, as they do not all rush to the same one.
    It is not right for a single gateway with few engines, which can afford to look at all of them.
    """

    name = "power_of_two"

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._random = Random(options.seed)  # noqa: S311  (nothing secret hangs on it)

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait:  # noqa: ARG002
        """The less loaded of two free engines, the least recently used among equals."""
        free = [engine for engine in engines if engine.free > 0]
        if not free:
            return Wait()
        if len(free) == 1:
            return Choice(free[0].name, "the only free engine")
        one, other = self._random.sample(free, 2)
        if (load_of(other), other.last_dispatch) < (load_of(one), one.last_dispatch):
            one, other = other, one
        return Choice(
            one.name,
            f"less loaded of two drawn: {one.running}/{one.max_running} running, "
            f"{other.name} has {other.running}/{other.max_running}",
        )
