"""What this machine has, as far as this process may use it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from sage.platform.cgroup import Limits, read_limits
from sage.platform.nodes.cores import usable_cores
from sage.platform.nodes.gpus import Gpu, Nvml, find_gpus
from sage.platform.nodes.labels import LABELS, check_labels, parse_labels

__all__ = ["Node", "existing", "inventory", "memory"]


@dataclass(frozen=True, slots=True)
class Node:
    """One machine at one moment, as far as this process may use it. Sizes in bytes.

    `disk` is a folder on the disk that `disk_free` speaks of. `gpu_note` says why `gpus` is empty, and is
    empty when there are some.
    """

    cpus: tuple[int, ...]
    memory_total: int
    memory_available: int
    disk: Path
    disk_free: int
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def inventory(
    path: Path | None = None, *, labels: Mapping[str, str] | None = None, nvml: Nvml | None = None
) -> Node:
    """Look at this machine; `disk_free` is that of the file system which holds `path` (default: here).

    `labels` are the configuration's; those of the environment (`SAGE_NODE_LABELS`) win, and `os` and `arch`
    are always there. `nvml` is asked for the GPUs (default: the real library). Raises ConfigError for labels
    that are none.
    """
    limits = read_limits()
    memory_total, memory_available = memory(limits)
    gpus, note = find_gpus(nvml)
    given = {**check_labels(labels or {}, "the configuration"), **parse_labels(os.environ.get(LABELS, ""))}
    fixed = {"os": platform.system().lower(), "arch": platform.machine()}
    return Node(
        cpus=usable_cores(_affinity(), limits),
        memory_total=memory_total,
        memory_available=memory_available,
        disk=existing(path or Path()),
        disk_free=shutil.disk_usage(existing(path or Path())).free,
        gpus=gpus,
        gpu_note=note,
        labels=MappingProxyType({**given, **fixed}),
    )


def memory(limits: Limits) -> tuple[int, int]:
    """Bytes that this process could use in all, and bytes that are left of them."""
    import psutil  # imported here: reading the types needs no system library

    machine = psutil.virtual_memory()
    left = machine.available if limits.memory_left is None else limits.memory_left
    return min(machine.total, limits.memory or machine.total), min(machine.available, left)


def _affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return list(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def existing(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
