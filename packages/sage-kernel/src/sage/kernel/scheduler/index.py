"""States in the order of a key, immutable: a change costs the square root of their number."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, TypeAlias

from sage.kernel.scheduler.state import State, room
from sage.kernel.scheduler.types import WHOLE, Need

__all__ = ["Index", "Key", "by_name"]

Key: TypeAlias = Callable[[State], tuple[Any, ...]]
"""What states are ordered by, the smallest first; the last part is the node's name: no two are equal."""

_CHUNK = 48
_FIELDS = tuple(map(itemgetter, range(4)))  # cpu, memory, whole devices, share of a device in use
_Tops: TypeAlias = tuple[int, ...]


def by_name(state: State) -> tuple[str]:
    """The order of the names."""
    return (state.node.name,)


class _Chunk:
    """Some states in order. Its lists are never changed once it is in an index."""

    __slots__ = ("_exact", "_tops", "keys", "states")

    def __init__(self, keys: list[tuple[Any, ...]], states: list[State], tops: _Tops | None = None) -> None:
        self.keys, self.states = keys, states
        # No state has more of a field than its top. `_exact`: one has just as much.
        self._exact = tops is None
        self._tops = tops or tuple(max(map(field, states)) for field in _FIELDS)

    def tops(self, *, exact: bool = False) -> _Tops:
        """Of each field what no state has more of; `exact`: the greatest, for one look at all states."""
        if exact and not self._exact:
            self._exact, self._tops = True, tuple(max(map(field, self.states)) for field in _FIELDS)
        return self._tops


class Index:
    """States sorted by `key`, in chunks that know the most that one of theirs has free."""

    __slots__ = ("_chunks", "_lows", "key")

    def __init__(self, key: Key, states: Iterable[State] = ()) -> None:
        ordered = sorted((key(state), state) for state in states)
        self.key = key
        parts = (ordered[at : at + _CHUNK] for at in range(0, len(ordered), _CHUNK))
        self._chunks = [_Chunk([key for key, _ in part], [state for _, state in part]) for part in parts]
        self._lows = [chunk.keys[0] for chunk in self._chunks]

    def __iter__(self) -> Iterator[State]:
        for chunk in self._chunks:
            yield from chunk.states

    def __len__(self) -> int:
        return sum(len(chunk.states) for chunk in self._chunks)

    def find(self, key: tuple[Any, ...]) -> State | None:
        """The state of exactly that key."""
        if not self._chunks:
            return None
        chunk = self._chunks[self._place(key)]
        at = bisect_left(chunk.keys, key)
        return chunk.states[at] if at < len(chunk.keys) and chunk.keys[at] == key else None

    def tops(self) -> _Tops | None:
        """The most that one state has of each: cpu, memory, whole devices, share of a device in use."""
        tops = [chunk.tops(exact=True) for chunk in self._chunks]
        return tuple(map(max, zip(*tops, strict=True))) if tops else None

    def walk(self, need: Need, *, partial: bool = False) -> Iterator[State]:
        """Those with room for it, in order; `partial`: only where its share comes from a device in use."""
        for chunk in self._chunks:
            if not _may_fit(need, chunk.tops(), partial):
                continue
            found = False
            for state in chunk.states:
                if need.cpu > state.cpu or need.memory > state.memory:
                    continue  # most that do not fit fail here, without a call
                devices = room(state, need)
                if devices is None or (partial and state.devices[devices[0]].share == WHOLE):
                    continue
                found = True
                yield state
            if not found:
                chunk.tops(exact=True)  # so that the next one need not look

    def changed(self, old: State | None, new: State | None) -> Index:
        """The index with `new` in the place of `old`; None stands for no state."""
        index = Index.__new__(Index)
        index.key, index._chunks, index._lows = self.key, self._chunks.copy(), self._lows.copy()
        key = None if old is None else self.key(old)
        new_key = None if new is None else self.key(new)
        if key is not None and new is not None and key == new_key:
            index._replace(key, new)
            return index
        if key is not None:
            index._remove(key)
        if new is not None and new_key is not None:
            index._insert(new_key, new)
        return index

    def _place(self, key: tuple[Any, ...]) -> int:
        return max(0, bisect_right(self._lows, key) - 1)

    def _replace(self, key: tuple[Any, ...], state: State) -> None:
        at = self._place(key)
        chunk = self._chunks[at]
        states = chunk.states.copy()
        states[bisect_left(chunk.keys, key)] = state
        self._chunks[at] = _Chunk(chunk.keys, states, tuple(map(max, chunk.tops(), state[:4])))

    def _remove(self, key: tuple[Any, ...]) -> None:
        at = self._place(key)
        chunk = self._chunks[at]
        if len(chunk.keys) == 1:
            del self._chunks[at], self._lows[at]
            return
        keys, states, place = chunk.keys.copy(), chunk.states.copy(), bisect_left(chunk.keys, key)
        del keys[place], states[place]
        parts = [_Chunk(keys, states, chunk.tops())]
        end = at + 1
        if len(keys) < _CHUNK // 4 and end < len(self._chunks):
            # Else small chunks would pile up while states move about, and each costs every later change.
            behind = self._chunks[end]
            parts = _parts([*keys, *behind.keys], [*states, *behind.states])
            end += 1
        self._chunks[at:end] = parts
        self._lows[at:end] = [part.keys[0] for part in parts]

    def _insert(self, key: tuple[Any, ...], state: State) -> None:
        if not self._chunks:
            self._chunks, self._lows = [_Chunk([key], [state])], [key]
            return
        at = self._place(key)
        chunk = self._chunks[at]
        keys, states, place = chunk.keys.copy(), chunk.states.copy(), bisect_left(chunk.keys, key)
        keys.insert(place, key)
        states.insert(place, state)
        if len(keys) <= 2 * _CHUNK:
            parts = [_Chunk(keys, states, tuple(map(max, chunk.tops(), state[:4])))]
        else:
            parts = _parts(keys, states)
        self._chunks[at : at + 1] = parts
        self._lows[at : at + 1] = [part.keys[0] for part in parts]


def _parts(keys: list[tuple[Any, ...]], states: list[State]) -> list[_Chunk]:
    """One chunk of them, or two halves where they are too many."""
    if len(keys) <= 2 * _CHUNK:
        return [_Chunk(keys, states)]
    return [_Chunk(keys[:_CHUNK], states[:_CHUNK]), _Chunk(keys[_CHUNK:], states[_CHUNK:])]


def _may_fit(need: Need, tops: _Tops, partial: bool) -> bool:
    cpu, memory, whole, most = tops
    if need.cpu > cpu or need.memory > memory or need.gpus > whole:
        return False
    return need.share <= most or (bool(whole) and not partial)
