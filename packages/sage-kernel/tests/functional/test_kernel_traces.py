"""Spans of runs, operators and requests, as OpenTelemetry's SDK takes them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, Tracer, get_current_span

from sage.common.tracing import TRACEPARENT
from sage.kernel import Batch, Checkpoints, Flow, LocalEnvironment, OperatorError, Parallel, Part, ReplyError
from sage.kernel.testing.sinks import Numbers

HERE = f"00-{'a' * 32}-{'b' * 16}-01"


class Told:
    """A tracer, and the spans that it was given, which have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = provider.get_tracer("test")

    @property
    def environment(self) -> LocalEnvironment:
        return LocalEnvironment(batch=4, tracer=self.tracer)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def children(self, parent: ReadableSpan) -> list[str]:
        mine = [span for span in self.spans if span.parent and span.parent.span_id == ident(parent)]
        return [span.name for span in sorted(mine, key=lambda span: span.start_time or 0)]


def ident(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def parent_of(traceparent: str) -> int:
    return int(traceparent.split("-")[2], 16)


@pytest.fixture
def told() -> Iterator[Told]:
    yield Told()
    assert TRACEPARENT.get() == ""
    assert not get_current_span().get_span_context().is_valid


async def test_a_run_has_a_span_and_so_has_each_operator_with_its_counts(told: Told) -> None:
    seen: set[str] = set()

    async def ask(n: int) -> int:
        seen.add(TRACEPARENT.get())
        if n == 3:
            raise ValueError("a secret")
        return n

    flow, out = Flow("counts"), list[int]()
    asked = flow.source(Numbers(20), name="numbers").map(ask, on_error="skip", name="ask")
    asked.map(lambda n: -n, name="negate").filter(lambda n: n % 2, name="odd").sink(out.append, name="out")
    report = await told.environment.run(flow)
    run = told.named("run counts")
    assert sorted(told.children(run)) == ["ask", "negate", "numbers", "odd", "out"]
    for operator in report.operators:
        attributes = told.named(operator.name).attributes or {}
        assert attributes["sage.operator.verb"] == operator.verb
        counted = [
            attributes[f"sage.{name}"] for name in ("items_in", "items_out", "skipped", "diverted", "retries")
        ]
        assert counted == [
            *(operator.items_in, operator.items_out, operator.skipped),
            *(operator.diverted, operator.retries),
        ]
        assert (attributes["sage.busy_s"], attributes["sage.wait_s"]) == (operator.busy, operator.wait)
    # What an operator calls elsewhere belongs to its own span.
    assert {parent_of(traceparent) for traceparent in seen} == {ident(told.named("ask"))}
    assert "secret" not in "".join(span.to_json() for span in told.spans)


async def test_a_run_that_fails_says_so_without_the_words(told: Told) -> None:
    flow = Flow("fails")
    flow.source([1, 0]).map(lambda n: 1 // n, name="divide").sink(print, name="out")
    with pytest.raises(OperatorError, match="modulo by zero"):
        await told.environment.run(flow)
    for name in ("run fails", "source"):
        span = told.named(name)
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "operator_failed"
    assert not any(span.events for span in told.spans)
    assert "modulo" not in "".join(span.to_json() for span in told.spans)


async def test_a_run_with_workers_and_one_in_another_trace(told: Told) -> None:
    flow, out = Flow("workers"), list[str]()
    flow.source(range(9)).map(str, parallelism=Parallel(2, "thread")).sink(out.append, name="out")
    token = TRACEPARENT.set(HERE)
    await told.environment.run(flow)
    TRACEPARENT.reset(token)
    run = told.named("run workers")
    assert run.parent is not None
    assert (f"{run.parent.trace_id:x}", f"{run.parent.span_id:x}") == ("a" * 32, "b" * 16)
    assert {span.context.trace_id for span in told.spans if span.context} == {run.parent.trace_id}
    assert (told.named("str").attributes or {})["sage.items_out"] == 9


async def test_a_request_has_a_span_with_a_child_for_each_operator_it_passed(told: Told) -> None:
    seen: dict[int, str] = {}

    async def ask(n: int) -> int:
        seen[n] = TRACEPARENT.get()
        return n

    flow = Flow("service")
    asked = flow.requests(int).map(lambda n: n, name="first").map(ask, name="ask")
    whole = asked.map_batch(lambda ns: ns, Batch(4), name="batch").map(lambda n: n, name="then")
    flow.reply(whole.filter(lambda n: n < 9, name="low").map(lambda n: -n, name="last"))
    async with await told.environment.submit(flow) as job:
        assert await job.request(3) == -3
        with pytest.raises(ReplyError, match="filtered"):
            await job.request(9)
    one, other = [span for span in told.spans if span.name == "request service"]
    assert told.children(one) == ["first", "ask", "batch", "then", "low", "last"]
    assert told.children(other) == ["first", "ask", "batch", "then", "low"]
    calls = {ident(span) for span in told.spans if span.name == "ask"}
    assert {parent_of(traceparent) for traceparent in seen.values()} == calls


async def test_a_request_that_is_kept_has_them_too(told: Told, tmp_path: Path) -> None:
    async def ask(n: int) -> int:
        return n + 1

    flow = Flow("kept")
    flow.reply(flow.requests(int).map(ask, name="ask").map(lambda n: -n, name="last"))
    environment = LocalEnvironment(tracer=told.tracer, checkpoints=Checkpoints(tmp_path))
    async with await environment.submit(flow) as job:
        assert await job.request(1, id="one") == -2
        assert await job.request(1, id="one") == -2  # answered from what is kept: nothing is passed
    assert told.children(told.named("request kept")) == ["ask", "last"]


async def test_a_stream_a_loop_and_what_fails_are_in_the_trace_of_their_request(told: Told) -> None:
    async def tell(n: int) -> AsyncIterator[int | Part[str]]:
        yield Part("part")
        yield 1 // n

    flow = Flow("loops")
    told_of = flow.requests(int).map(tell, name="tell")
    flow.reply(
        told_of.iterate(
            lambda s: s.map(lambda n: n + 1, name="more"), until=lambda n: n > 2, max_rounds=5, name="go"
        )
    )
    async with await told.environment.submit(flow) as job:
        stream = job.stream(1)
        assert [part async for part in stream] == ["part"]
        assert await stream.reply() == 3
        with pytest.raises(OperatorError, match="modulo by zero"):
            await job.request(0)
    one, other = [span for span in told.spans if span.name == "request loops"]
    assert told.children(one) == ["tell", "go"]
    assert told.children(told.named("go")) == ["go/more", "go/more"]
    assert told.children(other) == ["tell"]
    assert other.status.status_code is StatusCode.ERROR


def test_without_a_tracer_opentelemetry_is_not_imported() -> None:
    code = """
import sys
from sage.kernel import Flow, LocalEnvironment
flow = Flow("off")
flow.source([1]).map(str).sink(lambda _: None)
LocalEnvironment().run_sync(flow)
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_a_tracer_is_given_holds_no_record(told: Told) -> None:
    flow, out = Flow("quiet"), list[Any]()
    flow.source(["hunter2"]).map(str.upper).sink(out.append)
    told.environment.run_sync(flow)
    assert out == ["HUNTER2"]
    assert "hunter2" not in "".join(span.to_json() for span in told.spans).lower()
