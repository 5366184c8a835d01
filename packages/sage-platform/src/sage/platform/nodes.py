"""What this machine has, and who gets which cores."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from sage.common.errors import UsageError
from sage.platform.cgroup import Limits, read_limits

__all__ = ["Gpu", "Node", "inventory", "share_cores", "usable_cores"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it; memory in bytes."""

    index: int
    name: str
    memory_total: int
    memory_free: int


@dataclass(frozen=True, slots=True)
class Node:
    """One machine at one moment, as far as this process may use it. Sizes in bytes.

    `gpu_note` says why `gpus` is empty; it is empty itself when there are some.
    """

    cpus: tuple[int, ...]
    memory_total: int
    memory_available: int
    disk_free: int
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def inventory(path: Path | None = None) -> Node:
    """Look at this machine; `disk_free` is that of the file system which holds `path` (default: here)."""
    import psutil  # imported here: reading the types needs no system library

    limits = read_limits()
    memory = psutil.virtual_memory()
    gpus, note = _gpus()
    left = memory.available if limits.memory_left is None else limits.memory_left
    labels = {"os": platform.system().lower(), "arch": platform.machine()}
    return Node(
        cpus=usable_cores(_affinity(), limits),
        memory_total=min(memory.total, limits.memory or memory.total),
        memory_available=min(memory.available, left),
        disk_free=shutil.disk_usage(_existing(path or Path())).free,
        gpus=gpus,
        gpu_note=note,
        labels=MappingProxyType(labels),
    )


def usable_cores(affinity: Sequence[int], limits: Limits) -> tuple[int, ...]:
    """The cores of `affinity`, and no more of them than the quota can keep busy (at least one)."""
    cores = sorted(affinity)
    if limits.cpus is None:
        return tuple(cores)
    return tuple(cores[: max(1, math.ceil(limits.cpus))])


def share_cores(cores: Sequence[int], demands: Sequence[int]) -> list[tuple[int, ...]]:
    """Cores for each demand, in order. A demand is a number of cores; 0 asks for an even share of the rest.

    Demands that fit are disjoint. One that finds too few free cores gets its number (at most all) from those
    with the fewest users, and even shares without a core of their own go round. Nobody gets none.
    Raises UsageError without cores or with a negative demand.
    """
    pool = list(dict.fromkeys(cores))
    if not pool:
        raise UsageError("There are no cores to share.")
    if any(demand < 0 for demand in demands):
        raise UsageError(f"A demand for cores is below 0: {list(demands)}; valid is 0 (even share) or more.")
    users = dict.fromkeys(pool, 0)
    shares: dict[int, tuple[int, ...]] = {}
    for place, demand in enumerate(demands):
        if demand:
            shares[place] = _least_used(users, demand)
    even = [place for place, demand in enumerate(demands) if not demand]
    free = [core for core in pool if not users[core]]
    if len(free) >= len(even):
        shares.update(zip(even, _slices(free, len(even)), strict=True))
    else:  # keep what was asked for to those who asked, as long as one core is left for the others
        rest = dict.fromkeys(free, 0) or users
        shares.update((place, _least_used(rest, 1)) for place in even)
    return [shares[place] for place in range(len(demands))]


def _least_used(users: dict[int, int], count: int) -> tuple[int, ...]:
    """Take the `count` cores with the fewest users, earlier ones first, and count them in `users`."""
    taken = sorted(users, key=users.__getitem__)[:count]
    for core in taken:
        users[core] += 1
    return tuple(sorted(taken))


def _slices(cores: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Consecutive slices whose sizes differ by one at most, the larger ones first."""
    if not parts:
        return []
    size, extra = divmod(len(cores), parts)
    bounds = [place * size + min(place, extra) for place in range(parts + 1)]
    return [tuple(cores[low:high]) for low, high in pairwise(bounds)]


def _affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return list(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _existing(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs, or none and why."""
    try:
        import pynvml
    except ImportError:
        return (), "none: the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        missing = isinstance(error, pynvml.NVMLError_LibraryNotFound)
        return (), "none: NVML not found" if missing else f"none: {error}"
    try:
        found = tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return (), f"none: {error}"
    finally:
        pynvml.nvmlShutdown()
    return found, "" if found else "none: NVML reports no device"


def _gpu(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(index, str(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free))
