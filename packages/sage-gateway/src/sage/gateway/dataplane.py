"""The hot routes: parse, submit to the control plane, and let the engine's bytes go to the client."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from sage.common.api import Decision
from sage.common.errors import EngineError, SageError
from sage.common.telemetry import (
    HEADER_ENGINE,
    HEADER_FALLBACK,
    HEADER_QUEUE_MS,
    HEADER_REASON,
    Bound,
)
from sage.gateway.accounts import Accounts, Visit, lowered
from sage.gateway.conversations import Conversations, Exchange
from sage.gateway.keys import Principal
from sage.gateway.reply import Answer, Reply
from sage.gateway.requests import HotRequest, Over
from sage.gateway.tokens import TokenDecoder, holds_token_ids
from sage.gateway.untasked import Beginner, Untasked
from sage.gateway.watch import Watch
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.plain import parse_chat, parse_embedding
from sage.middleware.control_plane.records import Record
from sage.middleware.control_plane.types import Job
from sage.middleware.control_plane.wishes import WISHES
from sage.middleware.engines.port import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    FORMS,
    MEDIA,
    RESPONSES,
    Call,
    Route,
    Sink,
    Usage,
)

__all__ = ["DataPlane", "Submitter"]

_WISHES: Final = frozenset(name.encode() for name in WISHES)
_MAX_REASON: Final = 512
_NONE: Final[Mapping[str, str]] = {}


class Submitter(Beginner, Protocol):
    """What the data plane asks of the control plane."""

    def submit(
        self,
        job: Job,
        call: Call,
        sink: Sink,
        *,
        deadline: float | None = None,
        used: Callable[[Usage], None] | None = None,
        task: asyncio.Task[None] | None = None,
        ended: Callable[[Record], None] | None = None,
    ) -> Coroutine[Any, Any, Literal["done", "failed"]]:
        """Serve one request into `sink`. `used` is told what engines counted for it, `ended` its record.

        `task` is the one that awaits this, if the caller has it at hand.
        """
        ...

    def decision(self, ident: str) -> Decision | None:
        """What was decided for a request."""
        ...


class DataPlane:
    """The handler of the hot routes. `prefixes`: whether the policy in force looks for cached prompts."""

    def __init__(
        self,
        control_plane: Submitter,
        limits: ParseLimits,
        decoder: TokenDecoder,
        prefixes: Callable[[], bool],
        accounts: Accounts,
        watch: Watch,
        conversations: Conversations,
    ) -> None:
        self._control_plane = control_plane
        self._conversations = conversations
        self.limit(limits)
        self._decoder = decoder
        self._prefixes = prefixes
        self._accounts = accounts
        self._watch = watch

    def limit(self, limits: ParseLimits) -> None:
        """Judge bodies by these from now on."""
        self._limits = limits
        self._bound = dataclasses.replace(limits, tenants=frozenset())  # of keys with a tenant of their own

    def begin(self, request: HotRequest, reply: Reply, over: Over) -> bool:
        """See `Handler`. What cannot be begun, or is refused before it is charged, is left to the task."""
        principal, route = request.admission.principal, request.admission.route
        if route is EMBEDDINGS:
            if not self._decoder.loaded and holds_token_ids(request.body):
                return False
        elif route is not CHAT and route is not COMPLETIONS:
            return False
        plane = self._control_plane
        try:
            parsed = request.parsed = self._parse(request, request.body, principal, route)
            job = parsed.job
            if parsed.deadline is not None or not plane.is_plain(job, parsed.call):
                return False
            untasked = Untasked(plane, request, reply, over)
            visit = untasked.visit = self._accounts.open(principal, route, untasked)
        except Exception:  # the task meets it again, and tells
            return False
        request.task = untasked
        if visit.account.limiter is not None:
            reply.always(visit.headers)
        try:
            self._admit(job, principal, visit)
            call = self._call(request, reply, parsed) if reply.trace or principal.admin else parsed.call
            untasked.ticket = plane.begin(job, call, reply, untasked.ended)
        except Exception as error:
            untasked.ended(error)
        return True

    async def __call__(self, request: HotRequest, reply: Answer) -> None:
        """Serve one request; every expected fault becomes an OpenAI error."""
        principal, route = request.admission.principal, request.admission.route
        assert route is not None
        try:
            visit = self._accounts.open(principal, route, request.task)
        except SageError as error:
            reply.fail(error)
            return
        try:
            if visit.account.limiter is not None:
                reply.always(visit.headers)
            await self._serve(request, reply, principal, route, visit)
        except SageError as error:
            visit.fail(error)
            reply.fail(principal.told(error))
        except asyncio.CancelledError:
            why, task = visit.why or request.ending, asyncio.current_task()
            if why is None or task is None or task.uncancel() > 0:
                raise  # the client has gone
            visit.fail(why)
            reply.fail(why)
        except Exception:  # a fault of ours, which the protocol answers and logs
            visit.fail("failed")
            raise
        finally:
            if reply.paused:
                self._watch.bounds[Bound.STREAM_BUFFER] += 1
            visit.close(reply.chunks)

    async def _serve(
        self, request: HotRequest, reply: Answer, principal: Principal, route: Route, visit: Visit
    ) -> None:
        """Parse, charge, submit. Raises the SageError that answers it."""
        if route is EMBEDDINGS and not self._decoder.loaded and holds_token_ids(request.body):
            await asyncio.to_thread(self._decoder.load)
        exchange: Exchange | None = None
        body = request.body
        if route is RESPONSES:
            exchange = await self._open(principal, body, reply)
            body = exchange.body
        parsed = request.parsed
        if parsed is None:
            parsed = self._judge(request, body, principal, route)
        self._admit(parsed.job, principal, visit)
        call = self._call(request, reply, parsed)
        ended = await self._control_plane.submit(
            parsed.job,
            call,
            exchange or reply,
            deadline=parsed.deadline,
            used=visit.use,
            ended=reply.remember,
            task=asyncio.current_task(),
        )
        if exchange is not None:
            await exchange.close(ended)
        if ended == "failed":
            visit.fail(ended)
            if route in MEDIA:  # sound has told nothing of it
                reply.fail(EngineError("The engine failed in the middle of its answer."))

    async def _open(self, principal: Principal, body: bytes, reply: Answer) -> Exchange:
        """The exchange of a response. Raises the SageError that answers it."""
        try:
            return await self._conversations.open(principal.id, body, reply)
        except SageError as error:
            self._watch.met(error)
            raise

    def _judge(self, request: HotRequest, body: bytes, principal: Principal, route: Route) -> Parsed:
        """What is asked for. Raises the SageError that answers it."""
        try:
            return self._parse(request, body, principal, route)
        except SageError as error:
            self._watch.met(error)
            raise

    def _parse(self, request: HotRequest, body: bytes, principal: Principal, route: Route) -> Parsed:
        headers, tenant = _headers(request, principal, route), principal.tenant
        blocks = self._prefixes()
        if not headers:  # as a rule
            parsed = None
            if route is CHAT:
                parsed = parse_chat(body, request.id, tenant or principal.id, blocks=blocks)
            elif route is EMBEDDINGS:
                parsed = parse_embedding(body, request.id, tenant or principal.id, self._limits)
            if parsed is not None:
                return parsed
        return parse(
            route,
            body,
            limits=self._bound if tenant else self._limits,
            tenant=tenant or principal.id,
            headers=headers,
            ident=request.id,
            decode_tokens=self._decoder,
            blocks=blocks,
        )

    def _admit(self, job: Job, principal: Principal, visit: Visit) -> None:
        """Charge it. Raises the SageError that answers it; what is met later the control plane counts."""
        try:
            if principal.models:
                principal.check_model(job.model)
            visit.admit(job)
        except SageError as error:
            self._watch.met(error)
            raise

    def _call(self, request: HotRequest, reply: Answer, parsed: Parsed) -> Call:
        """What goes to the engine; and the reply is told what answer it will be."""
        call = parsed.call
        reply.configure(stream=call.stream)
        if request.admission.principal.admin:
            reply.explain(lambda: self._explain(request.id))
        if reply.trace:
            call = msgspec.structs.replace(call, trace=reply.trace.decode())
        return call

    def _explain(self, request_id: str) -> Sequence[tuple[str, str]]:
        decision = self._control_plane.decision(request_id)
        if decision is None:
            return ()
        queue_ms = f"{(decision.queue_s or 0.0) * 1000:.1f}"
        told = [(HEADER_ENGINE, decision.engine or ""), (HEADER_QUEUE_MS, queue_ms)]
        told.append((HEADER_REASON, _line(decision.reason)))
        if decision.fallback:
            told.append((HEADER_FALLBACK, _line(decision.fallback)))
        return told


def _headers(request: HotRequest, principal: Principal, route: Route) -> Mapping[str, str]:
    """Those that the control plane looks at. Raises ForbiddenError for a class that the key may not have."""
    sent = request.headers
    if _WISHES.isdisjoint(sent) and route not in FORMS and not principal.lowered:
        return _NONE  # as a rule
    headers = {raw.decode(): sent[raw].decode("latin-1") for raw in _WISHES.intersection(sent)}
    if route in FORMS:
        headers["content-type"] = sent.get(b"content-type", b"").decode("latin-1")
    if principal.lowered:
        lowered(headers, route)
    return headers


def _line(words: str) -> str:
    """As a header's value."""
    return " ".join(words.split())[:_MAX_REASON]
