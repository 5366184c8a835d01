"""Pipelines as models of a control plane, with engines of this process: who calls, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from sage.common.clock import SystemClock
from sage.common.config import ControlPlaneConfig, ModelConfig, PipelineConfig, TargetConfig
from sage.common.errors import (
    BadRequestError,
    ConfigError,
    EngineError,
    ModelNotFoundError,
    OverloadedError,
    SageError,
    UnavailableError,
)
from sage.common.tracing import TRACEPARENT
from sage.kernel import Batch, Flow, Part
from sage.middleware.answers import ChatReader
from sage.middleware.client import Delta, ModelClient
from sage.middleware.control_plane.callers import CALLER
from sage.middleware.control_plane.classify import ParseLimits, parse
from sage.middleware.control_plane.driver import ControlPlane
from sage.middleware.control_plane.inprocess import InProcessClient
from sage.middleware.control_plane.router import ModelRouter
from sage.middleware.engines.port import CHAT, Usage
from sage.middleware.operators.connect import Connected
from sage.middleware.operators.records import Chat
from sage.middleware.pipelines.flows import flow_of
from sage.middleware.pipelines.pool import Pipelines
from sage.middleware.testing.memory import Behaviour, MemoryEngine, MemorySink

HERE = __name__

TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


class Speak(Connected):
    """Passes the model's answer on as it comes; the reply is all of it."""

    def __init__(self, model: str = "memory", max_tokens: int | None = None) -> None:
        super().__init__(None)
        self._model = model
        self._params = {} if max_tokens is None else {"max_tokens": max_tokens}

    async def __call__(self, words: str) -> AsyncIterator[Part[Delta] | str]:
        texts = []
        async for delta in self.client.chat(
            [{"role": "user", "content": words}], model=self._model, **self._params
        ):
            texts.append(delta.text)
            yield Part(delta)
        yield "".join(texts)


class Vectors(Connected):
    """Embeds, and counts."""

    def __init__(self) -> None:
        super().__init__(None)

    async def __call__(self, texts: Sequence[str]) -> list[str]:
        return [str(len(row)) for row in await self.client.embed(texts, model="memory")]


def speaking(model: str = "memory", max_tokens: int | None = None) -> Flow:
    flow = Flow("speak")
    flow.reply(flow.requests(str).map(Speak(model, max_tokens)))
    return flow


def shouting() -> Flow:
    flow = Flow("shout")
    flow.reply(flow.requests(str).map(str.upper))
    return flow


def failing() -> Flow:
    flow = Flow("fail")
    flow.reply(flow.requests(str).map(int).map(str))
    return flow


def counting() -> Flow:
    flow = Flow("count")
    flow.reply(flow.requests(str).map_batch(Vectors(), Batch(8)))
    return flow


def whole_chats() -> Flow:
    flow = Flow("chats")
    flow.reply(flow.requests(Chat).map(lambda chat: f"{len(chat.messages)} {chat.params}"))
    return flow


class Site:
    """A control plane with one engine and the pipelines of some flows."""

    def __init__(
        self, *pipelines: PipelineConfig, again_s: float = 0.01, tracer: Tracer | None = None
    ) -> None:
        self.engine = MemoryEngine()
        self.plane = ControlPlane(ControlPlaneConfig(), SystemClock())
        self.plane.add_engine(self.engine)
        self.router = ModelRouter(self.plane, SystemClock())
        self.router.configure(
            [ModelConfig(name="alias", to=(TargetConfig(model="memory"),))], ControlPlaneConfig()
        )
        self.client: ModelClient = InProcessClient(self.plane, door=self.router, patience_s=0.0)
        self.pipelines = Pipelines(self.plane, self.client, again_s=again_s, tracer=tracer)
        self.configs = pipelines

    async def __aenter__(self) -> Site:
        self.pipelines.apply(self.configs)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pipelines.close()
        await self.plane.close(1.0)

    async def serving(self) -> None:
        while any(one.state != "ready" for one in self.pipelines.statuses()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def ask(self, model: str, body: str = "", *, headers: dict[str, str] | None = None) -> MemorySink:
        sink = MemorySink()
        messages = '"messages":[{"role":"user","content":"hi"}]'
        parsed = parse(
            CHAT,
            f'{{"model":"{model}",{messages}{body}}}'.encode(),
            limits=ParseLimits(),
            tenant="acme",
            headers=headers or {},
            blocks=False,
        )
        parsed = msgspec.structs.replace(parsed, call=msgspec.structs.replace(parsed.call, trace=TRACE))
        self.usage: Usage | None = None

        def used(usage: Usage) -> None:
            self.usage = usage

        outcome = await self.router.submit(parsed.job, parsed.call, sink, deadline=parsed.deadline, used=used)
        assert outcome == "done"
        return sink


def said(sink: MemorySink) -> str:
    return str(msgspec.json.decode(sink.body)["choices"][0]["message"]["content"])


def config(name: str, factory: str, **changes: Any) -> PipelineConfig:
    return PipelineConfig(name=name, flow=f"{HERE}:{factory}", **changes)


async def test_a_pipeline_answers_whole_and_in_pieces() -> None:
    async with Site(config("shout", "shouting"), config("speak", "speaking")) as site:
        await site.serving()
        whole = await site.ask("pipeline/shout")
        assert said(whole) == "HI"
        assert msgspec.json.decode(whole.body)["model"] == "pipeline/shout"
        stream = await site.ask("pipeline/speak", ',"stream":true,"stream_options":{"include_usage":true}')
        reader = ChatReader()
        texts = list(reader.feed(stream.body))
        assert texts == ["one ", "two ", "three"]  # as the model's pieces came
        reader.finish()
        assert reader.usage == site.usage
        assert reader.usage.completion_tokens == 3
        assert {"pipeline/shout", "pipeline/speak", "memory"} <= set(site.router.models())
        assert [(one.name, one.state) for one in site.pipelines.statuses()] == [
            ("pipeline/shout", "ready"),
            ("pipeline/speak", "ready"),
        ]


async def test_each_call_carries_who_asked_for_what() -> None:
    async with Site(config("speak", "speaking", params={"model": "alias", "max_tokens": 50})) as site:
        await site.serving()
        await site.ask(
            "pipeline/speak",
            ',"max_tokens":7',
            headers={"x-request-id": "outer", "x-sage-class": "batch", "x-sage-priority": "3"},
        )
        inner = [one for one in site.plane.decisions(10) if one.model == "memory"]
        assert [(one.tenant, str(one.request_class)) for one in inner] == [("acme", "batch")]
        record = site.plane.core.record(inner[0].request_id)
        assert record is not None
        assert (record.job.parent, record.job.priority, record.job.max_tokens) == ("outer", 3, 7)
        assert [call.trace for call in site.engine.calls] == [TRACE]
        assert CALLER.get().request_id == TRACEPARENT.get() == ""


async def test_spans_of_a_pipeline_are_between_its_request_and_its_calls() -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    async with Site(config("speak", "speaking"), tracer=provider.get_tracer("test")) as site:
        await site.serving()
        for stream in ("", ',"stream":true'):
            spans.clear()
            await site.ask("pipeline/speak", stream)
            told = {span.name: span for span in spans.get_finished_spans()}
            request, operator = told["request speak"], told["Speak"]
            assert request.parent is not None
            assert (f"{request.parent.trace_id:x}", f"{request.parent.span_id:x}") == ("a" * 32, "b" * 16)
            assert operator.context is not None
            assert operator.parent == request.context
            assert site.engine.calls[-1].trace == f"00-{'a' * 32}-{operator.context.span_id:016x}-01"


async def test_the_deadline_of_the_caller_ends_the_calls() -> None:
    async with Site(config("speak", "speaking")) as site:
        await site.serving()
        site.engine.behaviour = Behaviour(gate=asyncio.Event())
        with pytest.raises(SageError, match=r"deadline|not answered"):
            await site.ask("pipeline/speak", headers={"x-sage-deadline-ms": "50"})
        await site.engine.until_running(0)


async def test_a_client_that_leaves_ends_the_calls() -> None:
    async with Site(config("speak", "speaking")) as site:
        await site.serving()
        site.engine.behaviour = Behaviour(gate=asyncio.Event(), gate_after=1)
        task = asyncio.create_task(site.ask("pipeline/speak", ',"stream":true'))
        await site.engine.until_running(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await site.engine.until_running(0)
        assert [one.running for one in site.pipelines.statuses()] == [0]


async def test_a_batch_of_several_callers_is_nobodys() -> None:
    async with Site(config("count", "counting")) as site:
        await site.serving()
        answers = await asyncio.gather(
            *(site.ask("pipeline/count", headers={"x-sage-class": "batch"}) for _ in range(3))
        )
        assert {said(one) for one in answers} == {"8"}
        inner = [one for one in site.plane.decisions(10) if one.model == "memory"]
        assert {one.tenant for one in inner} == {"pipeline"}


async def test_faults_of_a_pipeline_are_not_tried_again_and_eject_nobody() -> None:
    async with Site(config("fail", "failing")) as site:
        await site.serving()
        for _ in range(8):
            with pytest.raises(EngineError, match="pipeline/fail failed: operator 'int' failed on item"):
                await site.ask("pipeline/fail")
        status = site.pipelines.statuses()[0]
        assert (status.state, status.failed) == ("ready", 8)


async def test_overload_of_what_it_calls_is_told_as_overload() -> None:
    async with Site(config("speak", "speaking")) as site:
        await site.serving()
        site.engine.behaviour = Behaviour(fault=OverloadedError("full", retry_after=2.0))
        with pytest.raises(OverloadedError):
            await site.ask("pipeline/speak")


async def test_what_a_pipeline_would_ignore_is_refused() -> None:
    async with Site(config("shout", "shouting"), config("chats", "whole_chats")) as site:
        await site.serving()
        with pytest.raises(BadRequestError, match="takes no temperature"):
            await site.ask("pipeline/shout", ',"temperature":0.5')
        with pytest.raises(BadRequestError, match="tools"):
            await site.ask(
                "pipeline/shout", ',"tools":[{"type":"function","function":{"name":"f","parameters":{}}}]'
            )
        answer = await site.ask("pipeline/chats", ',"temperature":0.5')
        assert said(answer) == "1 {'temperature': 0.5}"


async def test_a_pipeline_may_ask_another_and_not_itself() -> None:
    circle = {"model": "pipeline/a"}
    async with Site(
        config("a", "speaking", params={"model": "pipeline/b"}),
        config("b", "speaking", params=circle),
        config("c", "speaking", params={"model": "pipeline/d"}),
        config("d", "speaking"),
    ) as site:
        await site.serving()
        answer = await site.ask("pipeline/c")
        assert said(answer) == "one two three"
        assert site.usage is not None
        assert site.usage.completion_tokens == 3
        with pytest.raises(BadRequestError, match="pipeline/a → pipeline/b → pipeline/a"):
            await site.ask("pipeline/a")


async def test_one_that_cannot_be_set_up_says_why_until_it_can(tmp_path: Path) -> None:
    file = tmp_path / "later.yaml"
    later = PipelineConfig(name="later", flow=str(file), allow=(f"{HERE}:loud",))
    async with Site(later) as site:
        while not site.pipelines.statuses()[0].detail:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert "later.yaml' does not exist" in site.pipelines.statuses()[0].detail
        with pytest.raises(UnavailableError):
            await site.ask("pipeline/later")
        file.write_text(LOUD)
        await site.serving()
        assert said(await site.ask("pipeline/later")) == "HI"


async def test_a_changed_one_goes_on_as_it_was_until_it_is_set_up_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Site(config("speak", "speaking"), config("gone", "shouting")) as site:
        await site.serving()
        gate = asyncio.Event()
        site.engine.behaviour = Behaviour(gate=gate, gate_after=1)
        running = asyncio.create_task(site.ask("pipeline/speak", ',"stream":true'))
        await site.engine.until_running(1)
        site.pipelines.apply([config("speak", "shouting", concurrency=3), config("new", "shouting")])
        while site.pipelines.statuses()[0].max_running != 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await site.serving()
        assert said(await site.ask("pipeline/speak")) == said(await site.ask("pipeline/new")) == "HI"
        with pytest.raises(ModelNotFoundError):
            await site.ask("pipeline/gone")
        gate.set()
        assert b"three" in (await running).body  # what ran went on
        site.pipelines.apply([PipelineConfig(name="speak", flow="missing.yaml")])
        while "speak cannot be set up" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert said(await site.ask("pipeline/speak")) == "HI"


LOUD = f"name: x\nsteps:\n  - requests: {{type: str}}\n  - map: {HERE}:loud\n  - reply: {{}}\n"


def loud(words: str) -> str:
    return words.upper()


def test_flows_come_from_files_packages_and_modules(tmp_path: Path) -> None:
    file = tmp_path / "loud.yaml"
    file.write_text(LOUD)
    allowed = PipelineConfig(name="x", flow=str(file), allow=(f"{HERE}:loud",))
    assert flow_of(allowed).name == "x"
    assert flow_of(config("s", "speaking", params={"model": "m"})).name == "speak"
    for bad, words in (
        (PipelineConfig(name="x", flow=str(file)), "Pipeline x: "),
        (PipelineConfig(name="x", flow=str(file), params={"a": 1}), "takes no params"),
        (PipelineConfig(name="x", flow="nothing-like-it"), "no flow 'nothing-like-it'; installed are"),
        (PipelineConfig(name="x", flow="no_such_module:flow"), "cannot be imported"),
        (config("x", "speaking", params={"volume": 3}), "does not take these params"),
        (config("x", "HERE"), "is a str, not a Flow"),
        (config("x", "numbers"), "its requests are int"),
        (config("x", "finite"), "answers no requests"),
    ):
        with pytest.raises(ConfigError, match=words):
            flow_of(bad)


def numbers() -> Flow:
    flow = Flow("numbers")
    flow.reply(flow.requests(int).map(str))
    return flow


def finite() -> Flow:
    flow = Flow("finite")
    flow.source([1]).sink(print)
    return flow
