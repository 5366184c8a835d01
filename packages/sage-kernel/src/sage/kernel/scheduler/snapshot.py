"""All nodes and what is placed on them, immutable: a change makes a new snapshot and shares the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from sage.common.errors import NotFoundError, UsageError
from sage.kernel.scheduler.index import Index, Key, by_name
from sage.kernel.scheduler.state import State, empty, give, take
from sage.kernel.scheduler.types import Labels, Node, Placement

__all__ = ["Snapshot"]

_KEPT = 16  # orders that one snapshot keeps sorted at once; one more drops the oldest


class Snapshot:
    """Nodes with what is free and placed on each.

    Two are equal when their nodes and placements are. Nothing here looks at anything else: the same snapshot,
    unit and policy give the same decision.
    """

    __slots__ = ("_newest", "_orders", "_states")

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        """All nodes empty. Raises UsageError for two of one name."""
        nodes = tuple(nodes)
        names = [node.name for node in nodes]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"Two nodes are named {twice!r}; each needs a name of its own.")
        self._states = Index(by_name, map(empty, nodes))
        self._newest: int | None = 0
        # Orders are made when a policy first asks for one, and kept from then on by each change.
        self._orders: dict[tuple[Key, Labels], Index] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and list(self._states) == list(other._states)

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[State]:
        """The states in the order of the nodes' names."""
        return iter(self._states)

    def __contains__(self, name: str) -> bool:
        return self._states.find((name,)) is not None

    def __getitem__(self, name: str) -> State:
        """The state of the node of that name; raises NotFoundError."""
        state = self._states.find((name,))
        if state is None:
            raise NotFoundError(f"There is no node {name!r} among the {len(self)} known.")
        return state

    @property
    def placed(self) -> Mapping[str, Placement]:
        """What is placed anywhere, by the unit's id; collected anew at each call."""
        return MappingProxyType({unit: one for state in self for unit, one in state.placed.items()})

    @property
    def newest(self) -> int:
        """The highest number among all placements; 0 = there are none."""
        if self._newest is None:
            self._newest = max((state.newest for state in self), default=0)
        return self._newest

    def ordered(self, key: Key, labels: Labels = ()) -> Index:
        """The states that may take units and whose node has these labels, in the order of the key."""
        found = self._orders.get((key, labels))
        if found is None:
            wanted = [state for state in self if _in(state, labels)]
            found = self._orders[key, labels] = Index(key, wanted)
            if len(self._orders) > _KEPT:
                del self._orders[next(iter(self._orders))]
        return found

    def most_free(self, labels: Labels = ()) -> tuple[int, ...] | None:
        """The most that one node with these labels has: thousandths of cores, bytes, whole devices, and
        thousandths of a device in use. None where no such node may take units.
        """
        for (_, wanted), index in self._orders.items():
            if wanted == labels:
                return index.tops()
        return self.ordered(by_name, labels).tops()

    def place(self, placement: Placement) -> Snapshot:
        """The snapshot with it there. Raises ConflictError where there is no room, or NotFoundError."""
        state = self[placement.node]
        return self._changed(state, take(state, placement))

    def release(self, placement: Placement) -> Snapshot:
        """The snapshot as if it had never been placed. Raises NotFoundError where it is not."""
        state = self[placement.node]
        return self._changed(state, give(state, placement.unit.id))

    def join(self, node: Node) -> Snapshot:
        """The snapshot with the node, empty; one of that name is replaced, with all that was on it."""
        return self._changed(self._states.find((node.name,)), empty(node))

    def leave(self, name: str) -> Snapshot:
        """The snapshot without the node and what was on it; raises NotFoundError."""
        return self._changed(self[name], None)

    def close(self, names: Iterable[str], why: str) -> Snapshot:
        """Nothing new goes to these nodes; `why` is shown. An empty one opens them again."""
        snapshot = self
        for name in names:
            state = snapshot[name]
            snapshot = snapshot._changed(state, state._replace(closed=why or empty(state.node).closed))
        return snapshot

    def only(self, names: Iterable[str]) -> Snapshot:
        """The part of it that has these nodes."""
        part = Snapshot()
        part._newest = self.newest  # the numbers go on where they are
        for name in names:
            part = part._changed(None, self[name])
        return part

    def emptied(self) -> Snapshot:
        """The same nodes with nothing on them."""
        return Snapshot(state.node for state in self)

    def _changed(self, old: State | None, new: State | None) -> Snapshot:
        changed = Snapshot.__new__(Snapshot)
        changed._orders, changed._newest = {}, None
        changed._states = self._states.changed(old, new)
        was, now = old.newest if old else 0, new.newest if new else 0
        if self._newest is not None:
            lost = was > now and was == self._newest  # then the next one is looked for when it is asked for
            changed._newest = None if lost else max(self._newest, now)
        same = old is not None and new is not None and old.node is new.node and old.closed == new.closed
        for (key, labels), index in self._orders.items():
            before = old if old is not None and _in(old, labels) else None
            after = new if new is not None and (before is not None if same else _in(new, labels)) else None
            unchanged = before is None and after is None
            changed._orders[key, labels] = index if unchanged else index.changed(before, after)
        return changed


def _in(state: State, labels: Labels) -> bool:
    if state.closed or not labels:
        return not state.closed
    has = state.node.labels
    return all(has.get(key) == value for key, value in labels)
