"""Who has shown no sign of life for too long. Pure: the time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Beats", "Patience"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, in seconds, one may be silent: before its first word, while it does nothing, and at all.

    Work that shows is a sign of life too: a process that loads a library cannot speak for a while.
    """

    first: float = 60.0
    idle: float = 3.5
    longest: float = 60.0
    stall: float = 1.0


@dataclass(slots=True)
class _One:
    heard: float
    worked: float
    spoke: bool = False
    cpu: float | None = None


class Beats:
    """Those of which something is expected, by their names. Call `tick` several times within `idle`."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._known: dict[str, _One] = {}
        self._ticked: float | None = None

    def expect(self, name: str, now: float) -> None:
        """It begins."""
        self._known[name] = _One(now, now)

    def heard(self, name: str, now: float) -> None:
        """It said something."""
        if one := self._known.get(name):
            one.heard, one.spoke, one.cpu = now, True, None

    def worked(self, name: str, cpu: float, now: float) -> None:
        """It has used so many seconds of CPU time in all."""
        if one := self._known.get(name):
            if one.cpu is not None and cpu > one.cpu:
                one.worked = now
            one.cpu = cpu

    def forget(self, name: str) -> None:
        """Nothing is expected any more."""
        self._known.pop(name, None)

    def quiet(self, now: float) -> list[str]:
        """Those whose work is to be looked at: they have said nothing for half of `idle`."""
        half = self._patience.idle / 2
        return [name for name, one in self._known.items() if one.spoke and now - one.heard >= half]

    def tick(self, now: float) -> list[str]:
        """Those that are lost. If nobody asked for a while it was us who were not there, and nobody is."""
        late = self._ticked is not None and now - self._ticked > self._patience.stall
        self._ticked = now
        if late:
            for one in self._known.values():
                one.heard = one.worked = now
        return [name for name, one in self._known.items() if self._lost(one, now)]

    def _lost(self, one: _One, now: float) -> bool:
        if not one.spoke:
            return now - one.heard >= self._patience.first
        idle = now - max(one.heard, one.worked) >= self._patience.idle
        return idle or now - one.heard >= self._patience.longest
