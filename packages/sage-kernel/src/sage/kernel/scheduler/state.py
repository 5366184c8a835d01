"""One node at one moment: what is free, what is placed, and whether a unit fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sage.common.errors import ConflictError, NotFoundError
from sage.kernel.scheduler.types import WHOLE, Labels, Missing, Need, Node, Placement, amounts, milli

__all__ = ["Device", "State", "alike", "empty", "give", "has", "missing", "room", "take"]


class Device(NamedTuple):
    """What is free of one device: thousandths and bytes."""

    share: int
    memory: int


class State(NamedTuple):
    """A node and what is free of it. The first four are what an index keeps the greatest of."""

    cpu: int  # thousandths of cores
    memory: int  # bytes
    whole: int  # devices that nobody uses
    partial: int  # the largest share that is left of a device in use, in thousandths
    newest: int  # the highest number among the placements; 0 = none
    devices: tuple[Device, ...]
    load: float  # the used part of what is used most of: cores, memory or devices; 0 to 1
    placed: Mapping[str, Placement]  # by the unit's id
    node: Node
    closed: str  # why nothing new goes there; empty = it may


def empty(node: Node, closed: str = "") -> State:
    """The node with nothing on it."""
    devices = tuple(Device(WHOLE, memory) for memory in node.gpus)
    closed = closed or ("" if node.alive else "is not alive")
    return State(milli(node.cpus), node.memory, len(devices), 0, 0, devices, 0.0, {}, node, closed)


def room(state: State, need: Need) -> tuple[int, ...] | None:
    """The devices that it would get, none where it wants none; None where it does not fit.

    What is left of the chosen devices is as little as can be, so that whole ones stay whole.
    """
    if state.closed or need.cpu > state.cpu or need.memory > state.memory or not has(state.node, need.labels):
        return None
    if need.share:
        return _one_device(state, need)
    return _whole_devices(state, need) if need.gpus else ()


def take(state: State, placement: Placement) -> State:
    """The state with it placed. Raises ConflictError where there is no room for it or it is there already."""
    unit, need = placement.unit, placement.unit.resources.need
    if unit.id in state.placed:
        raise ConflictError(f"Unit {unit.id!r} is on node {state.node.name!r} already.")
    devices = _spend(state, need, placement.devices, 1)
    if (
        need.cpu > state.cpu
        or need.memory > state.memory
        or devices is None
        or not has(state.node, need.labels)
    ):
        lacking = "; ".join(map(str, missing(state, need))) or f"other devices than {placement.devices}"
        raise ConflictError(f"Unit {unit.id!r} does not fit on node {state.node.name!r}: it lacks {lacking}.")
    placed = {**state.placed, unit.id: placement}
    newest = max(state.newest, placement.number)
    return _state(state, state.cpu - need.cpu, state.memory - need.memory, devices, newest, placed)


def give(state: State, unit: str) -> State:
    """The state without that unit. Raises NotFoundError where it is not there."""
    placed = dict(state.placed)
    placement = placed.pop(unit, None)
    if placement is None:
        raise NotFoundError(f"Unit {unit!r} is not on node {state.node.name!r}.")
    need = placement.unit.resources.need
    devices = _spend(state, need, placement.devices, -1)
    assert devices is not None  # what was taken can be given back
    newest = state.newest
    if placement.number == newest:
        newest = max((one.number for one in placed.values()), default=0)
    return _state(state, state.cpu + need.cpu, state.memory + need.memory, devices, newest, placed)


def alike(state: State, spread: str) -> int:
    """How many units of that spread key are there."""
    return sum(placement.unit.spread == spread for placement in state.placed.values())


def has(node: Node, labels: Labels) -> bool:
    """Whether the node has all these labels."""
    return not labels or all(node.labels.get(key) == value for key, value in labels)


def missing(state: State, need: Need) -> tuple[Missing, ...]:
    """All that the node lacks for it; nothing where it fits."""
    return tuple(_missing(state, need))


def _held(node: Node, need: Need, number: int) -> Device:
    """What it takes of that device."""
    if not need.share:
        return Device(WHOLE, node.gpus[number])
    return Device(need.share, need.gpu_memory or node.gpus[number] * need.share // WHOLE)


def _one_device(state: State, need: Need) -> tuple[int, ...] | None:
    fitting = [
        (device, number)
        for number, device in enumerate(state.devices)
        if device.share >= need.share and device.memory >= _held(state.node, need, number).memory
    ]
    return (min(fitting)[1],) if fitting else None


def _whole_devices(state: State, need: Need) -> tuple[int, ...] | None:
    if state.whole < need.gpus:
        return None
    # Those with the least memory that does: units that need more of it may come.
    fitting = sorted(
        (device.memory, number)
        for number, device in enumerate(state.devices)
        if device.share == WHOLE and device.memory >= need.gpu_memory
    )
    return tuple(number for _, number in fitting[: need.gpus]) if len(fitting) >= need.gpus else None


def _spend(state: State, need: Need, numbers: tuple[int, ...], sign: int) -> tuple[Device, ...] | None:
    """The devices after it was taken (1) or given back (-1); None where that cannot be."""
    if len(set(numbers)) != (need.gpus or bool(need.share)):
        return None
    if not numbers:
        return state.devices
    devices = list(state.devices)
    for number in numbers:
        if not 0 <= number < len(devices):
            return None
        held = _held(state.node, need, number)
        left = Device(devices[number].share - sign * held.share, devices[number].memory - sign * held.memory)
        short = not need.share and state.node.gpus[number] < need.gpu_memory
        if left.share < 0 or left.memory < 0 or short:
            return None
        devices[number] = left
    return tuple(devices)


def _state(
    old: State,
    cpu: int,
    memory: int,
    devices: tuple[Device, ...],
    newest: int,
    placed: Mapping[str, Placement],
) -> State:
    node = old.node
    load = 1 - cpu / milli(node.cpus) if node.cpus else 0.0
    if node.memory:
        load = max(load, 1 - memory / node.memory)
    whole, partial = old.whole, old.partial
    if devices is not old.devices:
        shares = [device.share for device in devices]
        whole = shares.count(WHOLE)
        partial = max((share for share in shares if share < WHOLE), default=0)
    if devices:
        load = max(load, 1 - sum(device.share for device in devices) / (WHOLE * len(devices)))
    return State(cpu, memory, whole, partial, newest, devices, load, placed, node, old.closed)


def _missing(state: State, need: Need) -> Iterator[Missing]:
    if state.closed:
        yield Missing("open", "yes", state.closed)
    if need.cpu > state.cpu:
        yield _short("cpu", need.cpu, state.cpu)
    if need.memory > state.memory:
        yield _short("memory", need.memory, state.memory)
    if need.gpus and state.whole < need.gpus:
        yield _short("gpu", need.gpus * WHOLE, state.whole * WHOLE)
    elif need.gpus and _whole_devices(state, need) is None:
        sizes = sorted((device.memory for device in state.devices if device.share == WHOLE), reverse=True)
        yield _short("gpu_memory", need.gpu_memory, sizes[need.gpus - 1])
    if need.share and _one_device(state, need) is None:
        yield _short_share(state, need)
    for key, value in need.labels:
        if state.node.labels.get(key) != value:
            yield Missing(f"label {key}", value, state.node.labels.get(key, "none"))


def _short_share(state: State, need: Need) -> Missing:
    most = max((device.share for device in state.devices), default=0)
    if most < need.share:
        return _short("gpu", need.share, most)
    free, number = max(
        (device.memory, number) for number, device in enumerate(state.devices) if device.share >= need.share
    )
    return _short("gpu_memory", _held(state.node, need, number).memory, free)


def _short(what: str, wanted: int, found: int) -> Missing:
    return Missing(what, *amounts(what, wanted, found), found / wanted)
