"""Supervise processes: start, probe, restart with backoff, drain, stop, limits, logs; no orphan ever."""

from __future__ import annotations

from sage.platform.service.limits import ResourceLimits
from sage.platform.service.logs import Rotation
from sage.platform.service.restart import RestartPolicy
from sage.platform.service.spec import Drain, ServiceSpec, ServiceState, ServiceStatus
from sage.platform.service.supervisor import Supervisor

__all__ = [
    "Drain",
    "ResourceLimits",
    "RestartPolicy",
    "Rotation",
    "ServiceSpec",
    "ServiceState",
    "ServiceStatus",
    "Supervisor",
]
