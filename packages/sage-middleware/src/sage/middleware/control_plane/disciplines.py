"""In what order the requests of a lane wait: by a key, fair between tenants, in strict levels.

Each fits `policy.Discipline`. What is taken out stays in the heap, marked, until it comes up: so everything
costs O(log n), wherever the one that leaves stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from math import floor
from typing import Any, Final

from sage.middleware.control_plane.policy import Discipline
from sage.middleware.control_plane.records import Record

__all__ = ["PATIENCE_S", "QUANTUM_S", "Accounts", "Fair", "Fifo", "Keyed", "Ranked"]

PATIENCE_S: Final = 30.0  # what is due whenever goes as if it were due so long after its arrival
QUANTUM_S: Final = 0.05  # engine-seconds that a tenant of weight 1 gets in a round
_SLACK: Final = 64  # entries that may be out of date before it is worth tidying up


def _waits(record: Record) -> bool:
    """Whether some of it waits; an ended request never comes out again, whoever forgot to remove it."""
    return record.outcome == "waiting" or (record.outcome == "running" and record.waiting_units > 0)


class Keyed:
    """By `key(record)`, the smaller first and the earlier among equals.

    The key is read when the record is pushed. One that ages need not change with the time: what falls by `a`
    for each second of waiting is ordered like `key + a * record.arrived`.
    """

    def __init__(self, key: Callable[[Record], Any]) -> None:
        self._key = key
        self._heap: list[tuple[Any, int, int, Record]] = []
        self._entries: dict[int, tuple[Any, int, int, Record]] = {}  # by sequence
        self._pushes = count()  # tells an entry from a stale one of the same record

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, record: Record, now: float) -> None:  # noqa: ARG002
        """Let it wait at the place that its key and its arrival give it. Pushed twice it waits once."""
        if len(self._heap) > _SLACK + 2 * len(self._entries):  # cancelled ones deep in the heap
            self._heap = list(self._entries.values())
            heapify(self._heap)
        entry = (self._key(record), record.sequence, next(self._pushes), record)
        self._entries[record.sequence] = entry
        heappush(self._heap, entry)

    def remove(self, record: Record) -> None:
        """Take it out, wherever it stands; one that is not here changes nothing."""
        self._entries.pop(record.sequence, None)

    def head(self, now: float) -> Record | None:  # noqa: ARG002
        """The one with the smallest key."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            record = entry[3]
            if entries.get(entry[1]) is entry:
                if _waits(record):
                    return record
                del entries[entry[1]]
            heappop(heap)
        return None

    def key(self, record: Record, now: float) -> tuple[Any, int]:  # noqa: ARG002
        """Its key and its place among equals."""
        entry = self._entries.get(record.sequence)
        return (self._key(record), record.sequence) if entry is None else (entry[0], entry[1])


class Fifo(Keyed):
    """By arrival."""

    def __init__(self) -> None:
        super().__init__(_arrival)


def _arrival(record: Record) -> int:
    return record.sequence


class _Account:
    """What a tenant has used of the engines of one model: engine-seconds divided by its weight."""

    __slots__ = ("lanes", "model", "position", "used", "weight")

    def __init__(self, model: str, weight: float, used: float) -> None:
        self.model = model
        self.weight = weight
        self.used = used
        self.position = 0  # in the round
        self.lanes: list[Fair] = []  # where it waits

    @property
    def round(self) -> int:
        """The round in which it has credit left."""
        return floor(self.used / QUANTUM_S)


class Accounts:
    """What each tenant has used, shared by all disciplines of one policy.

    Deficit round robin (Shreedhar and Varghese 1995) in the form that serves a tenant while its credit is
    above zero and lets the last request overdraw it (as in RFC 8290): a round grants `QUANTUM_S` times its
    weight. Instead of walking through the rounds, the one in which a tenant is next in credit is computed
    from what it used. Engines serve one model, so each model has rounds of its own: who waits for one gains
    and loses nothing at another.
    """

    __slots__ = (
        "_accounts",
        "_bound",
        "_positions",
        "_served",
        "_weights",
    )

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._served: dict[str, float] = {}  # each model's: the most that one had used when it was served
        self._positions = count()
        self._bound = _SLACK

    def used(self, model: str, tenant: str) -> float:
        """Engine-seconds, divided by its weight, at which a tenant's account stands.

        Only differences mean something: whoever comes back from idleness starts where the others are.
        """
        return self._of(model, tenant).used

    def charge(self, record: Record, seconds: float) -> None:
        """Its tenant pays `seconds` for what is sent of it; `record.charged` grows by that."""
        account = self.of(record)
        if account.used > self._served.get(account.model, 0.0):
            self._served[account.model] = account.used
        record.charged += seconds
        _spend(account, seconds)

    def settle(self, record: Record, seconds: float) -> None:
        """It has ended and took `seconds` of engines: what was not charged is paid, the rest paid back."""
        if seconds != record.charged:
            _spend(self.of(record), seconds - record.charged)
            record.charged = seconds

    def enter(self, record: Record, lane: Fair) -> _Account:
        """The account of the tenant of `record`, which waits in `lane` from now on."""
        account = self.of(record)
        if not account.lanes:  # it was idle: debts stay, old credit is lost, its turn comes last
            account.used = max(account.used, self._round(account.model) * QUANTUM_S)
            account.position = next(self._positions)
        if lane not in account.lanes:
            account.lanes.append(lane)
        return account

    def of(self, record: Record) -> _Account:
        """The account of the tenant of `record`."""
        job = record.job
        return self._accounts.get((job.model, job.tenant)) or self._of(job.model, job.tenant)

    def _round(self, model: str) -> int:
        """The round that a model's engines are in."""
        return floor(self._served.get(model, 0.0) / QUANTUM_S)

    def _of(self, model: str, tenant: str) -> _Account:
        account = self._accounts.get((model, tenant))
        if account is None:
            if len(self._accounts) >= self._bound:
                self._forget_idle()
            start = self._round(model) * QUANTUM_S
            account = self._accounts[model, tenant] = _Account(model, self._weights.get(tenant, 1.0), start)
        return account

    def _forget_idle(self) -> None:
        """Idle accounts without debt are as good as new ones."""
        self._accounts = {
            key: account
            for key, account in self._accounts.items()
            if account.lanes or account.round > self._round(account.model)
        }
        self._bound = _SLACK + 2 * len(self._accounts)


def _spend(account: _Account, seconds: float) -> None:
    if not account.lanes:  # it waits nowhere, so that nobody asks for its round
        account.used += seconds / account.weight
        return
    before = account.round
    account.used += seconds / account.weight
    if account.round != before:
        for lane in account.lanes:
            lane.moved(account)


class Fair:
    """Tenants share in predicted engine-seconds by weight; `inner` orders the requests of each one.

    `accounts` is that of the policy, which charges and settles there.
    """

    def __init__(self, accounts: Accounts, inner: Callable[[], Discipline]) -> None:
        self._accounts = accounts
        self._inner = inner
        self._queues: dict[_Account, Discipline] = {}
        self._heap: list[tuple[int, int, int, _Account]] = []
        self._entries: dict[_Account, tuple[int, int, int, _Account]] = {}
        self._pushes = count()  # tells an entry from a stale one of the same account

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def push(self, record: Record, now: float) -> None:
        """Let it wait behind those of its tenant that `inner` puts before it."""
        account = self._accounts.enter(record, self)
        queue = self._queues.get(account)
        if queue is None:
            queue = self._queues[account] = self._inner()
            self.moved(account)
        queue.push(record, now)

    def remove(self, record: Record) -> None:
        """Take it out, wherever it stands; one that is not here changes nothing."""
        account = self._accounts.of(record)
        queue = self._queues.get(account)
        if queue is not None:
            queue.remove(record)
            if not queue:
                self._leave(account)

    def head(self, now: float) -> Record | None:
        """The first of the tenant that is next in credit."""
        while self._heap:
            entry = self._heap[0]
            account = entry[3]
            if self._entries.get(account) is entry:
                record = self._queues[account].head(now)
                if record is not None:
                    return record
                self._leave(account)
            heappop(self._heap)
        return None

    def key(self, record: Record, now: float) -> tuple[int, int, Any]:
        """Its tenant's round and place in it, then its key among that tenant's."""
        account = self._accounts.of(record)
        return account.round, account.position, self._queues[account].key(record, now)

    def moved(self, account: _Account) -> None:
        """Called by the accounts: what the tenant has used has changed, and so has its turn."""
        if len(self._heap) > _SLACK + 2 * len(self._entries):
            self._heap = list(self._entries.values())
            heapify(self._heap)
        entry = (account.round, account.position, next(self._pushes), account)
        self._entries[account] = entry
        heappush(self._heap, entry)

    def _leave(self, account: _Account) -> None:
        del self._queues[account], self._entries[account]
        account.lanes.remove(self)


class Ranked:
    """Strict levels: nothing of a higher `rank(record)` comes out while something of a lower one waits.

    Nothing here lets the higher ones age, so that they may starve; `Keyed` with an ageing key does not.
    """

    def __init__(self, rank: Callable[[Record], int], inner: Callable[[], Discipline]) -> None:
        self._rank = rank
        self._inner = inner
        self._levels: dict[int, Discipline] = {}
        self._order: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def push(self, record: Record, now: float) -> None:
        """Let it wait in its level."""
        self._level(record).push(record, now)

    def remove(self, record: Record) -> None:
        """Take it out, wherever it stands; one that is not here changes nothing."""
        self._level(record).remove(record)

    def head(self, now: float) -> Record | None:
        """The first of the lowest rank that has one."""
        for rank in self._order:
            record = self._levels[rank].head(now)
            if record is not None:
                return record
        return None

    def key(self, record: Record, now: float) -> tuple[int, Any]:
        """Its rank, then its key in that level."""
        return self._rank(record), self._level(record).key(record, now)

    def _level(self, record: Record) -> Discipline:
        rank = self._rank(record)
        level = self._levels.get(rank)
        if level is None:
            level = self._levels[rank] = self._inner()
            self._order = sorted(self._levels)
        return level
