"""The shipped policies, one small object each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from sage.kernel.scheduler.index import Key, by_name
from sage.kernel.scheduler.policy import Score
from sage.kernel.scheduler.snapshot import Snapshot
from sage.kernel.scheduler.state import State, room
from sage.kernel.scheduler.types import WHOLE, Need, Unit

__all__ = ["Fifo", "GpuFragmentAware", "Locality", "Ordered", "Pack", "Priority", "RoundRobin", "Spread"]


def _by_load(state: State) -> tuple[float, str]:
    return (state.load, state.node.name)


def _by_load_down(state: State) -> tuple[float, str]:
    return (-state.load, state.node.name)


def _by_newest(state: State) -> tuple[int, str]:
    return (state.newest, state.node.name)


def _by_free_gpu(state: State) -> tuple[Any, ...]:
    """Those with the fewest whole devices free, of them with the least in pieces, of them the fullest."""
    return (state.whole, _slack(state), -state.load, state.node.name)


def _slack(state: State) -> int:
    return sum(device.share for device in state.devices if device.share < WHOLE)


class Ordered:
    """A policy whose score of a node depends on that node alone: `key`, whose last part is the node's name.

    Jobs go in the order of arrival. A policy of one's own is a subclass with `name`, `key` and `why`.
    """

    name: ClassVar[str]
    overtaking: ClassVar[int] = 100
    key: ClassVar[Key]
    why: ClassVar[str]

    def urgency(self, unit: Unit) -> float:
        """When it came."""
        return unit.arrival

    def score(self, state: State, unit: Unit) -> Score:  # noqa: ARG002 - the key is the node's alone
        """The key without the name."""
        return type(self).key(state)[:-1]

    def candidates(self, snapshot: Snapshot, unit: Unit) -> Iterator[State]:
        """In the order of the key."""
        need = unit.resources.need
        return snapshot.ordered(type(self).key, need.labels).walk(need)

    def reason(self, state: State, unit: Unit) -> str:  # noqa: ARG002 - the key is the node's alone
        """In words, with the load of the node before the unit came."""
        return f"{self.why} (load {state.load:.2f})"


class Fifo(Ordered):
    """Strictly in the order of arrival, each to the first node by name that has room."""

    name = "fifo"
    overtaking = 0
    key = by_name
    why = "the first node by name that has room"


class RoundRobin(Ordered):
    """To the node whose turn was longest ago."""

    name = "round_robin"
    key = _by_newest
    why = "the node whose turn was longest ago"


class Spread(Ordered):
    """To the emptiest node, so that units disturb each other least."""

    name = "spread"
    key = _by_load
    why = "the emptiest node that has room"


class Pack(Ordered):
    """To the fullest node that has room, so that others stay empty for large units or can be given back."""

    name = "pack"
    key = _by_load_down
    why = "the fullest node that has room"


class Priority(Pack):
    """By priority, packed; each priority is worth `aging` seconds of waiting.

    A unit goes before all that come more than `aging` x (their priority - its own) seconds after it, so
    nothing starves. As all that wait grow older alike, the order between two never changes.
    """

    name = "priority"

    def __init__(self, aging: float = 60.0) -> None:
        self.aging = aging

    def urgency(self, unit: Unit) -> float:
        """When it came, earlier by `aging` seconds for each priority."""
        return unit.arrival - self.aging * unit.priority


class Locality(Spread):
    """To a node that holds its data, the best first; else to the emptiest."""

    name = "locality"

    def score(self, state: State, unit: Unit) -> Score:
        """The place among the unit's `near`, then the load."""
        name = state.node.name
        return (unit.near.index(name) if name in unit.near else len(unit.near), state.load)

    def candidates(self, snapshot: Snapshot, unit: Unit) -> Iterator[State]:
        """The near ones with room, then the others."""
        need = unit.resources.need
        near = dict.fromkeys(name for name in unit.near if name in snapshot)
        yield from (snapshot[name] for name in near if room(snapshot[name], need) is not None)
        yield from (state for state in super().candidates(snapshot, unit) if state.node.name not in near)

    def reason(self, state: State, unit: Unit) -> str:
        """Whether it holds the data."""
        if state.node.name in unit.near:
            return f"it holds the unit's data (choice {unit.near.index(state.node.name) + 1})"
        return super().reason(state, unit)


class GpuFragmentAware(Ordered):
    """Keeps whole devices, and nodes with many of them, free for units that need them.

    A share goes to a device in use if one has room. All else goes where the fewest whole devices are free:
    units without a GPU to nodes without one, units with several to nodes that have just as many.
    """

    name = "gpu_fragment_aware"
    key = _by_free_gpu
    why = "the node with the fewest free devices that do"

    def score(self, state: State, unit: Unit) -> Score:
        """For a share whether it opens a whole device; then whole devices, pieces and load."""
        return (float(self._opens(state, unit.resources.need)), *super().score(state, unit))

    def candidates(self, snapshot: Snapshot, unit: Unit) -> Iterator[State]:
        """For a share those with room on a device in use first."""
        need = unit.resources.need
        index = snapshot.ordered(_by_free_gpu, need.labels)
        if not need.share:
            yield from index.walk(need)
            return
        yield from index.walk(need, partial=True)
        yield from (state for state in index.walk(need) if self._opens(state, need))

    def reason(self, state: State, unit: Unit) -> str:
        """With the devices that are free there."""
        need = unit.resources.need
        if need.share and not self._opens(state, need):
            return "a device in use has room for its share"
        return f"{self.why} ({state.whole} whole, {_slack(state) / WHOLE:g} in pieces)"

    @staticmethod
    def _opens(state: State, need: Need) -> bool:
        devices = room(state, need) if need.share else None
        return devices is not None and state.devices[devices[0]].share == WHOLE
