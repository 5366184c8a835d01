"""Spans of a real gateway, as a real receiver of OTLP over HTTP gets them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from sage.common.config import TelemetryConfig
from sage.common.errors import ConfigError
from sage.gateway import telemetry
from sage.gateway.serve import bind
from sage.gateway.testing.batches import BatchStack, jsonl, line
from sage.middleware.testing.engines import Script, ScriptedEngine

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)

SERVER, CLIENT, ERROR = 2, 3, 2  # of OTLP: kinds of spans, a code of a status
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
BODY = {
    "model": "scripted",
    "messages": [{"role": "user", "content": "a secret"}],
    "stream": True,
    "max_tokens": 9,
}


class Receiver:
    """Takes traces; `hang` leaves every export without an answer."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.raw = b""
        self.hang: asyncio.Event | None = None
        self._changed = asyncio.Condition()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.hang is not None:
            await self.hang.wait()
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {facts(resource.resource)["service.name"]}
            for scope in resource.scope_spans:
                self.spans += scope.spans
        async with self._changed:
            self._changed.notify_all()
        return web.Response()

    async def until(self, count: int) -> tuple[list[Any], list[Any]]:
        """Server spans and client spans, once so many have come, and no more."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: len(self.spans) >= count)
        assert len(self.spans) == count
        return [s for s in self.spans if s.kind == SERVER], [s for s in self.spans if s.kind == CLIENT]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    sock = bind("127.0.0.1", 0, "x")
    await web.SockSite(runner, sock).start()
    receiver.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    yield receiver
    if receiver.hang is not None:
        receiver.hang.set()
    await runner.cleanup()


def config_for(engine: ScriptedEngine, url: str) -> dict[str, Any]:
    entry = engine.config("engine-0").model_dump(mode="json")
    return {"engines": [entry], "telemetry": {"otlp_endpoint": url}}


def facts(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


async def ask(gateway: Any, **fields: Any) -> Any:
    url = f"{gateway.run.base_url}/chat/completions"
    body = {**BODY, **fields}
    return await gateway.http("POST", url, key=gateway.keys.default, body=body, traceparent=TRACE)


@pytest.fixture
def traced(spawner: Any) -> Any:
    """A spawner whose gateways export at once."""
    spawner.environment["OTEL_BSP_SCHEDULE_DELAY"] = "20"
    spawner.environment["OTEL_SERVICE_NAME"] = "my-gateway"
    return spawner


async def test_a_request_and_its_call_are_spans_of_the_clients_trace(traced: Any, receiver: Receiver) -> None:
    async with ScriptedEngine() as engine:
        gateway = await traced.start(config_for(engine, receiver.url))
        await gateway.until_ready()
        answer = await ask(gateway)
        (server,), (client,) = await receiver.until(2)
        assert await gateway.stop() == 0
        sent = engine.requests[-1].headers["traceparent"]
    assert server.trace_id == client.trace_id == bytes.fromhex("a" * 32)
    assert (server.parent_span_id, client.parent_span_id) == (bytes.fromhex("b" * 16), server.span_id)
    assert answer.headers["traceparent"] == f"00-{'a' * 32}-{server.span_id.hex()}-01"
    assert sent == f"00-{'a' * 32}-{client.span_id.hex()}-01"
    assert server.name == client.name == "chat scripted"
    found = facts(server)
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == "scripted"
    assert found["gen_ai.request.max_tokens"] == 9
    assert found["gen_ai.usage.output_tokens"] == facts(client)["gen_ai.usage.output_tokens"] == 3
    assert (found["sage.class"], found["sage.engine"]) == ("chat", "engine-0")
    assert found["sage.ttft_s"] >= found["sage.queue_s"] >= 0
    assert found["http.response.status_code"] == 200
    assert found["sage.request_id"] == answer.headers["x-request-id"]
    assert (server.status.code, client.status.code) == (0, 0)
    assert receiver.services == {"my-gateway"}
    assert b"a secret" not in receiver.raw
    assert gateway.keys.default.partition(".")[2].encode() not in receiver.raw


async def test_a_line_of_a_batch_is_a_request_like_any_other(traced: Any, receiver: Receiver) -> None:
    async with ScriptedEngine(model="talker") as engine:
        gateway = await traced.start(config_for(engine, receiver.url))
        await gateway.until_ready()
        stack = BatchStack(gateway, engine, engine)
        client = stack.client()
        done = await client.until(await client.batch(jsonl(line("one"))), "completed")
        (told,) = await client.lines(done.output_file_id)
        (server,), (call,) = await receiver.until(2)
        await stack.close()
        assert await gateway.stop() == 0
    assert (call.trace_id, call.parent_span_id) == (server.trace_id, server.span_id)
    assert server.name == "chat talker"
    found = facts(server)
    assert (found["sage.class"], found["http.response.status_code"]) == ("batch", 200)
    assert found["sage.request_id"] == told["response"]["request_id"]


async def test_each_attempt_has_a_span_and_what_is_refused_has_one_without(
    traced: Any, receiver: Receiver
) -> None:
    async with ScriptedEngine() as engine:
        gateway = await traced.start(config_for(engine, receiver.url))
        await gateway.until_ready()
        engine.next_scripts += [Script(status=500), Script(status=500)]
        assert (await ask(gateway)).status == 502
        (server,), calls = await receiver.until(1 + len(engine.requests))
        assert [one.status.code for one in (server, *calls)] == [ERROR] * (1 + len(calls))
        assert facts(server)["error.type"] == facts(calls[0])["error.type"] == "engine_error"
        before = len(receiver.spans)
        assert (await ask(gateway, n=9)).status == 400
        servers, _ = await receiver.until(before + 1)
        assert facts(servers[-1])["error.type"] == "invalid_request: n"
        assert facts(servers[-1])["http.response.status_code"] == 400
        assert servers[-1].name == "chat"
        assert await gateway.stop() == 0


async def test_a_client_that_leaves_ends_its_spans_once(traced: Any, receiver: Receiver) -> None:
    async with ScriptedEngine() as engine:
        gateway = await traced.start(config_for(engine, receiver.url))
        await gateway.until_ready()
        engine.next_scripts.append(Script(gate=asyncio.Event(), gate_after=1))
        asking = asyncio.create_task(ask(gateway))
        await engine.until(lambda: engine.active == 1)
        asking.cancel()
        (server,), (client,) = await receiver.until(2)
        assert facts(server)["error.type"] == "cancelled"
        assert facts(client)["error.type"] == "CancelledError"
        assert await gateway.stop() == 0
        assert len(receiver.spans) == 2


async def test_without_traces_the_clients_own_goes_on_and_every_answer_has_an_id(spawner: Any) -> None:
    async with ScriptedEngine() as engine:
        gateway = await spawner.start({"engines": config_for(engine, "")["engines"]})
        await gateway.until_ready()
        answer = await ask(gateway)
        assert answer.headers["traceparent"] == engine.requests[-1].headers["traceparent"] == TRACE
        for base, status in ((gateway.run.admin_url, 401), (gateway.run.health_url, 404)):
            found = await gateway.http("GET", f"{base}/nowhere", x_request_id="mine")
            assert (found.status, found.headers["x-request-id"]) == (status, "mine")
            made = await gateway.http("GET", f"{base}/nowhere")
            assert made.headers["x-request-id"].startswith("req")
        assert await gateway.stop() == 0


@pytest.mark.parametrize("how", ["nobody listens", "it never answers"])
async def test_a_receiver_that_is_down_holds_up_no_request_and_not_the_end(
    traced: Any, receiver: Receiver, how: str
) -> None:
    url = receiver.url
    if how == "nobody listens":
        with bind("127.0.0.1", 0, "x") as free:
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
    else:
        receiver.hang = asyncio.Event()
    async with ScriptedEngine() as engine:
        gateway = await traced.start(config_for(engine, url))
        await gateway.until_ready()
        for answer in await asyncio.gather(*(ask(gateway) for _ in range(20))):
            assert answer.status == 200
        assert await gateway.stop() == 0
    assert receiver.spans == []


def test_what_runs_without_traces_does_not_import_them() -> None:
    code = (
        "import sys, sage.gateway.main\n"
        "from sage.common.config import TelemetryConfig as C\n"
        "from sage.gateway.telemetry import Telemetry as T\n"
        "off = T(C(access_log='off'), {})\n"
        "assert off.around(print) is print\n"
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter')\n"
        "assert not any(name.startswith(heavy) for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "sage.gateway.tracing", raising=False)
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    with pytest.raises(ConfigError, match=r"sage-gateway\[otel\]"):
        telemetry.Telemetry(TelemetryConfig(), env)
    telemetry.Telemetry(TelemetryConfig(), {**env, "OTEL_SDK_DISABLED": "true"})
    telemetry.Telemetry(TelemetryConfig(), {})
