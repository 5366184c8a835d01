"""Supervise processes: start, probe, restart with backoff, stop, logs; no orphan ever."""

from __future__ import annotations

from sage.platform.service.restart import RestartPolicy
from sage.platform.service.spec import ServiceSpec, ServiceState, ServiceStatus
from sage.platform.service.supervisor import Supervisor

__all__ = ["RestartPolicy", "ServiceSpec", "ServiceState", "ServiceStatus", "Supervisor"]
