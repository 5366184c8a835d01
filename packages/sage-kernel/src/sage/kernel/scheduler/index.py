"""States in the order of a key, immutable: a change costs the square root of their number."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, TypeAlias

from sage.kernel.scheduler.state import State, has, room
from sage.kernel.scheduler.types import WHOLE, Labels, Need

__all__ = ["Index", "Key", "by_name"]

Key: TypeAlias = Callable[[State], tuple[Any, ...]]
"""What states are ordered by, the smallest first; the last part is the node's name: no two are equal."""

_CHUNK = 48
_KNOWN = 32  # needs that a chunk remembers to have no room for
_CPU, _MEMORY, _WHOLE, _PARTIAL = map(itemgetter, range(4))
_Tops: TypeAlias = tuple[int, int, int, int]  # cpu, memory, whole devices, share of one in use
_Asked: TypeAlias = tuple[Need, bool]  # the bool: only on a device in use


def by_name(state: State) -> tuple[str]:
    """The order of the names."""
    return (state.node.name,)


class _Chunk:
    """Some states in order. Its lists are never changed once it is in an index.

    `tops`: of each field the most that a state has. `full`: what none of the states has room for, of what was
    asked for; it is noted by those who have looked at them all, and saves the next one that look.
    """

    __slots__ = ("full", "keys", "states", "tops")

    def __init__(self, keys: list[tuple[Any, ...]], states: list[State]) -> None:
        self.keys, self.states = keys, states
        self.tops: _Tops = (
            max(map(_CPU, states)),
            max(map(_MEMORY, states)),
            max(map(_WHOLE, states)),
            max(map(_PARTIAL, states)),
        )
        self.full: frozenset[_Asked] = frozenset()

    def changed(
        self, keys: list[tuple[Any, ...]], states: list[State], old: State | None, new: State | None
    ) -> _Chunk:
        """One of these: its own states, with `new` in the place of `old`."""
        chunk = _Chunk.__new__(_Chunk)
        chunk.keys, chunk.states = keys, states
        tops, full = self.tops, self.full
        if old is not None:
            tops = _tops_without(tops, old, states)
        if new is not None:
            tops = _tops_with(tops, new)
            if full:
                cpu, memory = new.cpu, new.memory
                may = [asked for asked in full if asked[0].cpu <= cpu and asked[0].memory <= memory]
                full = full.difference([asked for asked in may if _fits(new, *asked)]) if may else full
        chunk.tops, chunk.full = tops, full
        return chunk

    def remember(self, asked: _Asked) -> None:
        """No state has room for that."""
        self.full = self.full | {asked} if len(self.full) < _KNOWN else frozenset((asked,))


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

    def tops(self, labels: Labels = ()) -> _Tops | None:
        """The most that one state with these labels has of each: cpu, memory, whole devices, share of one.

        The share is of a device in use. None where there is no such state.
        """
        cpu, memory, whole, partial = (self._top(of, labels) for of in (_CPU, _MEMORY, _WHOLE, _PARTIAL))
        return (cpu, memory, whole, partial) if cpu >= 0 else None

    def _top(self, of: Callable[[Any], int], labels: Labels) -> int:
        if not labels:
            return max((of(chunk.tops) for chunk in self._chunks), default=-1)
        best = -1
        for chunk in sorted(self._chunks, key=lambda chunk: of(chunk.tops), reverse=True):
            if of(chunk.tops) <= best:
                break
            best = max(best, *(of(state) for state in chunk.states if has(state.node, labels)), -1)
        return best

    def walk(self, need: Need, *, partial: bool = False) -> Iterator[State]:
        """Those with room for it, in order; `partial`: only where its share comes from a device in use."""
        asked = need, partial
        cpu, memory, gpus, share = need[:4]
        for chunk in self._chunks:
            most, much, whole, rest = chunk.tops
            if cpu > most or memory > much or gpus > whole:
                continue
            if (share > rest and (partial or not whole)) or asked in chunk.full:
                continue
            found = False
            for state in chunk.states:
                # Most that do not fit fail here, without a call.
                if cpu <= state.cpu and memory <= state.memory and _fits(state, need, partial):
                    found = True
                    yield state
            if not found:
                chunk.remember(asked)

    def changed(self, changes: Iterable[tuple[State | None, State | None]]) -> Index:
        """The index with each new state in the place of the old one, which is of the same node.

        None stands for no state.
        """
        index = Index.__new__(Index)
        index.key, index._chunks, index._lows = self.key, self._chunks.copy(), self._lows.copy()
        for old, new in changes:
            if old is not None and new is not None:
                index._move(self.key(old), self.key(new), old, new)
            elif old is not None:
                key = self.key(old)
                index._remove(index._place(key), key, old)
            elif new is not None:
                key = self.key(new)
                index._insert(index._place(key), key, new)
        return index

    def _place(self, key: tuple[Any, ...]) -> int:
        return bisect_right(self._lows, key, 1) - 1 if self._lows else 0

    def _move(self, key: tuple[Any, ...], new_key: tuple[Any, ...], old: State, new: State) -> None:
        at, to = self._place(key), self._place(new_key)
        if at != to:
            count = len(self._chunks)
            self._insert(to, new_key, new)
            # The chunk of the old one is where it was, unless one before it was divided.
            self._remove(at if at < to else at + len(self._chunks) - count, key, old)
            return
        chunk = self._chunks[at]
        keys, states, place = chunk.keys, chunk.states.copy(), bisect_left(chunk.keys, key)
        if key == new_key:
            states[place] = new
        else:
            keys = keys.copy()
            del keys[place], states[place]
            place = bisect_left(keys, new_key)
            keys.insert(place, new_key)
            states.insert(place, new)
            self._lows[at] = keys[0]
        self._chunks[at] = chunk.changed(keys, states, old, new)

    def _remove(self, at: int, key: tuple[Any, ...], old: State) -> None:
        chunk, end = self._chunks[at], at + 1
        if len(chunk.keys) == 1:
            del self._chunks[at], self._lows[at]
            return
        keys, states, place = chunk.keys.copy(), chunk.states.copy(), bisect_left(chunk.keys, key)
        del keys[place], states[place]
        if len(keys) < _CHUNK // 4 and end < len(self._chunks):
            # Else small chunks would pile up while states move about, and each costs every later change.
            behind = self._chunks[end]
            parts = _parts([*keys, *behind.keys], [*states, *behind.states])
            self._chunks[at : end + 1] = parts
            self._lows[at : end + 1] = [part.keys[0] for part in parts]
            return
        self._chunks[at], self._lows[at] = chunk.changed(keys, states, old, None), keys[0]

    def _insert(self, at: int, key: tuple[Any, ...], new: State) -> None:
        if not self._chunks:
            self._chunks, self._lows = [_Chunk([key], [new])], [key]
            return
        chunk = self._chunks[at]
        keys, states, place = chunk.keys.copy(), chunk.states.copy(), bisect_left(chunk.keys, key)
        keys.insert(place, key)
        states.insert(place, new)
        if len(keys) > 2 * _CHUNK:
            parts = _parts(keys, states)
            self._chunks[at : at + 1] = parts
            self._lows[at : at + 1] = [part.keys[0] for part in parts]
            return
        self._chunks[at], self._lows[at] = chunk.changed(keys, states, None, new), keys[0]


def _parts(keys: list[tuple[Any, ...]], states: list[State]) -> list[_Chunk]:
    """One chunk of them, or two halves where they are too many."""
    if len(keys) <= 2 * _CHUNK:
        return [_Chunk(keys, states)]
    return [_Chunk(keys[:_CHUNK], states[:_CHUNK]), _Chunk(keys[_CHUNK:], states[_CHUNK:])]


def _tops_with(tops: _Tops, new: State) -> _Tops:
    cpu, memory, whole, partial = tops
    if new.cpu <= cpu and new.memory <= memory and new.whole <= whole and new.partial <= partial:
        return tops
    return max(cpu, new.cpu), max(memory, new.memory), max(whole, new.whole), max(partial, new.partial)


def _tops_without(tops: _Tops, old: State, states: list[State]) -> _Tops:
    """Those of the states, among which `old` was: looked for only where it had the most."""
    cpu, memory, whole, partial = tops
    if old.cpu == cpu:
        cpu = max(map(_CPU, states))
    if old.memory == memory:
        memory = max(map(_MEMORY, states))
    # Many have as many devices: then the first of them is found soon.
    if whole and old.whole == whole and whole not in map(_WHOLE, states):
        whole = max(map(_WHOLE, states))
    if partial and old.partial == partial and partial not in map(_PARTIAL, states):
        partial = max(map(_PARTIAL, states))
    return cpu, memory, whole, partial


def _fits(state: State, need: Need, partial: bool) -> bool:
    if need.cpu > state.cpu or need.memory > state.memory:
        return False
    devices = room(state, need)
    return devices is not None and not (partial and state.devices[devices[0]].share == WHOLE)
