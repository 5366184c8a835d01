"""The pools of a plan's parallel stages, for as long as it runs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

from sage.kernel.compile import Compiled, Stage
from sage.kernel.runtime.replicas.pool import Pool, Replica
from sage.kernel.runtime.replicas.process import ProcessReplica
from sage.kernel.runtime.replicas.recipe import recipe
from sage.kernel.runtime.replicas.thread import ThreadReplica

if TYPE_CHECKING:
    from sage.kernel.runtime.room import Room
    from sage.kernel.scheduler import Node, Placement

__all__ = ["opened_pools"]


@asynccontextmanager
async def opened_pools(plan: Compiled, machine: Node | None) -> AsyncIterator[dict[str, Pool]]:
    """The pools by the name of their first operator, all workers set up; they end with it, at once after a
    failure.

    `machine`: what this one has, None = look. Raises InfeasibleError where the operators ask for more.
    """
    pools: dict[str, Pool] = {}
    room = _room(plan, machine)
    try:
        for stage in plan.all_stages:
            if head := next(iter(stage.on_workers), None):
                assert head.parallel is not None, "what is on workers has some"
                pools[head.node.name] = pool = _pool(stage, room)
                await pool.open(head.parallel.n)
        yield pools
    except BaseException:
        for pool in pools.values():
            await pool.close(now=True)
        raise
    for pool in pools.values():
        await pool.close(now=False)


def _room(plan: Compiled, machine: Node | None) -> Room | None:
    if all(op.node.provision.resources is None for op in plan.all_ops):
        return None
    from sage.kernel.runtime.room import Room, this_machine  # the scheduler is 40 ms of imports

    return Room(plan, machine or this_machine())


def _pool(stage: Stage, room: Room | None) -> Pool:
    ops, head, numbers = stage.on_workers, stage.on_workers[0], count()
    first = recipe(ops) if head.parallel and head.parallel.kind == "process" else None
    places: dict[Replica, Placement] = {}

    def make() -> Replica | None:
        place = None
        if room and head.node.provision.resources:
            place = room.take(head, next(numbers))
            if place is None:
                return None
        replica: Replica = ThreadReplica(ops) if first is None else ProcessReplica(first, _devices(place))
        if place:
            places[replica] = place
        return replica

    def ended(replica: Replica) -> None:
        if room and replica in places:
            room.give(places.pop(replica))

    return Pool(make, ended)


def _devices(place: Placement | None) -> dict[str, str]:
    """What shows a process the devices that it was given, and no other."""
    if place is None or not place.devices:
        return {}
    from sage.kernel.runtime.room import shown_devices

    shown = shown_devices(os.environ)  # a place counts those that this process is shown
    numbers = place.devices if shown is None else [shown[number] for number in place.devices]
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers)),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # in which the inventory counts them
    }
