"""Which node a unit goes to: pure functions of a snapshot, the units and a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sage.kernel.scheduler.policies import GpuFragmentAware
from sage.kernel.scheduler.policy import Policy
from sage.kernel.scheduler.shortage import infeasible, shortage
from sage.kernel.scheduler.snapshot import Snapshot
from sage.kernel.scheduler.state import State, alike, room
from sage.kernel.scheduler.types import Placement, Unit, Wait

__all__ = ["require", "select", "select_group"]


def select(snapshot: Snapshot, unit: Unit, policy: Policy) -> Placement | Wait:
    """Where the unit goes now, or what is short.

    Whether it could ever go anywhere is `require`'s question.
    """
    state, others = _best(snapshot, unit, policy)
    if state is None:
        return Wait(shortage(snapshot, unit))
    devices = room(state, unit.resources.need)
    assert devices is not None  # a policy's candidates have room
    why = f"{policy.name}: {policy.reason(state, unit)}{others}"
    return Placement(unit, state.node.name, devices, snapshot.newest + 1, why)


def select_group(snapshot: Snapshot, units: Sequence[Unit], policy: Policy) -> tuple[Placement, ...] | Wait:
    """Where the units go together, in their order, or what is short for the first that finds no room.

    Those that are hardest to place choose first. Where the policy's choices do not leave room for all, it is
    asked again without the units' wishes, and then each goes where the least is left. So whether a group has
    room depends on what its units need, and on nothing else of them.
    """
    if len(units) == 1:
        one = select(snapshot, units[0], policy)
        return one if isinstance(one, Wait) else (one,)
    found = _together(snapshot, units, policy)
    if isinstance(found, Wait) and any(unit.near or unit.spread for unit in units):
        found = _together(snapshot, units, policy, wishes=False)
    if isinstance(found, Wait):
        tight = _together(snapshot, units, GpuFragmentAware(), wishes=False)
        return found if isinstance(tight, Wait) else tight
    return found


def require(empty: Snapshot, units: Sequence[Unit], policy: Policy) -> None:
    """Raises InfeasibleError unless the units can run together on these nodes, on which nothing is placed."""
    for unit in units:
        if next(policy.candidates(empty, unit), None) is None:
            raise infeasible(empty, [unit])
    if isinstance(select_group(empty, units, policy), Wait):
        raise infeasible(empty, units)


def _best(snapshot: Snapshot, unit: Unit, policy: Policy) -> tuple[State | None, str]:
    """The first of the candidates; with a spread key the first of those with the fewest of it."""
    best: State | None = None
    fewest = 0
    for state in policy.candidates(snapshot, unit):
        if not unit.spread:
            return state, ""
        count = alike(state, unit.spread)
        if best is None or count < fewest:
            best, fewest = state, count
        if not count:
            break
    return best, f", with {fewest} others of {unit.spread!r}" if unit.spread else ""


def _together(
    snapshot: Snapshot, units: Sequence[Unit], policy: Policy, *, wishes: bool = True
) -> tuple[Placement, ...] | Wait:
    placements: dict[str, Placement] = {}
    for unit in sorted(units, key=_hardness):
        one = select(snapshot, unit if wishes else replace(unit, near=(), spread=""), policy)
        if isinstance(one, Wait):
            return Wait(f"{len(placements)} of {len(units)} units have room; {unit.id!r} waits: {one.reason}")
        placements[unit.id] = one = replace(one, unit=unit)
        snapshot = snapshot.place(one)
    return tuple(placements[unit.id] for unit in units)


def _hardness(unit: Unit) -> tuple[int | str, ...]:
    need = unit.resources.need
    return (-len(need.labels), -need.gpus, -need.share, -need.gpu_memory, -need.cpu, -need.memory, unit.id)
