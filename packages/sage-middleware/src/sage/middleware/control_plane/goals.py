"""What each class of requests should meet, as configured."""

from __future__ import annotations

from typing import Final

from sage.common.config import ControlPlaneConfig, SloConfig
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.types import Slo

__all__ = ["DEFAULT_SLOS", "slos_of"]


def slos_of(config: ControlPlaneConfig) -> dict[RequestClass, Slo]:
    """The goals that a configuration sets."""
    return {one: _slo(getattr(config.slos, one.value)) for one in RequestClass}


def _slo(config: SloConfig) -> Slo:
    return Slo(config.ttft_s, config.tpot_s, config.total_s)


DEFAULT_SLOS: Final = slos_of(ControlPlaneConfig())
