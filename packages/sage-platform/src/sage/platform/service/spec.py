"""What to supervise, and what the supervisor says about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sage.platform.service.limits import ResourceLimits
from sage.platform.service.logs import Rotation

__all__ = ["Drain", "ServiceSpec", "ServiceState", "ServiceStatus"]

ServiceState = Literal["starting", "ready", "degraded", "draining", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Drain:
    """What is awaited before SIGTERM when a service that runs is stopped, for `timeout` seconds at most.

    `finish` gives the service no new work and returns when it has none left. One that raises, or takes too
    long, is told in the status and does not keep the service alive.
    """

    finish: Callable[[], Awaitable[None]]
    timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One process to supervise. `probe_url` answers 2xx when the service is ready.

    With an empty `probe_url` it counts as ready as soon as it runs. `max_restarts` is counted within the
    window of the supervisor's `RestartPolicy`.
    """

    name: str
    argv: tuple[str, ...]
    probe_url: str
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)  # added to the parent's environment
    cores: tuple[int, ...] = ()  # CPU affinity; empty = not pinned
    start_timeout: float = 300.0
    stop_timeout: float = 10.0
    max_restarts: int = 5
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    rotation: Rotation = field(default_factory=Rotation)
    drain: Drain | None = None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service at one moment.

    `starting` covers the wait before a restart too; `degraded` means that it runs and does not answer its
    probe; `draining`, that it is to stop and finishes its work. `restarts` counts the automatic ones since
    `Supervisor.start`; `detail` says why, in words.
    """

    name: str
    state: ServiceState
    pid: int | None = None
    restarts: int = 0
    detail: str = ""
