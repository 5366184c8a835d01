"""All nodes and what is placed on them, immutable: a change makes a new snapshot and shares the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from sage.common.errors import NotFoundError, UsageError
from sage.kernel.scheduler.index import Index, Key, by_name
from sage.kernel.scheduler.roster import Roster
from sage.kernel.scheduler.state import State, empty, give, has, take
from sage.kernel.scheduler.types import Labels, Node, Placement

__all__ = ["Snapshot"]

_KEPT = 16  # orders that one snapshot keeps sorted at once; one more drops the oldest
_BEHIND = 64  # changes that an order may be behind: it is brought up to date when it is asked for
_REMEMBERED = 256  # labels of which it is known whether they are common
_COMMON = 1 / 8  # labels that more of the nodes have get no order of their own: to keep one costs more


class _Order(NamedTuple):
    """States in an order, and what has changed since, the newest first: (old, new, those before)."""

    sorted: Index
    behind: _Changes | None = None
    changes: int = 0


_Changes: TypeAlias = "tuple[State | None, State | None, _Changes | None]"


class Snapshot:
    """Nodes with what is free and placed on each.

    Two are equal when their nodes and placements are. Nothing here looks at anything else: the same snapshot,
    unit and policy give the same decision.
    """

    __slots__ = ("_common", "_newest", "_orders", "_states")

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        """All nodes empty. Raises UsageError for two of one name."""
        nodes = tuple(nodes)
        names = [node.name for node in nodes]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"Two nodes are named {twice!r}; each needs a name of its own.")
        self._states = Roster(map(empty, nodes))
        self._newest: int | None = 0
        # Orders are made when a policy first asks for one, and kept from then on.
        self._orders: dict[tuple[Key, Labels], _Order] = {}
        self._common: dict[Labels, bool] = {(): False}  # no more than a guess after nodes have come or gone

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and list(self._states) == list(other._states)

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[State]:
        """The states in the order of the nodes' names."""
        return iter(self._states)

    def __contains__(self, name: str) -> bool:
        return name in self._states

    def __getitem__(self, name: str) -> State:
        """The state of the node of that name; raises NotFoundError."""
        state = self._states.get(name)
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
        """The states that may take units and whose node has these labels, in the order of the key.

        Of labels that many nodes have, those without them are there as well: a walk leaves them out.
        """
        if self._are_common(labels):
            labels = ()
        found = self._orders.get((key, labels))
        if found is None:
            found = _Order(Index(key, [state for state in self if _in(state, labels)]))
            self._orders[key, labels] = found
            if len(self._orders) > _KEPT:
                del self._orders[next(iter(self._orders))]
        elif found.behind is not None:
            found = self._orders[key, labels] = _caught_up(found, labels)
        return found.sorted

    def most_free(self, labels: Labels = ()) -> tuple[int, ...] | None:
        """The most that one node with these labels has: thousandths of cores, bytes, whole devices, and
        thousandths of a device in use. None where no such node may take units.
        """
        kept = () if self._are_common(labels) else labels
        key = next((key for key, wanted in self._orders if wanted == kept), by_name)
        return self.ordered(key, labels).tops(labels)

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
        return self._changed(self._states.get(node.name), empty(node))

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
        part._states = Roster(self[name] for name in dict.fromkeys(names))
        return part

    def emptied(self) -> Snapshot:
        """The same nodes with nothing on them."""
        return Snapshot(state.node for state in self)

    def _are_common(self, labels: Labels) -> bool:
        found = self._common.get(labels)
        if found is None:
            if len(self._common) > _REMEMBERED:
                self._common.clear()
            found = sum(has(state.node, labels) for state in self) > _COMMON * len(self)
            self._common[labels] = found
        return found

    def _changed(self, old: State | None, new: State | None) -> Snapshot:
        changed = Snapshot.__new__(Snapshot)
        changed._orders, changed._newest, changed._common = {}, None, self._common
        changed._states = self._states.changed(old, new)
        was, now = old.newest if old else 0, new.newest if new else 0
        if self._newest is not None:
            lost = was > now and was == self._newest  # then the next one is looked for when it is asked for
            changed._newest = None if lost else max(self._newest, now)
        for (key, labels), order in self._orders.items():
            later = _Order(order.sorted, (old, new, order.behind), order.changes + 1)
            changed._orders[key, labels] = later if later.changes < _BEHIND else _caught_up(later, labels)
        return changed


def _caught_up(order: _Order, labels: Labels) -> _Order:
    """The order with all that has changed since, each node once."""
    if order.behind is not None and order.changes == 1:
        old, new, _ = order.behind
        return _Order(order.sorted.changed([(_shown(old, labels), _shown(new, labels))]))
    first: dict[str, State | None] = {}
    last: dict[str, State | None] = {}
    behind = order.behind
    while behind is not None:
        old, new, behind = behind
        name = _name(old, new)
        first[name] = old
        last.setdefault(name, new)
    found = ((_shown(first[name], labels), _shown(new, labels)) for name, new in last.items())
    return _Order(order.sorted.changed(found))


def _name(old: State | None, new: State | None) -> str:
    one = new if old is None else old
    assert one is not None, "a change is of some node"
    return one.node.name


def _shown(state: State | None, labels: Labels) -> State | None:
    return state if state is not None and _in(state, labels) else None


def _in(state: State, labels: Labels) -> bool:
    return not state.closed and has(state.node, labels)
