"""What a core is made with: bounds, goals, tenants, budgets."""

from __future__ import annotations

import msgspec

from sage.common.config import ControlPlaneConfig
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.fleet import AutoscaleOptions, Template
from sage.middleware.control_plane.goals import DEFAULT_SLOS, slos_of
from sage.middleware.control_plane.policy import PolicyOptions
from sage.middleware.control_plane.types import Slo

__all__ = ["CoreOptions", "Limits", "policy_options"]


class Limits(msgspec.Struct, frozen=True):
    """Bounds of each class's queue, and of what is sent a second time."""

    queue_max_requests: int = 1024
    queue_max_bytes: int = 256 * 1024 * 1024
    queue_max_wait_s: float = 30.0
    max_attempts: int = 2
    retry_share: float = 0.1  # of the traffic
    hedge_share: float = 0.02


class CoreOptions(msgspec.Struct, frozen=True):
    """Everything that a core is configured with beside its policy."""

    limits: Limits = Limits()
    slos: dict[RequestClass, Slo] = msgspec.field(default_factory=lambda: dict(DEFAULT_SLOS))
    history: int = 4096  # records that are kept
    details_per_s: float = 20.0  # decisions whose candidates are kept
    templates: tuple[Template, ...] = ()  # engines that may be started and stopped
    device_cores: dict[str, int] = {}  # cores of each group; templates share them
    autoscale: AutoscaleOptions = AutoscaleOptions()
    seed: int = 0  # of what refused clients are told: when to come again is spread

    @classmethod
    def of(cls, config: ControlPlaneConfig) -> CoreOptions:
        """The options that a configuration asks for."""
        limits = Limits(
            config.queue_max_requests,
            config.queue_max_bytes,
            config.queue_max_wait_s,
            retry_share=config.retry_share,
            hedge_share=config.hedge_share,
        )
        return cls(limits, slos_of(config), config.decision_history)


def policy_options(config: ControlPlaneConfig) -> PolicyOptions:
    """What policies are made with."""
    return PolicyOptions(
        weights={one.name: one.weight for one in config.tenants},
        slos=slos_of(config),
        best_effort=frozenset(one.name for one in config.tenants if one.best_effort),
        exploration=config.exploration,
    )
