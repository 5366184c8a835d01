"""Serves the hot requests of a connection, one after the other: without a task, or by the one of it."""

from __future__ import annotations

import asyncio
import logging

from sage.gateway.reply import Reply
from sage.gateway.requests import Handler, HotRequest, Over

__all__ = ["HotTask"]

log = logging.getLogger("sage.gateway")


class HotTask:
    """Serves one request at a time. Making a task for each would cost more than waking this one.

    `request` and `reply` are those under way. Whatever becomes of a request, the `over` that it was started
    with is called once. Being cancelled ends the task; a request that is started after that gets another.
    """

    __slots__ = ("_handler", "_loop", "_over", "_task", "_turn", "reply", "request")

    def __init__(self, loop: asyncio.AbstractEventLoop, handler: Handler | None) -> None:
        self._loop = loop
        self._handler = handler
        self._task: asyncio.Task[None] | None = None
        self._turn: asyncio.Future[None] | None = None  # what it waits for between two requests
        self._over: Over | None = None
        self.request: HotRequest | None = None
        self.reply: Reply | None = None

    def start(self, request: HotRequest, reply: Reply, over: Over) -> None:
        """Serve a request: begin it at once, or in the loop's next turn. None may be under way."""
        self.request, self.reply, self._over = request, reply, over
        assert self._handler is not None
        if self._handler.begin(request, reply, self._finish):
            return
        if self._task is None:
            self._task = self._loop.create_task(self._serve())
            self._task.add_done_callback(self._ended)
        elif self._turn is not None:
            turn, self._turn = self._turn, None
            turn.set_result(None)
        request.task = self._task

    def cancel(self) -> None:
        """End what is under way, and the task."""
        request = self.request
        if request is not None and request.task is not None and request.task is not self._task:
            request.task.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _serve(self) -> None:
        assert self._handler is not None
        while True:
            request, reply = self.request, self.reply
            if request is not None and reply is not None and request.task is self._task:
                try:
                    await self._handler(request, reply)
                except Exception as fault:
                    log.error("request failed in the gateway", exc_info=fault)
                self._finish(request, reply)
                continue  # `over` may have started another
            del request, reply  # while it waits
            turn = self._turn = self._loop.create_future()
            await turn

    def _finish(self, request: HotRequest, reply: Reply) -> None:
        over, self.request, self.reply, self._over = self._over, None, None, None
        if over is not None:
            over(request, reply)

    def _ended(self, _task: asyncio.Task[None]) -> None:
        """It was cancelled, perhaps before it came to its request."""
        self._task = self._turn = None
        if self.request is not None and self.reply is not None:
            self._finish(self.request, self.reply)
