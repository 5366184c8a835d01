"""The conformance suite of the queue port, and what tests of queues use.

Subclass `QueueConformance`, give it a fixture `live` (a `LiveQueue`), and pytest runs every test on it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from sage.common.errors import BadRequestError, OverloadedError, RequestTooLargeError
from sage.platform.queue.port import Lease, LeaseLostError, Message, Queue, QueueOptions

__all__ = ["LiveQueue", "QueueConformance", "drain"]


@dataclass
class LiveQueue:
    """A kind of queue under test: how to make an empty one, and how to let its time pass.

    `short` is a lease or delay in seconds that `after(short)` outlives; a virtual clock makes it free.
    """

    make: Callable[[QueueOptions], Awaitable[Queue]]
    after: Callable[[float], Awaitable[None]]
    short: float = 10.0


async def drain(queue: Queue, *, lease: float = 30.0) -> list[Lease]:
    """Lease all that is ready, acknowledge it and return it in the order it came."""
    found: list[Lease] = []
    while leases := await queue.get(3, wait=0, lease=lease):
        await queue.ack(*leases)
        found += leases
    return found


def _bodies(leases: list[Lease]) -> list[bytes]:
    return [lease.body for lease in leases]


class QueueConformance:
    """What every queue does."""

    @pytest.fixture
    def live(self) -> LiveQueue:
        """The subclass says what is tested."""
        raise LookupError("A subclass of QueueConformance needs a fixture `live`.")

    async def test_is_a_queue(self, live: LiveQueue) -> None:
        """It has the ten methods of the port."""
        assert isinstance(await live.make(QueueOptions()), Queue)

    async def test_comes_in_the_order_it_was_put(self, live: LiveQueue) -> None:
        """It comes in the order it was put."""
        queue = await live.make(QueueOptions())
        ids = [await queue.put(b"a"), *await queue.put_many([Message(b"b"), Message(b"c")])]
        ids.append(await queue.put(b""))
        found = await drain(queue)
        assert _bodies(found) == [b"a", b"b", b"c", b""]
        assert [lease.id for lease in found] == ids
        assert len(set(ids)) == 4
        assert await queue.put_many([]) == []

    async def test_higher_priority_first(self, live: LiveQueue) -> None:
        """Higher priority first."""
        queue = await live.make(QueueOptions())
        for body, priority in ((b"low", 0), (b"high", 255), (b"mid 1", 7), (b"mid 2", 7)):
            await queue.put(body, priority=priority)
        found = await drain(queue)
        assert _bodies(found) == [b"high", b"mid 1", b"mid 2", b"low"]
        assert [lease.priority for lease in found] == [255, 7, 7, 0]

    async def test_a_leased_message_is_nobody_elses(self, live: LiveQueue) -> None:
        """A leased message is nobody else's."""
        queue = await live.make(QueueOptions())
        await queue.put(b"x")
        (lease,) = await queue.get()
        assert lease.attempts == 1
        assert lease.reason == ""
        assert await queue.get(wait=0) == []
        stats = await queue.stats()
        assert (stats.ready, stats.delayed, stats.leased, stats.dead, stats.bytes) == (0, 0, 1, 0, 1)
        await queue.ack(lease)
        assert (await queue.stats()).items == 0
        assert (await queue.stats()).bytes == 0

    async def test_a_delayed_message_waits(self, live: LiveQueue) -> None:
        """A delayed message waits."""
        queue = await live.make(QueueOptions())
        await queue.put(b"later", delay=live.short)
        await queue.put(b"now")
        assert (await queue.stats()).delayed == 1
        assert _bodies(await drain(queue)) == [b"now"]
        await live.after(live.short)
        assert _bodies(await drain(queue)) == [b"later"]

    async def test_a_lease_that_ends_gives_the_message_back(self, live: LiveQueue) -> None:
        """A lease that ends gives the message back."""
        queue = await live.make(QueueOptions())
        await queue.put_many([Message(b"x"), Message(b"y")])
        (first,) = await queue.get(lease=live.short)
        await live.after(live.short)
        with pytest.raises(LeaseLostError, match=first.id):
            await queue.ack(first)
        (again, _) = await queue.get(2)
        assert (again.id, again.body, again.attempts) == (first.id, b"x", 2)
        assert "lease ended" in again.reason
        assert again.token > first.token
        for late in (queue.ack(first), queue.nack(first), queue.extend(first, 5)):
            with pytest.raises(LeaseLostError, match=first.id):
                await late
        await queue.ack(again)

    async def test_extend_keeps_the_lease(self, live: LiveQueue) -> None:
        """Extend keeps the lease."""
        queue = await live.make(QueueOptions())
        await queue.put(b"x")
        (lease,) = await queue.get(lease=live.short)
        longer = await queue.extend(lease, 60 + live.short)
        assert longer.leased_until > lease.leased_until
        assert (longer.id, longer.body, longer.attempts) == (lease.id, b"x", 1)
        await live.after(live.short)
        assert await queue.get(wait=0) == []
        await queue.ack(longer)
        assert (await queue.stats()).items == 0

    async def test_ack_does_what_it_can(self, live: LiveQueue) -> None:
        """Ack does what it can."""
        queue = await live.make(QueueOptions())
        await queue.put_many([Message(b"x"), Message(b"y")])
        first, second = await queue.get(2)
        await queue.ack(first)
        with pytest.raises(LeaseLostError, match=first.id):
            await queue.ack(first, second)
        assert (await queue.stats()).items == 0
        await queue.ack()

    async def test_nack_says_why_and_when(self, live: LiveQueue) -> None:
        """Nack says why and when."""
        queue = await live.make(QueueOptions())
        await queue.put_many([Message(b"x"), Message(b"y")])
        (lease,) = await queue.get()
        await queue.nack(lease, reason="no luck")
        (again,) = await queue.get()
        assert (again.body, again.reason, again.attempts) == (b"x", "no luck", 2)
        await queue.nack(again, delay=live.short, reason="still none")
        assert _bodies(await drain(queue)) == [b"y"]
        await live.after(live.short)
        (last,) = await queue.get()
        assert (last.body, last.reason, last.attempts) == (b"x", "still none", 3)

    async def test_too_many_attempts_end_in_the_dead_letters(self, live: LiveQueue) -> None:
        """Too many attempts end in the dead letters."""
        queue = await live.make(QueueOptions(max_attempts=2))
        ident = await queue.put(b"poison", priority=3)
        await queue.nack((await queue.get())[0], reason="first")
        await queue.get(lease=live.short)
        assert await queue.dead_letters() == []
        await live.after(live.short)
        (dead,) = await queue.dead_letters()
        assert (dead.id, dead.body, dead.priority, dead.attempts) == (ident, b"poison", 3, 2)
        assert "lease ended" in dead.reason
        assert await queue.get(wait=0) == []
        stats = await queue.stats()
        assert (stats.dead, stats.items, stats.bytes) == (1, 0, 0)

    async def test_the_last_attempt_has_no_delay(self, live: LiveQueue) -> None:
        """What is dead stays dead, whatever delay the last nack asked for."""
        queue = await live.make(QueueOptions(max_attempts=1))
        await queue.put(b"x")
        await queue.nack((await queue.get())[0], delay=live.short, reason="enough")
        assert (await queue.stats()).dead == 1
        await live.after(live.short)
        assert await queue.get(wait=0) == []
        assert [letter.reason for letter in await queue.dead_letters()] == ["enough"]

    async def test_dead_letters_come_back_when_told(self, live: LiveQueue) -> None:
        """Dead letters come back when told."""
        queue = await live.make(QueueOptions(max_attempts=1))
        ids = await queue.put_many([Message(b"a"), Message(b"b"), Message(b"c")])
        for lease in await queue.get(3):
            await queue.nack(lease, reason="why not")
        assert [letter.id for letter in await queue.dead_letters()] == ids
        assert [letter.id for letter in await queue.dead_letters(1)] == ids[:1]
        assert await queue.requeue("no such id") == 0
        assert await queue.requeue(ids[1]) == 1
        assert await queue.requeue(ids[1]) == 0
        (lease,) = await queue.get()
        assert (lease.body, lease.attempts, lease.reason) == (b"b", 1, "")
        await queue.ack(lease)
        assert await queue.requeue() == 2
        assert (await queue.stats()).bytes == 2
        assert sorted(_bodies(await drain(queue))) == [b"a", b"c"]

    async def test_one_key_is_one_message(self, live: LiveQueue) -> None:
        """One key is one message."""
        queue = await live.make(QueueOptions(remember=live.short, max_items=3))
        first, second, third = await queue.put_many(
            [Message(b"1", key="k"), Message(b"2", key="k"), Message(b"3", key="other")]
        )
        plain = await queue.put(b"4")
        assert first == second
        assert len({first, third, plain}) == 3
        assert await queue.put(b"5", key="k") == first  # the queue is full, and this needs no room
        assert _bodies(await drain(queue)) == [b"1", b"3", b"4"]
        assert await queue.put(b"6", key="k") == first
        assert await queue.get(wait=0) == []
        await live.after(live.short)
        assert await queue.put(b"7", key="k") != first
        assert _bodies(await drain(queue)) == [b"7"]

    async def test_a_full_queue_refuses_after_its_patience(self, live: LiveQueue) -> None:
        """A full queue refuses after its patience."""
        queue = await live.make(QueueOptions(max_items=2, max_bytes=10, patience=0))
        await queue.put_many([Message(b"12345"), Message(b"1234")])
        with pytest.raises(OverloadedError, match="full") as caught:
            await queue.put(b"")
        assert caught.value.retry_after
        (lease,) = await queue.get()
        with pytest.raises(OverloadedError):
            await queue.put(b"")  # what is leased is still there
        await queue.ack(lease)
        with pytest.raises(OverloadedError):
            await queue.put(b"1234567")
        with pytest.raises(OverloadedError):
            await queue.put_many([Message(b"1"), Message(b"2")])
        await queue.put(b"123456")
        assert (await queue.stats()).bytes == 10

    async def test_a_put_waits_for_room(self, live: LiveQueue) -> None:
        """A put waits for room."""
        queue = await live.make(QueueOptions(max_items=1))
        await queue.put(b"1")
        waiting = asyncio.create_task(queue.put(b"2"))
        (lease,) = await queue.get()
        assert not waiting.done()
        await queue.ack(lease)
        await asyncio.wait_for(waiting, 20)
        assert _bodies(await drain(queue)) == [b"2"]

    async def test_what_never_fits_is_refused_at_once(self, live: LiveQueue) -> None:
        """What never fits is refused at once."""
        queue = await live.make(QueueOptions(max_items=2, max_bytes=10))
        with pytest.raises(RequestTooLargeError, match="11 bytes"):
            await queue.put(b"12345678901")
        with pytest.raises(RequestTooLargeError, match="3 messages"):
            await queue.put_many([Message(b"")] * 3)
        for bad in (Message(b"", priority=256), Message(b"", priority=-1), Message(b"", delay=-1)):
            with pytest.raises(BadRequestError, match="valid is"):
                await queue.put_many([bad])
        with pytest.raises(BadRequestError, match="valid is"):
            await queue.put(b"", delay=float("nan"))
        for limit, lease in ((0, 1.0), (1, 0.0), (1, -1.0), (1, float("inf"))):
            with pytest.raises(BadRequestError, match="valid is"):
                await queue.get(limit, wait=0, lease=lease)
        assert (await queue.stats()).items == 0

    async def test_a_get_waits_for_a_message(self, live: LiveQueue) -> None:
        """A get waits for a message."""
        queue = await live.make(QueueOptions())
        waiting = [asyncio.create_task(queue.get()) for _ in range(2)]
        await queue.put(b"x")
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        assert len(done) == 1
        await queue.put(b"y")
        found = [(await asyncio.wait_for(task, 20))[0].body for task in waiting]
        assert sorted(found) == [b"x", b"y"]
        assert await queue.get(wait=0.01) == []

    async def test_a_cancelled_get_leaves_no_lease(self, live: LiveQueue) -> None:
        """A cancelled get leaves no lease."""
        queue = await live.make(QueueOptions())
        for turns in range(12):
            waiting = asyncio.create_task(queue.get())
            for _ in range(turns):
                await asyncio.sleep(0)
            await queue.put(b"x")
            waiting.cancel()
            (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
            if isinstance(outcome, list):
                await queue.ack(*outcome)
            else:
                (lease,) = await queue.get(wait=5)
                assert lease.attempts == 1
                await queue.ack(lease)
        assert (await queue.stats()).items == 0

    async def test_each_message_has_one_consumer(self, live: LiveQueue) -> None:
        """Eight consumers and four producers at once: nothing is lost, nothing is leased twice."""
        queue = await live.make(QueueOptions(max_items=40))
        total, held, seen = 200, set[str](), Counter[bytes]()
        everything = asyncio.Event()

        async def consume(number: int) -> None:
            while True:
                for lease in await queue.get(1 + number % 3):
                    assert lease.id not in held
                    held.add(lease.id)
                    await asyncio.sleep(0)
                    if lease.attempts == 1 and lease.body.endswith(b"7"):
                        held.remove(lease.id)
                        await queue.nack(lease)
                        continue
                    seen[lease.body] += 1
                    held.remove(lease.id)
                    await queue.ack(lease)
                if sum(seen.values()) == total:
                    everything.set()

        async def produce(number: int) -> None:
            for place in range(0, total // 4, 5):
                bodies = [b"%d-%d" % (number, place + step) for step in range(5)]
                await queue.put_many([Message(body, priority=number % 2) for body in bodies])

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            consumers = [group.create_task(consume(number)) for number in range(8)]
            for number in range(4):
                group.create_task(produce(number))
            await everything.wait()
            for consumer in consumers:
                consumer.cancel()
        assert len(seen) == total
        assert set(seen.values()) == {1}
        assert (await queue.stats()).items == 0
