"""What operators that say what they take leave of this machine; the scheduler decides, on one node."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sage.kernel.compile import Compiled, Op
from sage.kernel.runtime.report import operator_error
from sage.kernel.scheduler import (
    InfeasibleError,
    Node,
    Placement,
    Snapshot,
    Unit,
    Wait,
    load_policy,
    node_of,
    require,
    select,
    select_group,
)

__all__ = ["Room", "shown_devices", "this_machine", "units_of"]


def this_machine() -> Node:
    """What this process may use."""
    from sage.platform.nodes import inventory

    node = node_of("this machine", inventory())
    shown = shown_devices(os.environ)
    if shown is None:
        return node
    return replace(node, gpus=tuple(node.gpus[number] for number in shown if number < len(node.gpus)))


def shown_devices(environment: Mapping[str, str]) -> list[int] | None:
    """The numbers of the devices that a process is shown; None = all of them."""
    text = environment.get("CUDA_VISIBLE_DEVICES")
    names = [one.strip() for one in (text or "").split(",") if one.strip()]
    # One that is named by its UUID cannot be found in an inventory of numbers.
    return None if text is None or not all(map(str.isdigit, names)) else [int(one) for one in names]


class Room:
    """A machine and what runs there: all workers that a plan begins with, and those that come later."""

    def __init__(self, plan: Compiled, machine: Node) -> None:
        """Raises InfeasibleError naming what the operators of the plan want more of than there is."""
        units = units_of(plan)
        self._policy = load_policy("pack")
        self._first: dict[str, Placement] = {}
        self._snapshot = Snapshot([machine])
        try:
            require(self._snapshot, units, self._policy)
        except InfeasibleError as error:
            raise operator_error(f"flow {plan.name!r} cannot start here", error) from error
        found = select_group(self._snapshot, units, self._policy)
        assert not isinstance(found, Wait), "what can run together on an empty machine has room there"
        for placement in found:
            self._snapshot = self._snapshot.place(placement)
            self._first[placement.unit.id] = placement

    def take(self, op: Op, number: int) -> Placement | None:
        """A place for worker `number` of an operator that asks for something; None where there is none."""
        unit = _unit(op, number, "")
        if (planned := self._first.pop(unit.id, None)) is not None:
            return planned
        found = select(self._snapshot, unit, self._policy)
        if isinstance(found, Wait):
            return None
        self._snapshot = self._snapshot.place(found)
        return found

    def give(self, placement: Placement) -> None:
        """It has ended."""
        self._snapshot = self._snapshot.release(placement)


def units_of(plan: Compiled) -> list[Unit]:
    """What a run of the plan takes when it begins, all of it at once."""
    return [unit for stage in plan.all_stages for unit in _units(stage.on_workers, stage.ops, plan.name)]


def _units(on_workers: Sequence[Op], ops: Sequence[Op], group: str) -> list[Unit]:
    """One for each worker of a stage, and one for each operator of it that is on the event loop."""
    units = []
    if on_workers and on_workers[0].node.provision.resources and on_workers[0].parallel:
        units += [_unit(on_workers[0], number, group) for number in range(on_workers[0].parallel.n)]
    alone = [op for op in ops[len(on_workers) :] if op.node.provision.resources]
    return units + [_unit(op, 0, group) for op in alone]


def _unit(op: Op, number: int, group: str) -> Unit:
    resources = op.node.provision.resources
    assert resources is not None, "only operators that ask for something take a place"
    return Unit(f"{op.node.name}/{number}", resources, group=group)
