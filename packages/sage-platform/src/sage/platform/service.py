"""Supervise a process: start, probe, restart with backoff, stop, logs; no orphan ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ServiceSpec"]


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One process to supervise. `probe_url` answers 2xx when the service is ready."""

    name: str
    argv: tuple[str, ...]
    probe_url: str
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)  # added to the parent's environment
    cores: tuple[int, ...] = ()  # CPU affinity; empty = not pinned
    start_timeout: float = 300.0
    stop_timeout: float = 10.0
    max_restarts: int = 5
