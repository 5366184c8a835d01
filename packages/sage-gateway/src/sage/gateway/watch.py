"""What is told of the requests of a listener: the bounds that were met, and an event for each request.

An event holds ids, names from the configuration, numbers and words of ours: never a header, a body, a path
or a model as the client wrote it, nor what an engine said.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from sage.common.errors import SageError
from sage.common.log import get_logger
from sage.common.telemetry import Bound
from sage.gateway.reply import Answer, reason_of
from sage.middleware.control_plane.records import Record

__all__ = ["GONE", "AccessLog", "Logged", "Watch"]

GONE = 499  # the client left before it was answered


class AccessLog:
    """Events named `request` of the logger `sage.gateway.access`. `every`: those that went well too.

    Make it after the logs are configured.
    """

    def __init__(self, *, every: bool) -> None:
        self.every = every
        self._log = get_logger("sage.gateway.access").bind()

    def write(self, status: int, **fields: object) -> None:
        """One request. What is None is left out."""
        known = {name: value for name, value in fields.items() if value is not None}
        self._log.info("request", status=status, **known)

    def refused(self, ident: str, error: SageError) -> None:
        """One that was turned away before its body was looked at."""
        self.write(error.status, request_id=ident, outcome="refused", reason=reason_of(error))

    def ended(self, request: Any, reply: Answer, status: int, now: Callable[[], float]) -> None:
        """A hot request; `status` as it was sent, or `GONE`. As a rule only what went wrong is told."""
        record = reply.record
        well = status == GONE or (status == 200 and (record is None or record.outcome != "failed"))
        if well and not self.every and not reply.reason:
            return
        self.write(
            status,
            request_id=request.id,
            key=request.admission.principal.id,
            route=None if request.admission.route is None else f"/v1/{request.admission.route.value}",
            outcome=outcome_of(reply, status),
            reason=reply.reason or None,
            total_s=round(now() - request.began, 6),
            **({} if record is None else facts_of(record)),
        )


class Watch:
    """What the connections of one listener tell."""

    def __init__(self, log: AccessLog | None = None) -> None:
        self.bounds: Counter[Bound] = Counter()
        self.log = log

    def met(self, error: SageError) -> None:
        """Something was refused: at a bound, if the error names one."""
        if error.bound is not None:
            self.bounds[error.bound] += 1

    def refused(self, ident: str, error: SageError) -> None:
        """A request goes no further than the door. One whose head never came is counted alone: whoever opens
        sockets by the thousand must not fill the log.
        """
        self.met(error)
        if self.log is not None and error.bound is not Bound.HEAD_TIME:
            self.log.refused(ident, error)


class Logged:
    """A handler whose requests come through no connection, with an event at the end of each."""

    def __init__(
        self,
        handler: Callable[[Any, Answer], Coroutine[Any, Any, None]],
        log: AccessLog,
        now: Callable[[], float],
    ) -> None:
        self._handler = handler
        self._log = log
        self._now = now

    async def __call__(self, request: Any, reply: Answer) -> None:
        """Serve it."""
        request.began = self._now()
        status = GONE
        try:
            await self._handler(request, reply)
            status = reply.status
        except asyncio.CancelledError:
            raise
        except Exception:
            status = SageError.status
            raise
        finally:
            self._log.ended(request, reply, status, self._now)


def outcome_of(reply: Answer, status: int) -> str:
    """How it ended, in one word."""
    if status == GONE:
        return "cancelled"
    if reply.record is not None:
        return reply.record.outcome
    return "done" if status == 200 else "refused"


def facts_of(record: Record) -> dict[str, object]:
    """What the control plane knows of it. Times in seconds."""
    job, usage = record.job, record.usage
    return {
        "model": job.model,
        "request_class": job.request_class.value,
        "tenant": job.tenant,
        "engine": record.engine,
        "attempts": record.attempts,
        "queue_s": since(record, record.dispatched),
        "ttft_s": since(record, record.first_byte),
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "completion_tokens": None if usage is None else usage.completion_tokens,
    }


def since(record: Record, then: float | None) -> float | None:
    """Seconds from its arrival."""
    return None if then is None else round(then - record.arrived, 6)
