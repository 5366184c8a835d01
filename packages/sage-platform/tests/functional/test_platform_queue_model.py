"""Queues against a model: any sequence of steps gives what a plain list would."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sage.common.errors import OverloadedError
from sage.common.testing import VirtualClock
from sage.platform.queue import Lease, LeaseLostError, Message, Queue, QueueOptions, QueueStats
from sage.platform.queue.memory import MemoryQueue
from sage.platform.queue.sqlite import SqliteQueue
from sage.platform.storage.sqlite import Database

OPTIONS = QueueOptions(max_items=6, max_bytes=12, max_attempts=2, patience=0, remember=8)
MESSAGES = st.builds(
    Message,
    body=st.binary(max_size=3),
    priority=st.sampled_from([0, 1, 255]),
    delay=st.sampled_from([0.0, 0.0, 3.0, 7.0]),
    key=st.sampled_from([None, None, None, "k", "l", ""]),
)


@dataclass
class Item:
    """A message as the model sees it: free if it has no `due`."""

    id: str
    place: int
    message: Message
    due: float | None = None
    leased: bool = False
    dead: bool = False
    attempts: int = 0
    reason: str = ""


class QueueMachine(RuleBasedStateMachine):
    """The model: a list of items, and what time does to them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.runner = asyncio.Runner()
        self.queue: Queue
        self.items: list[Item] = []
        self.leases: list[Lease] = []
        self.keys: dict[str, tuple[str, float]] = {}
        self.places = 0

    async def open(self) -> Queue:
        return MemoryQueue("test", OPTIONS, clock=self.clock)

    @initialize()
    def begin(self) -> None:
        self.queue = self.runner.run(self.open())

    def teardown(self) -> None:
        self.runner.close()

    @property
    def alive(self) -> list[Item]:
        return [item for item in self.items if not item.dead]

    def fail(self, item: Item, reason: str, delay: float) -> None:
        item.leased, item.reason, item.due = False, reason, self.clock.wall() + delay if delay else None
        if item.attempts >= OPTIONS.max_attempts:
            item.dead, item.due = True, None

    def held(self, lease: Lease) -> Item | None:
        found = (i for i in self.items if i.id == lease.id and i.leased and i.attempts == lease.attempts)
        return next(found, None)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        now = self.clock.wall()
        for item in self.alive:
            if item.due is not None and item.due <= now:
                if item.leased:
                    self.leases = [lease for lease in self.leases if lease.id != item.id]
                    self.fail(item, "the lease ended", 0)
                item.due = None
        self.keys = {key: (ident, until) for key, (ident, until) in self.keys.items() if until > now}

    @rule(messages=st.lists(MESSAGES, min_size=1, max_size=4))
    def put(self, messages: list[Message]) -> None:
        new: list[Message] = []
        for message in messages:
            if message.key is None or message.key not in {*self.keys, *(m.key for m in new)}:
                new.append(message)
        size = sum(len(m.body) for m in [*new, *(i.message for i in self.alive)])
        if new and (len(self.alive) + len(new) > OPTIONS.max_items or size > OPTIONS.max_bytes):
            with pytest.raises(OverloadedError):
                self.runner.run(self.queue.put_many(messages))
            return
        ids = self.runner.run(self.queue.put_many(messages))
        for message, ident in zip(messages, ids, strict=True):
            if message.key is not None and message.key in self.keys:
                assert self.keys[message.key][0] == ident
                continue
            assert ident not in {item.id for item in self.items}
            self.places += 1
            due = self.clock.wall() + message.delay if message.delay else None
            self.items.append(Item(ident, self.places, message, due))
            if message.key is not None:
                self.keys[message.key] = (ident, float("inf"))

    @rule(limit=st.integers(1, 4), seconds=st.sampled_from([1.0, 5.0]))
    def get(self, limit: int, seconds: float) -> None:
        ready = [item for item in self.alive if item.due is None]
        ready.sort(key=lambda item: (-item.message.priority, item.place))
        leases = self.runner.run(self.queue.get(limit, wait=0, lease=seconds))
        assert [lease.id for lease in leases] == [item.id for item in ready[:limit]]
        for lease, item in zip(leases, ready, strict=False):
            item.leased, item.due, item.attempts = True, self.clock.wall() + seconds, item.attempts + 1
            assert (lease.body, lease.priority) == (item.message.body, item.message.priority)
            assert (lease.attempts, lease.reason) == (item.attempts, item.reason)
            assert lease.leased_until == item.due
        self.leases += leases

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), what=st.sampled_from(["ack", "nack", "nack later", "extend", "ack twice"]))
    def settle(self, data: st.DataObject, what: str) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        item = self.held(lease)
        assert item is not None
        if what == "extend":
            longer = self.runner.run(self.queue.extend(lease, 6))
            self.leases[self.leases.index(lease)] = longer
            item.due = self.clock.wall() + 6
            assert longer.leased_until == item.due
            return
        self.leases.remove(lease)
        if what.startswith("nack"):
            delay = 2.0 if what == "nack later" else 0.0
            self.runner.run(self.queue.nack(lease, delay=delay, reason=what))
            self.fail(item, what, delay)
        else:
            self.runner.run(self.queue.ack(lease))
            self.items.remove(item)
            if item.message.key is not None:
                self.keys[item.message.key] = (item.id, self.clock.wall() + OPTIONS.remember)
        for late in (self.queue.ack, self.queue.nack):
            with pytest.raises(LeaseLostError):
                self.runner.run(late(lease))

    @rule(all_of_them=st.booleans())
    def requeue(self, all_of_them: bool) -> None:
        dead = [item for item in self.items if item.dead]
        chosen = dead if all_of_them else dead[:1]
        if dead or all_of_them:
            ids = [] if all_of_them else [item.id for item in chosen]
            assert self.runner.run(self.queue.requeue(*ids)) == len(chosen)
        for item in chosen:
            item.dead, item.attempts, item.reason = False, 0, ""

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "queue"):
            return
        ready = sum(item.due is None for item in self.alive)
        leased = sum(item.leased for item in self.alive)
        expected = QueueStats(
            ready=ready,
            leased=leased,
            delayed=len(self.alive) - ready - leased,
            dead=len(self.items) - len(self.alive),
            bytes=sum(len(item.message.body) for item in self.alive),
        )
        assert self.runner.run(self.queue.stats()) == expected
        letters = self.runner.run(self.queue.dead_letters())
        dead = [(i.id, i.message.body, i.attempts, i.reason) for i in self.items if i.dead]
        assert [(le.id, le.body, le.attempts, le.reason) for le in letters] == dead


class SqliteMachine(QueueMachine):
    """The same, and the database may be closed and opened at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database: Database | None = None

    async def open(self) -> Queue:
        if self.database is not None:
            await self.database.close()
        self.database = Database(Path(self.folder.name) / "queue.db")
        return await SqliteQueue.open(self.database, "test", OPTIONS, clock=self.clock)

    @rule()
    def reopen(self) -> None:
        self.queue = self.runner.run(self.open())

    def teardown(self) -> None:
        if self.database is not None:
            self.runner.run(self.database.close())
        super().teardown()
        self.folder.cleanup()


TestMemoryModel = QueueMachine.TestCase
TestMemoryModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestSqliteModel = SqliteMachine.TestCase
TestSqliteModel.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
