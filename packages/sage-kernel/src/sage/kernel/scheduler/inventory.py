"""This machine's inventory as a node of the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sage.kernel.scheduler.types import Node

if TYPE_CHECKING:
    from sage.platform.nodes import Node as Inventory

__all__ = ["node_of"]


def node_of(name: str, found: Inventory, *, reserve: int = 0) -> Node:
    """Cores, devices and memory of that machine, but for `reserve` bytes of it kept for the rest.

    Counted is what the machine has, not what is free just now: what is placed there changes that.
    """
    return Node(
        name,
        cpus=len(found.cpus),
        memory=max(0, found.memory_total - reserve),
        gpus=tuple(gpu.memory_total for gpu in sorted(found.gpus, key=lambda gpu: gpu.index)),
        labels=dict(found.labels),
    )
