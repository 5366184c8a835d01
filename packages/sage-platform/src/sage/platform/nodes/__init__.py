"""What this machine has, what it does at the moment, and who gets which cores."""

from __future__ import annotations

from sage.platform.nodes.cores import share_cores, usable_cores
from sage.platform.nodes.gpus import Gpu, GpuUse, Nvml, find_gpus, use_of_gpus
from sage.platform.nodes.inventory import Node, inventory
from sage.platform.nodes.labels import parse_labels
from sage.platform.nodes.usage import Meter, Utilisation, utilisation

__all__ = [
    "Gpu",
    "GpuUse",
    "Meter",
    "Node",
    "Nvml",
    "Utilisation",
    "find_gpus",
    "inventory",
    "parse_labels",
    "share_cores",
    "usable_cores",
    "use_of_gpus",
    "utilisation",
]
