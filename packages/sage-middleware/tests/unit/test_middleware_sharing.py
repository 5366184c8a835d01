"""Texts in flight: each is computed once, whatever becomes of those who asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.middleware.control_plane.calls import Vector
from sage.middleware.control_plane.sharing import TextsInFlight
from sage.middleware.testing.virtual import VirtualLoop, virtual


class Caller:
    """Asks for texts, and takes `seconds` for what it has to compute itself."""

    def __init__(self, texts: TextsInFlight, seconds: float = 1.0, *, fails: bool = False) -> None:
        self.texts = texts
        self.seconds = seconds
        self.fails = fails
        self.computed: list[list[bytes]] = []
        self.waits: list[bool] = []

    async def ask(self, key: str, wanted: Sequence[bytes]) -> dict[bytes, Vector]:
        return await self.texts.vectors(key, wanted, self._compute, on_wait=self.waits.append)

    async def _compute(self, texts: list[bytes]) -> list[Vector]:
        self.computed.append(texts)
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise ValueError("no")
        return [Vector(msgspec.Raw(text), 1) for text in texts]


@virtual
async def test_what_is_in_flight_is_waited_for() -> None:
    texts = TextsInFlight()
    first, second = Caller(texts), Caller(texts)
    one = asyncio.create_task(first.ask("k", [b"a", b"b"]))
    await asyncio.sleep(0.5)
    found = await second.ask("k", [b"b", b"c"])
    assert (first.computed, second.computed) == ([[b"a", b"b"]], [[b"c"]])
    assert set(found) >= {b"b", b"c"}
    assert set(await one) == {b"a", b"b"}
    assert len(texts) == 0


@virtual
async def test_who_waits_says_so() -> None:
    texts = TextsInFlight()
    first, second = Caller(texts), Caller(texts)
    one = asyncio.create_task(first.ask("k", [b"a"]))
    await asyncio.sleep(0.5)
    two = asyncio.create_task(second.ask("k", [b"a"]))
    await asyncio.sleep(0.1)
    assert second.waits == [True]
    await asyncio.gather(one, two)
    assert second.waits == [True, False]


@virtual
async def test_another_key_is_another_text() -> None:
    texts = TextsInFlight()
    callers = [Caller(texts), Caller(texts)]
    await asyncio.gather(*(caller.ask(key, [b"a"]) for caller, key in zip(callers, "kl", strict=True)))
    assert [caller.computed for caller in callers] == [[[b"a"]], [[b"a"]]]


@pytest.mark.parametrize("how", ["fails", "cancelled"])
@virtual
async def test_of_those_that_waited_in_vain_one_computes_it_for_all(how: str) -> None:
    texts = TextsInFlight()
    first = Caller(texts, fails=how == "fails")
    others = [Caller(texts), Caller(texts)]
    one = asyncio.create_task(first.ask("k", [b"a"]))
    await asyncio.sleep(0.5)
    rest = [asyncio.create_task(caller.ask("k", [b"a"])) for caller in others]
    await asyncio.sleep(0.1)
    if how == "cancelled":
        one.cancel()
    results = await asyncio.gather(one, *rest, return_exceptions=True)
    assert isinstance(results[0], BaseException)
    assert sorted(len(caller.computed) for caller in others) == [0, 1]
    assert results[1] == results[2] == {b"a": Vector(msgspec.Raw(b"a"), 1)}
    assert len(texts) == 0


@virtual
async def test_what_fails_elsewhere_while_one_computes_its_own_is_computed_then() -> None:
    texts = TextsInFlight()
    first, second = Caller(texts, seconds=1.0, fails=True), Caller(texts, seconds=2.0)
    one = asyncio.create_task(first.ask("k", [b"a"]))
    await asyncio.sleep(0.5)
    assert set(await second.ask("k", [b"a", b"b"])) == {b"a", b"b"}
    assert second.computed == [[b"b"], [b"a"]]
    await asyncio.gather(one, return_exceptions=True)


@virtual
async def test_a_cancelled_waiter_disturbs_nobody() -> None:
    texts = TextsInFlight()
    first, second, third = Caller(texts), Caller(texts), Caller(texts)
    tasks = [asyncio.create_task(caller.ask("k", [b"a"])) for caller in (first, second, third)]
    await asyncio.sleep(0.5)
    tasks[1].cancel()
    assert await tasks[0] == await tasks[2]
    assert (second.computed, third.computed) == ([], [])


def test_what_one_call_computes_no_other_takes_off_with() -> None:
    texts = TextsInFlight()
    flight = texts.take_off("k", [b"a", b"b"])
    assert flight is not None
    assert texts.take_off("k", [b"c", b"b"]) is None
    assert texts.take_off("k", [b"c", b"c"]) is None
    assert len(texts) == 2  # of what was refused nothing has begun
    other, same = texts.take_off("k", [b"c"]), texts.take_off("l", [b"a"])
    assert other is not None
    assert same is not None
    for one in (flight, other, same):
        texts.land(one)
    assert len(texts) == 0


@pytest.mark.parametrize("fails", [False, True])
@virtual
async def test_who_waits_for_what_took_off_without_a_task_gets_its_vectors_or_computes_them(
    fails: bool,
) -> None:
    texts = TextsInFlight()
    flight = texts.take_off("k", [b"a"])
    assert flight is not None
    caller = Caller(texts)
    waiting = asyncio.create_task(caller.ask("k", [b"a", b"b"]))
    await asyncio.sleep(2.0)
    vector = Vector(msgspec.Raw(b"here"), 1)
    flight.vectors = {} if fails else {b"a": vector}
    texts.land(flight)
    found = await waiting
    assert (found[b"a"] == vector) is not fails
    assert caller.computed == ([[b"b"], [b"a"]] if fails else [[b"b"]])
    assert len(texts) == 0


Plan = tuple[list[int], int, bool, bool]  # texts, start time, fails, is cancelled


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
            st.integers(0, 6),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_everyone_that_is_not_disturbed_gets_all_of_its_texts(plans: list[Plan]) -> None:
    async def run() -> None:
        texts = TextsInFlight()

        async def one(plan: Plan) -> dict[bytes, Vector]:
            wanted, start, fails, _ = plan
            await asyncio.sleep(start * 0.3)
            return await Caller(texts, fails=fails).ask("k", [b"%d" % number for number in wanted])

        tasks = [asyncio.create_task(one(plan)) for plan in plans]
        await asyncio.sleep(0.8)
        for task, (_, _, _, cancelled) in zip(tasks, plans, strict=True):
            if cancelled:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for (wanted, _, fails, cancelled), result in zip(plans, results, strict=True):
            if isinstance(result, BaseException):
                assert fails or cancelled
            else:
                assert {b"%d" % number for number in wanted} <= set(result)
        assert len(texts) == 0

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())
