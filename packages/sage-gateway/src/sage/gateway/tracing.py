"""Traces by OpenTelemetry, with the names of its GenAI conventions. Needs the extra `otel`.

One server span for each request on a hot route, and a client span for each attempt at an engine. Imported
only where traces are switched on: what runs without them does not pass through here. Spans are exported by a
thread of their own, from a bounded queue: what does not fit is dropped, and no request waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sage.common.config import EngineConfig
from sage.common.errors import SageError
from sage.common.telemetry import HEADER_TRACE
from sage.common.version import VERSION
from sage.gateway.reply import Answer, Reply
from sage.gateway.requests import Handler, HotRequest, Over
from sage.gateway.watch import outcome_of, since
from sage.middleware.control_plane.records import Record
from sage.middleware.engines.port import (
    CHAT,
    COMPLETIONS,
    Call,
    Engine,
    EngineKind,
    EngineSpec,
    Sink,
    Usage,
)
from sage.platform.service import ServiceSpec

__all__ = ["Traced", "TracedEngine", "Traces"]

log = logging.getLogger("sage.gateway")

OPERATIONS: Final = {CHAT: "chat", COMPLETIONS: "text_completion"}  # the others are named as their route
PROVIDER: Final = "sage"
CLOSE_S: Final = 3.0  # the last spans get so long; a receiver that is down must not hold up the end
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Traces:
    """The exporter and what makes spans; `close` once at the end.

    `endpoint`: base URL of a receiver of OTLP over HTTP; empty = what the variables `OTEL_EXPORTER_OTLP_…`
    say. The other variables of the SDK (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_…`) hold too.
    """

    def __init__(self, endpoint: str = "") -> None:
        url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        service = os.environ.get("OTEL_SERVICE_NAME") or "sage-gateway"
        resource = Resource.create({SERVICE_NAME: service, SERVICE_VERSION: VERSION})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_Exporter(endpoint=url)))
        logging.getLogger("opentelemetry").setLevel(
            logging.CRITICAL
        )  # it tells each failure; we tell the first
        self.tracer = self._provider.get_tracer("sage.gateway", VERSION)

    def around(self, handler: Handler) -> Handler:
        """The handler of the hot routes, with a span for each request."""
        return Traced(handler, self.tracer)

    def kind(self, kind: EngineKind) -> EngineKind:
        """A kind whose engines have a span for each call."""
        return _TracedKind(kind, self.tracer)

    async def close(self) -> None:
        """Export what is left, for a moment. The thread is a daemon: it does not hold up the end."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.force_flush(int(CLOSE_S * 1000))
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=flush, name="sage-traces", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), CLOSE_S)


class _Exporter(OTLPSpanExporter):
    """One that says once that its spans do not arrive, and once that they do again."""

    _failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See the SDK; called by its thread."""
        result = super().export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            log.warning("traces do not reach their receiver, and are dropped")
        elif self._failing and not failing:
            log.info("traces reach their receiver again")
        self._failing = failing
        return result


class Traced:
    """A handler whose requests have a span. Fits `Handler`."""

    def __init__(self, handler: Handler, tracer: Tracer) -> None:
        self._handler = handler
        self._tracer = tracer

    def begin(self, _request: HotRequest, _reply: Reply, _over: Over) -> bool:
        """Never: the span is that of a task."""
        return False

    async def __call__(self, request: HotRequest, reply: Answer) -> None:
        """Serve it; the span ends once, whoever ends the request."""
        route = request.admission.route
        assert route is not None
        operation = OPERATIONS.get(route, route.value)
        span = self._tracer.start_span(
            operation,
            _parent(reply.trace.decode()),
            SpanKind.SERVER,
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": PROVIDER,
                "sage.request_id": request.id,
            },
        )
        reply.trace = _traceparent(span).encode()
        status, fault = 0, ""
        try:
            await self._handler(request, reply)
            status = reply.status
        except asyncio.CancelledError:
            fault = "cancelled"
            raise
        except Exception:
            status, fault = SageError.status, SageError.code
            raise
        finally:
            span.set_attribute("sage.key", request.admission.principal.id)
            _finish(span, operation, reply, status, fault)


class _TracedKind:
    """A kind whose engines are traced. Fits `EngineKind`."""

    def __init__(self, kind: EngineKind, tracer: Tracer) -> None:
        self._kind = kind
        self._tracer = tracer

    def spec(self, config: EngineConfig) -> EngineSpec:
        """See the port."""
        return self._kind.spec(config)

    def service(self, config: EngineConfig, port: int, cores: tuple[int, ...]) -> ServiceSpec | None:
        """See the port."""
        return self._kind.service(config, port, cores)

    def connect(self, config: EngineConfig, url: str) -> Engine:
        """See the port."""
        return TracedEngine(self._kind.connect(config, url), self._tracer)


class TracedEngine:
    """An engine whose calls have a span. Fits `Engine`."""

    def __init__(self, engine: Engine, tracer: Tracer) -> None:
        self._engine = engine
        self._tracer = tracer

    @property
    def spec(self) -> EngineSpec:
        """See the port."""
        return self._engine.spec

    async def send(self, call: Call, sink: Sink) -> Usage:
        """See the port. A call for several requests belongs to the trace of the first."""
        spec, operation = self.spec, OPERATIONS.get(call.route, call.route.value)
        span = self._tracer.start_span(
            f"{operation} {spec.model}",
            _parent(call.trace),
            SpanKind.CLIENT,
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": spec.kind,
                "gen_ai.request.model": spec.model,
                "sage.engine": spec.name,
                "sage.request_id": call.request_id,
            },
        )
        try:
            usage = await self._engine.send(msgspec.structs.replace(call, trace=_traceparent(span)), sink)
        except BaseException as error:
            _failed(span, error.code if isinstance(error, SageError) else type(error).__name__)
            raise
        else:
            _used(span, usage)
            return usage
        finally:
            span.end()

    def begin(self, _call: Call, _told: Callable[[Usage | Exception], None]) -> None:
        """Never: the span is that of a task."""

    async def ready(self) -> bool:
        """See the port."""
        return await self._engine.ready()

    async def close(self) -> None:
        """See the port."""
        await self._engine.close()


def _parent(traceparent: str) -> Context:
    """The context that a `traceparent` names; an empty one where it names none."""
    return _PROPAGATOR.extract({HEADER_TRACE: traceparent} if traceparent else {}, Context())


def _traceparent(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _finish(span: Span, operation: str, reply: Answer, status: int, fault: str) -> None:
    """Say what became of a request."""
    record = reply.record
    if status:
        span.set_attribute("http.response.status_code", status)
    if record is not None:
        span.update_name(f"{operation} {record.job.model}")
        _decided(span, record)
    if fault or outcome_of(reply, status) in ("failed", "refused", "rejected"):
        _failed(span, fault or reply.reason or "failed")
    span.end()


def _decided(span: Span, record: Record) -> None:
    job = record.job
    queue, ttft = since(record, record.dispatched), since(record, record.first_byte)
    known = {
        "gen_ai.request.model": job.model,
        "gen_ai.response.model": job.model,
        "gen_ai.request.max_tokens": job.max_tokens,
        "sage.class": job.request_class.value,
        "sage.tenant": job.tenant,
        "sage.engine": record.engine,
        "sage.attempts": record.attempts,
        "sage.queue_s": queue,
        "sage.ttft_s": ttft,
    }
    span.set_attributes({name: value for name, value in known.items() if value is not None})
    if record.usage is not None:
        _used(span, record.usage)


def _used(span: Span, usage: Usage) -> None:
    span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
    span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)


def _failed(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))
