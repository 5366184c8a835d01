"""No key has more lines under way than it may, and none waits while there is room."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from sage.gateway.batch.share import Share


async def hold(share: Share, key: str, held: list[int], name: int, release: asyncio.Event) -> None:
    async with share.slot(key):
        held.append(name)
        await release.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@given(st.integers(0, 4), st.lists(st.tuples(st.sampled_from("eck"), st.integers(0, 7)), max_size=30))
def test_any_order_of_ends_and_cancels(most: int, steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        share = Share(lambda _: most)
        held: list[int] = []
        tasks: dict[int, asyncio.Task[None]] = {}
        releases: dict[int, asyncio.Event] = {}
        for step, which in steps:
            live = [name for name, task in tasks.items() if not task.done()]
            if step == "e":
                name = len(tasks)
                releases[name] = asyncio.Event()
                tasks[name] = asyncio.create_task(hold(share, "k", held, name, releases[name]))
            elif live and step == "c":
                tasks[live[which % len(live)]].cancel()
            elif live:
                releases[live[which % len(live)]].set()
            await settle()
            live = [name for name, task in tasks.items() if not task.done()]
            running = [name for name in live if name in held]
            assert len(running) == share.running("k") == min(len(live), max(1, most))
            assert running == live[: len(running)]  # in the order in which they came
        for release in releases.values():
            release.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert share.running("k") == 0

    asyncio.run(run())


async def test_keys_do_not_wait_for_each_other() -> None:
    share = Share(lambda _: 1)
    held: list[int] = []
    async with share.slot("a"), share.slot("b"):
        waiting = asyncio.create_task(hold(share, "a", held, 1, asyncio.Event()))
        await settle()
        assert (share.running("a"), share.running("b"), held) == (1, 1, [])
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with share.slot("a"):
        assert (share.running("a"), share.running("b"), held) == (1, 0, [])


async def test_a_key_that_may_have_more_gets_them_with_the_next_end() -> None:
    most = 1
    share = Share(lambda _: most)
    held: list[int] = []
    releases = [asyncio.Event() for _ in range(4)]
    tasks = [asyncio.create_task(hold(share, "k", held, n, releases[n])) for n in range(4)]
    await settle()
    assert held == [0]
    most = 2
    releases[0].set()
    await settle()
    assert held == [0, 1, 2]
    for release in releases:
        release.set()
    await asyncio.gather(*tasks)


async def test_a_slot_passes_over_who_was_cancelled_in_the_same_turn() -> None:
    share = Share(lambda _: 1)
    held: list[int] = []
    async with share.slot("k"):
        gone, next_one = [asyncio.create_task(hold(share, "k", held, n, asyncio.Event())) for n in (1, 2)]
        await settle()
        gone.cancel()  # it has not run again when the slot is free
    await settle()
    assert (held, share.running("k"), gone.cancelled()) == ([2], 1, True)
    next_one.cancel()
    await settle()
    assert share.running("k") == 0
