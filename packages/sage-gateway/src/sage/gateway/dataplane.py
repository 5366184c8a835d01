"""The hot routes: parse, submit to the control plane, and let the engine's bytes go to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from sage.common.api import Decision
from sage.common.errors import SageError
from sage.common.telemetry import HEADER_ENGINE, HEADER_QUEUE_MS, HEADER_REASON, HEADER_REQUEST_ID
from sage.gateway.reply import Reply
from sage.gateway.requests import HotRequest
from sage.gateway.tokens import TokenDecoder, holds_token_ids
from sage.middleware.control_plane.classify import ParseLimits, parse
from sage.middleware.control_plane.types import Job
from sage.middleware.control_plane.wishes import WISHES
from sage.middleware.engines.port import EMBEDDINGS, Call, Sink

__all__ = ["DataPlane", "Submitter"]

_WISHES: Final = frozenset(name.encode() for name in WISHES)
_MAX_REASON: Final = 512


class Submitter(Protocol):
    """What the data plane asks of the control plane."""

    async def submit(self, job: Job, call: Call, sink: Sink, *, deadline: float | None = None) -> object:
        """Serve one request into `sink`."""
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
    ) -> None:
        self._control_plane = control_plane
        self._limits = limits
        self._decoder = decoder
        self._prefixes = prefixes

    async def __call__(self, request: HotRequest, reply: Reply) -> None:
        """Serve one request; every expected fault becomes an OpenAI error."""
        route = request.admission.route
        assert route is not None
        try:
            if route is EMBEDDINGS and not self._decoder.loaded and holds_token_ids(request.body):
                await asyncio.to_thread(self._decoder.load)
            parsed = parse(
                route,
                request.body,
                limits=self._limits,
                tenant=request.admission.principal.id,
                headers=self._headers(request),
                decode_tokens=self._decoder,
                blocks=self._prefixes(),
            )
            reply.configure(stream=parsed.call.stream)
            if request.admission.principal.admin:
                reply.explain(lambda: self._explain(request.id))
            await self._control_plane.submit(parsed.job, parsed.call, reply, deadline=parsed.deadline)
        except SageError as error:
            reply.fail(error)

    @staticmethod
    def _headers(request: HotRequest) -> dict[str, str]:
        headers = {HEADER_REQUEST_ID: request.id}
        for raw in _WISHES.intersection(request.headers):
            headers[raw.decode()] = request.headers[raw].decode("latin-1")
        return headers

    def _explain(self, request_id: str) -> Sequence[tuple[str, str]]:
        decision = self._control_plane.decision(request_id)
        if decision is None:
            return ()
        queue_ms = f"{(decision.queue_s or 0.0) * 1000:.1f}"
        reason = " ".join(decision.reason.split())[:_MAX_REASON]
        return (HEADER_ENGINE, decision.engine or ""), (HEADER_QUEUE_MS, queue_ms), (HEADER_REASON, reason)
