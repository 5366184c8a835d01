"""What this process's control group allows it (Linux, versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Limits", "read_limits"]

_UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number near 2**63


@dataclass(frozen=True, slots=True)
class Limits:
    """Cores as a fraction and bytes; None = no limit. `memory_left` is what the tightest group has left."""

    cpus: float | None = None
    memory: int | None = None
    memory_left: int | None = None


def read_limits(root: Path = Path("/")) -> Limits:
    """The tightest limits of the group and all groups above it; no limits where there are no groups."""
    cpus: list[float] = []
    memory: list[tuple[int, int]] = []
    for controller, folder in _folders(root):
        if controller in ("", "cpu"):
            quota = _cpu_quota(folder)
            cpus += [] if quota is None else [quota]
        if controller in ("", "memory"):
            limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
            used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
            if limit is not None and limit < _UNLIMITED:
                memory.append((limit, max(0, limit - (used or 0))))
    return Limits(
        cpus=min(cpus, default=None),
        memory=min((limit for limit, _ in memory), default=None),
        memory_left=min((left for _, left in memory), default=None),
    )


def _folders(root: Path) -> Iterator[tuple[str, Path]]:
    """(controller, folder) from the process's group up to the top; controller "" is version 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
            # In a container the path may name a place that only the host can see; then only the top counts.
            own = top / path.lstrip("/")
            folder = own if ".." not in own.parts and own.is_dir() else top
            while folder != top:
                yield controller, folder
                folder = folder.parent
            yield controller, top


def _cpu_quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        limit, span = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        return limit / span if limit is not None and limit > 0 and span else None
    return None if quota == "max" else int(quota) / int(period)


def _number(*candidates: Path) -> int | None:
    """The first candidate that can be read as a whole number."""
    for path in candidates:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue
    return None
