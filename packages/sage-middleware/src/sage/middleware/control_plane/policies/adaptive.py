"""Simple while there is room, by goals while there is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from sage.middleware.control_plane.policies.base import BasePolicy, by_due, least_loaded
from sage.middleware.control_plane.policies.slo import Slo
from sage.middleware.control_plane.policy import (
    Choice,
    Discipline,
    EngineView,
    PolicyOptions,
    Shed,
    Traits,
    Wait,
)
from sage.middleware.control_plane.records import Record

__all__ = ["Adaptive"]

ENTER: Final = 0.5  # pressure above which goals decide
LEAVE: Final = 0.1  # pressure below which they no longer do
DWELL_S: Final = 5.0  # how long it must be that low
PATIENCE_S: Final = 5.0  # goal that waiting is measured against where a request has none


class _Mode(msgspec.Struct):
    """How one model's requests are served, and when the pressure was last above `LEAVE`."""

    pressed: bool = False
    high: float = 0.0


class Adaptive(BasePolicy):
    """It is `least_load` while little waits and `slo` while the backlog eats up the goals, with hysteresis.

    It is right when bursts come on top of a load that fits, and predictions should matter only in the bursts.
    It is not right when the load is always high or always low, where one of the two alone does the same.
    """

    name = "adaptive"
    traits = Traits(predicts=True)

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._slo = Slo(options)
        self._modes: dict[str, _Mode] = {}

    def discipline(self) -> Discipline:
        """Earliest due first, in both modes: while nothing waits every order is the same."""
        return by_due()

    def admit(self, record: Record, engines: Sequence[EngineView], ahead: float, now: float) -> Shed | None:
        """Refuse only under pressure."""
        if self._pressed(record, ahead / len(engines), now):
            return self._slo.admit(record, engines, ahead, now)
        return None

    def choose(self, record: Record, engines: Sequence[EngineView], now: float) -> Choice | Wait | Shed:
        """As `slo` under pressure, else as `least_load`."""
        if self._pressed(record, now - record.queued, now):
            return self._slo.choose(record, engines, now)
        return least_loaded(engines)

    def _pressed(self, record: Record, waiting: float, now: float) -> bool:
        """Whether goals decide. The pressure is the share of a request's goal that `waiting` seconds take."""
        mode = self._modes.get(record.job.model)
        if mode is None:
            mode = self._modes[record.job.model] = _Mode()
        pressure = waiting / max(1e-3, min(record.due - record.arrived, PATIENCE_S))
        if pressure > (LEAVE if mode.pressed else ENTER):
            mode.pressed, mode.high = True, now
        elif mode.pressed and now - mode.high >= DWELL_S:
            mode.pressed = False
        return mode.pressed
