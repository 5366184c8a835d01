"""Where the records of a gate wait for a human, and how they get out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from sage.common.clock import Clock
from sage.common.errors import NotFoundError, SageError, UsageError
from sage.common.ids import new_id
from sage.kernel.plan import Gate
from sage.kernel.runtime.state import GONE, Untracked

__all__ = ["APPROVED", "Decision", "Inbox", "Inboxes", "Parked", "Place", "Reject", "RejectedError"]

APPROVED: Final[Any] = object()
"""The decision to send a record on as it is."""


@dataclass(frozen=True, slots=True)
class Reject:
    """The decision that a record goes no further."""

    reason: str = ""


class RejectedError(SageError):
    """A record was rejected at a gate, or nobody decided on it in time."""

    code = "rejected"
    type = "permission_error"
    status = 403


@dataclass(frozen=True, slots=True)
class Parked:
    """A record that waits for a decision; `since` and `until` are Unix seconds."""

    id: str
    item: Any
    since: float
    until: float


class Place(NamedTuple):
    """What is kept of a parked record: itself, since when it waits, its position and event time."""

    item: Any
    since: float
    position: int
    time: float = 0.0


class Decision(NamedTuple):
    """What became of a parked record: the value that goes on, or why it was rejected."""

    place: Place
    value: Any
    rejected: RejectedError | None = None


class Inbox:
    """The records of one gate. `decided` is called with every decision; the gate then lets it `leave`.

    `Stateful`: the records by their ids. One that is decided on and has not left yet is still part of it.
    """

    def __init__(self, spec: Gate, clock: Clock, decided: Callable[[str, Decision], None]) -> None:
        self.states: dict[str, Place] = {}
        self.dirty: set[str] = Untracked()
        self._settled: set[str] = set()
        self._spec = spec
        self._clock = clock
        self._decided = decided
        self._timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether no other record finds room."""
        return len(self.states) >= self._spec.limit

    @property
    def waiting(self) -> int:
        """How many records are not decided on."""
        return len(self.states) - len(self._settled)

    def park(self, item: Any, position: int = 0, time: float = 0.0) -> str:
        """Keep a record; returns its id."""
        ident = new_id("item")
        self.states[ident] = Place(item, self._clock.wall(), position, time)
        self.dirty.add(ident)
        self._arm()
        return ident

    def park_again(self, ident: str, item: Any, since: float) -> None:
        """Keep a record that had waited before, under its id and with its time."""
        self.states[ident] = Place(item, since, 0)
        self.states = dict(sorted(self.states.items(), key=_age))
        self.close()
        self._arm()

    def parked(self) -> list[Parked]:
        """What waits, the longest first."""
        timeout = self._spec.timeout
        return [Parked(ident, p.item, p.since, p.since + timeout) for ident, p in self._undecided()]

    def resolve(self, ident: str, value: Any) -> None:
        """Decide on a record; raises `NotFoundError` for one that does not wait here."""
        if ident not in self.states or ident in self._settled:
            some = ", ".join(found for found, _ in islice(self._undecided(), 5)) or "nothing"
            raise NotFoundError(
                f"inbox {self._spec.inbox!r} has nothing with the id {ident!r}; it has {some}.",
                hint="It was decided on, ran out of time, or its request is gone.",
            )
        if isinstance(value, Reject):
            why = f": {value.reason}" if value.reason else ""
            self._settle(ident, value, RejectedError(f"it was rejected in inbox {self._spec.inbox!r}{why}"))
        else:
            self._settle(ident, value)

    def leave(self, ident: str) -> None:
        """Forget a record: it goes on, or nobody wants it any more."""
        del self.states[ident]
        self._settled.discard(ident)
        self.dirty.add(ident)

    def expire(self) -> None:
        """Decide on what has run out of time; a timer calls this when it is due."""
        self.close()
        over = self._clock.wall() - self._spec.timeout
        for ident in [ident for ident, place in self._undecided() if place.since <= over]:
            if self._spec.on_timeout == "approve":
                self._settle(ident, APPROVED)
            else:
                text = f"nobody decided on it in inbox {self._spec.inbox!r} within {self._spec.timeout:g} s"
                self._settle(ident, None, RejectedError(text))
        self._arm()

    def close(self) -> None:
        """Let no more time run out."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def begin(self, states: Iterable[tuple[str, Place]], plain: None, /) -> None:  # noqa: ARG002
        """See `Stateful`. What ran out of time meanwhile does so at once."""
        self.states, self.dirty = dict(sorted(states, key=_age)), set()
        self._arm()

    def changes(self) -> Iterator[tuple[str, Any]]:
        """See `Stateful`."""
        changed, self.dirty = self.dirty, set()
        return ((ident, self.states.get(ident, GONE)) for ident in changed)

    def plain(self) -> None:
        """It has no other state."""

    def _undecided(self) -> Iterator[tuple[str, Place]]:
        return ((ident, place) for ident, place in self.states.items() if ident not in self._settled)

    def _settle(self, ident: str, value: Any, rejected: RejectedError | None = None) -> None:
        place = self.states[ident]
        self._settled.add(ident)
        self._decided(ident, Decision(place, place.item if value is APPROVED else value, rejected))

    def _arm(self) -> None:
        first = next(self._undecided(), None) if self._timer is None else None
        if first is not None:  # all have the same time, so the first is the next
            wait = max(0.0, first[1].since + self._spec.timeout - self._clock.wall())
            self._timer = asyncio.get_running_loop().call_later(wait, self.expire)


def _age(state: tuple[str, Place]) -> tuple[float, int]:
    return state[1].since, state[1].position


class Inboxes:
    """The inboxes of a job or run by name, with those of the flows that serve it."""

    def __init__(self) -> None:
        self._inboxes: dict[str, Inbox] = {}
        self.kept = False
        """Whether the requests whose records wait here are kept by checkpoints."""

    def add(self, name: str, inbox: Inbox) -> None:
        """Take the inbox of a gate in; raises `UsageError` where a service has one of that name."""
        if name in self._inboxes:
            raise UsageError(f"2 gates, one of them in a service, use the inbox {name!r}: rename one.")
        self._inboxes[name] = inbox

    def names(self) -> list[str]:
        """The inboxes there are."""
        return sorted(self._inboxes)

    def waiting(self) -> dict[str, int]:
        """How many records are not decided on, by inbox."""
        return {name: self._inboxes[name].waiting for name in self.names()}

    def parked(self, inbox: str) -> list[Parked]:
        """What waits in an inbox, the longest first."""
        return self.get(inbox).parked()

    def resolve(self, inbox: str, item_id: str, value: Any = APPROVED) -> None:
        """Send a parked record on: as it is, or with `value` in its place; or end its way with `Reject`."""
        self.get(inbox).resolve(item_id, value)

    def get(self, name: str) -> Inbox:
        """The inbox of that name; raises `NotFoundError` listing all."""
        if name not in self._inboxes:
            raise NotFoundError(
                f"there is no inbox {name!r}; there are: {', '.join(self.names()) or 'none'}."
            )
        return self._inboxes[name]

    def snapshot(self) -> dict[str, dict[str, Place]]:
        """What is parked, by inbox and id, for a job that has to outlive its process: see `restore`."""
        return {name: dict(inbox.states) for name, inbox in self._inboxes.items()}

    def restore(self, snapshot: Mapping[str, Mapping[str, Place]]) -> None:
        """Park what a `snapshot` holds, with its ids and times, before any request comes.

        Whoever waited for a reply is gone: what is sent on walks to the sinks, and its reply goes nowhere.
        Raises `UsageError` for a job with checkpoints, which takes its requests up again by itself.
        """
        if self.kept:
            raise UsageError("The checkpoints of this job park what had waited again: restore nothing.")
        for name, states in snapshot.items():
            self.get(name).begin(states.items(), None)

    def close(self) -> None:
        """The run is over."""
        for inbox in self._inboxes.values():
            inbox.close()
