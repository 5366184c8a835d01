"""A running pipeline as an engine: the control plane queues its requests like those of any model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from sage.common.config import PipelineConfig
from sage.common.errors import BadRequestError, EngineError, SageError
from sage.common.telemetry import RequestClass
from sage.common.tracing import TRACEPARENT
from sage.kernel.runtime.job import Job as FlowJob
from sage.middleware.control_plane.callers import CALLER, Caller
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Call, Capability, EngineSpec, Sink, Usage
from sage.middleware.pipelines.answer import ChatWriter
from sage.middleware.pipelines.conversation import Told, asked_of, text_of

__all__ = ["PREFIX", "PipelineEngine", "pipeline_spec"]

PREFIX: Final = "pipeline/"
_EVENTS: Final = "text/event-stream; charset=utf-8"
_JSON: Final = "application/json"


def pipeline_spec(config: PipelineConfig) -> EngineSpec:
    """What the control plane knows of a pipeline: a model that chats."""
    return EngineSpec(
        name=PREFIX + config.name,
        kind="pipeline",
        model=PREFIX + config.name,
        capabilities=frozenset((Capability.CHAT,)),
        max_running=config.concurrency,
        composed=True,
    )


class _Spent:
    """Tokens of all calls that were made for one request."""

    def __init__(self) -> None:
        self.usage = Usage()

    def add(self, usage: Usage) -> None:
        mine = self.usage
        self.usage = Usage(
            mine.prompt_tokens + usage.prompt_tokens, mine.completion_tokens + usage.completion_tokens
        )


class PipelineEngine:
    """Answers chats by a flow of requests. Fits `Engine`; who started the job stops it.

    `kind` is what the flow's requests are, `job_of` finds what the control plane knows of a request. Every
    call that the flow makes for it shares its tenant, class, priority and deadline, and what those took is
    the usage of the answer.
    """

    def __init__(
        self, spec: EngineSpec, kind: Any, job: FlowJob, job_of: Callable[[str], Job | None]
    ) -> None:
        self._spec = spec
        self._kind = kind
        self._job = job
        self._job_of = job_of

    @property
    def spec(self) -> EngineSpec:
        """What it is."""
        return self._spec

    async def send(self, call: Call, sink: Sink) -> Usage:
        """Serve one chat; see the port. Raises BadRequestError for what the pipeline would ignore."""
        fields = msgspec.json.decode(call.body)
        asked = asked_of(self._spec.model, self._kind, fields)
        spent = _Spent()
        caller = self._caller(call, fields, spent)
        writer = ChatWriter(call.request_id, self._spec.model, int(time.time()))
        token, around = CALLER.set(caller), TRACEPARENT.set(call.trace)
        try:
            if call.stream:
                await self._stream(asked, writer, sink)
                sink.data(writer.end(spent.usage, tell=call.include_usage))
            else:
                text = text_of(await self._job.request(asked))
                sink.head(200, _JSON)
                sink.data(writer.whole(text, spent.usage))
            sink.end()
        except SageError as error:
            raise self._told(error) from error
        finally:
            TRACEPARENT.reset(around)
            CALLER.reset(token)
        return spent.usage

    async def _stream(self, asked: Any, writer: ChatWriter, sink: Sink) -> None:
        told, begun = Told(), False
        stream = self._job.stream(asked)
        async for part in stream:
            if text := told.add(part):
                if not begun:
                    sink.head(200, _EVENTS)
                    begun = True
                sink.data(writer.piece(text))
                if sink.full:
                    await sink.drain()
        rest = told.rest(await stream.reply())
        if not begun:
            sink.head(200, _EVENTS)
        if rest:
            sink.data(writer.piece(rest))

    def begin(self, _call: Call, _told: Callable[[Usage | Exception], None]) -> None:
        """Never: what a pipeline calls is called by the task that asked it."""

    async def ready(self) -> bool:
        """It was set up, or it would not be here."""
        return True

    async def close(self) -> None:
        """Nothing of its own."""

    def _caller(self, call: Call, fields: dict[str, Any], spent: _Spent) -> Caller:
        around = CALLER.get()
        model = self._spec.model
        if model in around.within:
            circle = " → ".join((*around.within, model))
            raise BadRequestError(f"{circle}: a pipeline cannot answer itself.", param="model")
        job = self._job_of(call.request_id)
        most = [fields.get("max_completion_tokens") or fields.get("max_tokens"), around.max_tokens]
        return Caller(
            tenant=around.tenant if job is None else job.tenant,
            request_id=call.request_id,
            lowered=job is not None and job.request_class is RequestClass.BATCH,
            priority=0 if job is None else job.priority,
            max_tokens=min((bound for bound in most if bound is not None), default=None),
            used=spent.add,
            within=(*around.within, model),
        )

    def _told(self, error: SageError) -> SageError:
        """Overload and lateness of what it calls are its own; what else went wrong in there is its fault."""
        if isinstance(error, BadRequestError | EngineError) or error.status in (429, 503, 504):
            return error
        return EngineError(f"{self._spec.model} failed: {error.message}")
