"""A plain request on its way without a task: what is told of its end, and who may cut it short."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from sage.common.errors import SageError
from sage.gateway.accounts import Visit
from sage.gateway.reply import Reply
from sage.gateway.requests import HotRequest, Over
from sage.middleware.control_plane.tickets import Ticket
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Call, WholeSink

__all__ = ["Beginner", "Untasked"]

log = logging.getLogger("sage.gateway")


class Beginner(Protocol):
    """What of the control plane serves requests without a task."""

    def is_plain(self, job: Job, call: Call) -> bool:
        """Whether `begin` may be asked."""
        ...

    def begin(
        self, job: Job, call: Call, sink: WholeSink, over: Callable[[BaseException | None], None]
    ) -> Ticket:
        """Serve one that is plain. `over` is told once, later, None or what it ended with."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """Give one up; `over` is told of it."""
        ...


class Untasked(msgspec.Struct, eq=False):
    """From its first charge to its end. Fits `Cancellable`."""

    _plane: Beginner
    _request: HotRequest
    _reply: Reply
    _over: Over
    visit: Visit | None = None
    ticket: Ticket | None = None

    def cancel(self) -> None:
        """See `Cancellable`. It is over when this returns, or in the loop's next turn."""
        if self.ticket is not None:
            self._plane.cancel(self.ticket)

    def ended(self, error: BaseException | None) -> None:
        """Account for it, and answer with what it failed with."""
        request, reply, visit, ticket = self._request, self._reply, self.visit, self.ticket
        request.task = None  # it leads back here: what goes round waits for the garbage collector
        if visit is not None:
            try:
                if ticket is not None and (record := ticket.record) is not None:
                    reply.record = record
                    if record.usage is not None:
                        visit.use(record.usage)
                if error is not None:
                    self._fail(error, visit)
            except Exception as fault:
                log.error("request failed in the gateway", exc_info=fault)
            visit.close(reply.chunks)
        self._over(request, reply)

    def _fail(self, error: BaseException, visit: Visit) -> None:
        request = self._request
        if isinstance(error, SageError):
            visit.fail(error)
            self._reply.fail(request.admission.principal.told(error))
        elif not isinstance(error, asyncio.CancelledError):  # a fault of ours, which the protocol answers
            visit.fail("failed")
            log.error("request failed in the gateway", exc_info=error)
        elif (why := visit.why or request.ending) is not None:
            visit.fail(why)
            self._reply.fail(why)
