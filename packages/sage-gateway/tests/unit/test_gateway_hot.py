"""The task of a connection: one for all its requests, and what was begun is always ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest

from sage.gateway.edge import Admission
from sage.gateway.hot import HotTask
from sage.gateway.keys import Principal
from sage.gateway.reply import Answer, Reply
from sage.gateway.requests import HotRequest, Over
from sage.middleware.engines.port import Route

ADMISSION = Admission(Principal("k"), Route.CHAT, max_body=1000, expect_continue=False)


class Server:
    """A handler that tests steer. `tasks` are those in which it ran; `ended` what was over, in order.

    Requests named in `untasked` are begun, and over when `finish` is called.
    """

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None] | None] = []
        self.ended: list[str] = []
        self.gate: asyncio.Event | None = None
        self.fault: Exception | None = None
        self.next: HotRequest | None = None
        self.untasked: set[str] = set()
        self.cancelled: list[str] = []
        self.begun: Callable[[], None] = lambda: None
        self.hot = HotTask(asyncio.get_running_loop(), self)

    def begin(self, request: HotRequest, reply: Reply, over: Over) -> bool:
        if request.id not in self.untasked:
            return False
        request.task = self
        self.begun = partial(over, request, reply)
        return True

    def cancel(self) -> None:
        assert self.hot.request is not None
        self.cancelled.append(self.hot.request.id)
        self.begun()

    async def __call__(self, request: HotRequest, reply: Answer) -> None:
        self.tasks.append(asyncio.current_task())
        assert request.task is self.tasks[-1]
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault

    def over(self, request: HotRequest, reply: Answer) -> None:
        assert self.hot.request is None
        self.ended.append(request.id)
        if self.next is not None:
            following, self.next = self.next, None
            self.start(following)

    def start(self, request: HotRequest) -> None:
        self.hot.start(request, cast(Reply, object()), self.over)

    async def idle(self) -> None:
        while self.hot.request is not None:  # noqa: ASYNC110 - there is no such event
            await asyncio.sleep(0)


def request(ident: str) -> HotRequest:
    return HotRequest(ident, ADMISSION, {}, b"{}")


async def test_one_task_serves_one_request_after_the_other() -> None:
    server = Server()
    for ident in ("a", "b", "c"):
        server.start(request(ident))
        await server.idle()
    assert server.ended == ["a", "b", "c"]
    assert len(set(server.tasks)) == 1
    server.hot.cancel()


async def test_a_request_that_waited_in_line_is_started_by_the_end_of_the_one_before() -> None:
    server = Server()
    server.next = request("b")
    server.start(request("a"))
    await server.idle()
    assert server.ended == ["a", "b"]
    assert len(set(server.tasks)) == 1
    server.hot.cancel()


@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("used", [False, True])
async def test_a_cancelled_request_is_over_once_whether_it_had_begun_or_not(turns: int, used: bool) -> None:
    server = Server()
    if used:
        server.start(request("before"))
        await server.idle()
    server.gate = asyncio.Event()
    server.start(request("a"))
    for _ in range(turns):
        await asyncio.sleep(0)
    server.hot.cancel()
    await server.idle()
    assert server.ended == ["before"] * used + ["a"]
    server.gate.set()
    server.start(request("b"))  # gets another task
    await server.idle()
    assert server.ended[-1] == "b"
    assert server.tasks[-1] is not None
    assert not server.tasks[-1].cancelled()
    server.hot.cancel()


async def test_a_fault_of_ours_is_logged_and_the_next_request_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    server.fault = RuntimeError("a bug")
    with caplog.at_level(logging.ERROR, "sage.gateway"):
        server.start(request("a"))
        await server.idle()
    assert "a bug" in caplog.text
    server.fault = None
    server.start(request("b"))
    await server.idle()
    assert server.ended == ["a", "b"]
    server.hot.cancel()


async def test_an_idle_task_ends_with_its_connection() -> None:
    before = asyncio.all_tasks()
    server = Server()
    server.start(request("a"))
    await server.idle()
    server.hot.cancel()
    await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
    assert asyncio.all_tasks() == before
    assert server.ended == ["a"]


async def test_a_request_that_was_ended_by_us_leaves_nothing_to_the_next() -> None:
    """As the data plane does for a revoked key: the cancellation is taken back, and the request answered."""
    left: list[int] = []

    class Ending(Server):
        async def __call__(self, request: HotRequest, reply: Answer) -> None:
            task = asyncio.current_task()
            assert task is not None
            assert task is request.task
            task.cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                left.append(task.uncancel())

    hot, over = Ending().hot, asyncio.Queue[str]()
    for ident in ("a", "b"):
        hot.start(request(ident), cast(Reply, object()), lambda done, _: over.put_nowait(done.id))
        assert await over.get() == ident
    assert left == [0, 0]
    hot.cancel()


async def test_what_is_begun_needs_no_task_and_one_task_serves_the_others() -> None:
    server = Server()
    server.untasked = {"a", "c", "d"}
    server.start(request("a"))
    server.begun()
    assert server.hot.request is None
    server.start(request("b"))
    await server.idle()
    for ident in ("c", "d"):
        server.start(request(ident))
        await asyncio.sleep(0)  # the task that waits must not serve it, too
        server.begun()
    server.start(request("e"))
    await server.idle()
    assert server.ended == ["a", "b", "c", "d", "e"]
    assert len(server.tasks) == 2
    assert len(set(server.tasks)) == 1
    server.hot.cancel()


@pytest.mark.parametrize("first", ["begun", "awaited"])
async def test_one_that_waited_in_line_is_served_in_its_own_way(first: str) -> None:
    server = Server()
    server.untasked = {"begun"}
    second = "awaited" if first == "begun" else "begun"
    server.next = request(second)
    server.start(request(first))
    if first == "begun":
        server.begun()
    else:
        for _ in range(3):
            await asyncio.sleep(0)
        server.begun()
    await server.idle()
    assert server.ended == [first, second]
    assert len(server.tasks) == 1
    server.hot.cancel()


@pytest.mark.parametrize("used", [False, True])
async def test_what_was_begun_is_cancelled_with_its_connection(used: bool) -> None:
    server = Server()
    if used:
        server.start(request("before"))
        await server.idle()
    server.untasked = {"a"}
    server.start(request("a"))
    server.hot.cancel()
    assert server.cancelled == ["a"]
    assert server.ended == ["before"] * used + ["a"]
