"""What a node does at the moment."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sage.platform.cgroup import read_limits
from sage.platform.nodes.gpus import GpuUse, Nvml, use_of_gpus
from sage.platform.nodes.inventory import Node, memory

__all__ = ["CpuTimes", "Meter", "Utilisation", "busy_percent", "utilisation"]


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since the start of the machine that one core was busy, and all seconds."""

    busy: float
    total: float


@dataclass(frozen=True, slots=True)
class Utilisation:
    """One node at one moment. Sizes in bytes; `load` is the mean of runnable tasks over 1, 5, 15 minutes.

    `cores` is percent by core, each of the whole machine's work on it. `gpu_note` says why `gpus` is empty.
    """

    cores: Mapping[int, float]
    load: tuple[float, float, float]
    memory_used: int
    memory_total: int
    disk_used: int
    disk_total: int
    gpus: tuple[GpuUse, ...]
    gpu_note: str


class Meter:
    """Measures the cores from one reading to the next; the first reading counts from when it was made."""

    def __init__(self, node: Node, *, nvml: Nvml | None = None) -> None:
        self._node = node
        self._nvml = nvml
        self._before = _cpu_times()

    def read(self) -> Utilisation:
        """Look now. Does not wait, and does not raise when a part of the machine cannot be asked."""
        now = _cpu_times()
        cores = busy_percent(self._before, now)
        self._before = now
        memory_total, memory_available = memory(read_limits())
        disk = shutil.disk_usage(self._node.disk)
        gpus, note = use_of_gpus(self._nvml)
        return Utilisation(
            cores={core: cores[core] for core in self._node.cpus if core in cores},
            load=os.getloadavg(),
            memory_used=memory_total - memory_available,
            memory_total=memory_total,
            disk_used=disk.used,
            disk_total=disk.total,
            gpus=gpus,
            gpu_note=note,
        )


def utilisation(node: Node, *, over: float = 0.1, nvml: Nvml | None = None) -> Utilisation:
    """What the node does, the cores measured for `over` seconds, for which it waits."""
    meter = Meter(node, nvml=nvml)
    time.sleep(over)
    return meter.read()


def busy_percent(before: Mapping[int, CpuTimes], now: Mapping[int, CpuTimes]) -> dict[int, float]:
    """By core: percent of the time between two readings, 0 for no time; a core that is new is left out.

    The kernel's counters may step back a little, so the result is held between 0 and 100.
    """
    shares: dict[int, float] = {}
    for core, last in now.items():
        if core in before:
            span = last.total - before[core].total
            busy = last.busy - before[core].busy
            shares[core] = min(100.0, max(0.0, 100.0 * busy / span)) if span > 0 else 0.0
    return shares


def _cpu_times() -> dict[int, CpuTimes]:
    import psutil  # imported here: reading the types needs no system library

    times: dict[int, CpuTimes] = {}
    for core, spent in enumerate(psutil.cpu_times(percpu=True)):
        fields = spent._asdict()
        # What guests ran is in `user` and `nice` already.
        total = sum(value for name, value in fields.items() if not name.startswith("guest"))
        times[core] = CpuTimes(total - fields["idle"] - fields.get("iowait", 0.0), total)
    return times
