"""Traces by OpenTelemetry, for an environment that was given a tracer: the extra `sage-kernel[otel]`.

A finite run is a span, and so is each operator of it, from its start to its end. Each request of a flow of
requests is a span, with one for each operator that it passes. No span holds a record, or the text of an
error, which may quote one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sage.common.errors import SageError
from sage.common.telemetry import HEADER_TRACE
from sage.common.tracing import TRACEPARENT
from sage.kernel.runtime.chain import Chain, Step
from sage.kernel.runtime.kernels import Kernel
from sage.kernel.runtime.report import Counters
from sage.kernel.runtime.spans import HeadCall, Runner, Spans, Visit

__all__ = ["TracedSpans"]

PROPAGATOR: Final = TraceContextTextMapPropagator()


class TracedSpans(Spans):
    """The spans of a run of `flow`."""

    def __init__(self, tracer: Tracer, flow: str) -> None:
        self._tracer = tracer
        self._flow = flow

    @contextmanager
    def run(self) -> Iterator[None]:
        """See `Spans`."""
        with self._current(f"run {self._flow}", {"sage.flow": self._flow}):
            yield

    def stage(self, operators: Sequence[Counters], runner: Runner) -> Runner:
        """See `Spans`. What the first of the operators calls belongs to its span."""

        async def traced(group: asyncio.TaskGroup) -> None:
            behind = [self._begun(counters) for counters in operators[1:]]
            try:
                if operators:
                    with self._current(operators[0].name, _facts(operators[0])) as first:
                        try:
                            await runner(group)
                        finally:
                            first.set_attributes(_counts(operators[0]))
                else:
                    await runner(group)
            finally:
                for counters, span in zip(operators[1:], behind, strict=True):
                    span.set_attributes(_counts(counters))
                    span.end()

        return traced

    def visit(self, visit: Visit) -> Visit:
        """See `Spans`."""

        async def traced(station: Any, item: Any, walk: Any) -> None:
            with self._current(f"request {self._flow}", {"sage.flow": self._flow}):
                await visit(station, item, walk)

        return traced

    def head(self, name: str, head: HeadCall) -> HeadCall:
        """See `Spans`."""

        async def traced(item: Any) -> list[Any]:
            with self._current(name, {"sage.flow": self._flow}):
                return await head(item)

        return traced

    def kernel(self, steps: Sequence[Step]) -> Kernel:
        """See `Spans`."""
        parts = [(step.counters.name, Chain([step]).run) for step in steps]

        def run(items: Any) -> Any:
            for name, part in parts:
                if not items:
                    break
                with self._current(name, {"sage.flow": self._flow}):
                    items = part(items)
            return items

        return run

    def _begun(self, counters: Counters) -> Span:
        return self._tracer.start_span(counters.name, _around(), SpanKind.INTERNAL, _facts(counters))

    @contextmanager
    def _current(self, name: str, facts: Mapping[str, str]) -> Iterator[Span]:
        """A span that what goes on in the block belongs to."""
        span = self._tracer.start_span(name, _around(), SpanKind.INTERNAL, facts)
        token, mine = attach(set_span_in_context(span)), TRACEPARENT.set(_traceparent(span))
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", _kind(error))
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            TRACEPARENT.reset(mine)
            detach(token)
            span.end()


def _around() -> Context:
    """The span that the caller is in, whether it is here or in another process."""
    around = TRACEPARENT.get()
    if not around or _traceparent(get_current_span()) == around:
        return get_current()
    return PROPAGATOR.extract({HEADER_TRACE: around})


def _kind(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error.code if isinstance(error, SageError) else type(error).__name__


def _traceparent(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _facts(counters: Counters) -> dict[str, str]:
    return {"sage.operator.verb": counters.verb}


def _counts(counters: Counters) -> dict[str, int | float]:
    found = counters.report()
    return {
        "sage.items_in": found.items_in,
        "sage.items_out": found.items_out,
        "sage.diverted": found.diverted,
        "sage.skipped": found.skipped,
        "sage.retries": found.retries,
        "sage.busy_s": found.busy,
        "sage.wait_s": found.wait,
    }
