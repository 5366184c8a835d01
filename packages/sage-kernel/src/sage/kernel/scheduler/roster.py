"""The states of all nodes by their names, immutable: a change costs the square root of their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sage.kernel.scheduler.state import State

__all__ = ["Roster"]

_ROW = 64


class Roster:
    """States in the order of the nodes' names, each found by its name.

    Nodes that come and go are rare, and cost a look at all; what is placed on them changes all the time.
    """

    __slots__ = ("_places", "_rows")

    def __init__(self, states: Iterable[State] = ()) -> None:
        ordered = sorted(states, key=_name)
        self._rows = [ordered[at : at + _ROW] for at in range(0, len(ordered), _ROW)]
        self._places = {state.node.name: divmod(at, _ROW) for at, state in enumerate(ordered)}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[State]:
        for row in self._rows:
            yield from row

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def get(self, name: str) -> State | None:
        """The state of the node of that name."""
        place = self._places.get(name)
        return None if place is None else self._rows[place[0]][place[1]]

    def changed(self, old: State | None, new: State | None) -> Roster:
        """The roster with `new` in the place of `old`; None stands for no state."""
        if old is None or new is None or old.node.name != new.node.name:
            kept = (state for state in self if old is None or state.node.name != old.node.name)
            return Roster(kept if new is None else (*kept, new))
        roster = Roster.__new__(Roster)
        roster._places, roster._rows = self._places, self._rows.copy()
        at, place = self._places[new.node.name]
        row = roster._rows[at] = self._rows[at].copy()
        row[place] = new
        return roster


def _name(state: State) -> str:
    return state.node.name
