"""What to supervise, and what the supervisor says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["ServiceSpec", "ServiceState", "ServiceStatus"]

ServiceState = Literal["starting", "ready", "degraded", "stopped", "failed"]


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


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service at one moment.

    `starting` covers the wait before a restart too; `degraded` means that it runs and does not answer its
    probe. `restarts` counts the automatic ones since `Supervisor.start`; `detail` says why, in words.
    """

    name: str
    state: ServiceState
    pid: int | None = None
    restarts: int = 0
    detail: str = ""
