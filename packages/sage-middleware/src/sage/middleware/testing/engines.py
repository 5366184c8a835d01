"""The conformance suite of the engine port, and what tests of engines use.

Subclass `EngineConformance`, give it a fixture `live` (a `LiveEngine`), and pytest runs every test that the
engine's capabilities call for. A test of a capability that is not declared checks that it is refused.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from sage.common.errors import BadRequestError, EngineError, UnreachableError
from sage.middleware.engines.port import Call, Capability, Engine, Route, Usage
from sage.middleware.engines.sse import Splitter, data_of
from sage.middleware.testing.scripted import Script, ScriptedEngine

__all__ = ["EngineConformance", "LiveEngine", "RecordingSink", "Script", "ScriptedEngine", "call_for"]


@dataclass
class LiveEngine:
    """An engine under test: how to talk to it, to kill and restart it, and to see that it is idle."""

    engine: Engine
    restart: Callable[[], Awaitable[None]]  # kill it hard; return when it serves again
    idle: Callable[[], Awaitable[bool]]  # by the engine's own account, not by ours
    unreachable: Engine  # the same adapter pointed at a port where nothing listens
    unknown_field: dict[str, Any] = field(default_factory=dict)  # what this engine must refuse


class RecordingSink:
    """A sink that keeps everything; `pause` makes it full until `resume`."""

    def __init__(self, *, pause: bool = False) -> None:
        self.status = 0
        self.content_type = ""
        self.chunks: list[bytes] = []
        self.ended = False
        self.first = asyncio.Event()
        self.drains = 0
        self._room = asyncio.Event()
        if not pause:
            self._room.set()

    def head(self, status: int, content_type: str) -> None:
        """Note the status."""
        assert self.status == 0, "head came twice"
        self.status, self.content_type = status, content_type

    def data(self, chunk: bytes) -> None:
        """Keep the bytes."""
        assert self.status, "data came before head"
        assert not self.ended, "data came after end"
        self.chunks.append(chunk)
        self.first.set()

    def end(self) -> None:
        """Note the end."""
        assert not self.ended, "end came twice"
        self.ended = True

    @property
    def full(self) -> bool:
        """Whether it is paused."""
        return not self._room.is_set()

    async def drain(self) -> None:
        """Wait for `resume`."""
        self.drains += 1
        await self._room.wait()

    def resume(self) -> None:
        """Take data again."""
        self._room.set()

    @property
    def body(self) -> bytes:
        """All bytes."""
        return b"".join(self.chunks)

    def json(self) -> Any:
        """The body as one JSON value."""
        return msgspec.json.decode(self.body)

    def events(self) -> list[Any]:
        """The chunks of a stream that ended in `[DONE]`."""
        data = [data_of(event) for event in Splitter().feed(self.body)]
        assert data[-1:] == [b"[DONE]"], data[-1:]
        return [msgspec.json.decode(each) for each in data[:-1]]


def call_for(
    engine: Engine, route: Route, *, stream: bool = False, include_usage: bool = False, **body: Any
) -> Call:
    """A call as the gateway makes it, with the engine's own model."""
    fields: dict[str, Any] = {"model": engine.spec.model, **body}
    if stream:
        fields["stream"] = True
    if include_usage:
        fields["stream_options"] = {"include_usage": True}
    return Call("req-test", route, msgspec.json.encode(fields), stream, include_usage)


async def _ask(engine: Engine, route: Route, **fields: Any) -> tuple[RecordingSink, Usage]:
    sink = RecordingSink()
    usage = await engine.send(call_for(engine, route, **fields), sink)
    assert sink.status == 200
    assert sink.ended
    return sink, usage


_CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8}
_PROMPT: dict[str, Any] = {"prompt": "The engine serves", "max_tokens": 8}
_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "paint", "parameters": _SCHEMA, "strict": True}}


def _needs(live: LiveEngine, *wanted: Capability) -> None:
    missing = [each.value for each in wanted if each not in live.engine.spec.capabilities]
    if missing:
        pytest.skip(f"{live.engine.spec.kind} does not declare {', '.join(missing)}")


def _example(live: LiveEngine) -> tuple[Route, dict[str, Any]]:
    """A route that this engine has, with a small body."""
    if Capability.CHAT in live.engine.spec.capabilities:
        return Route.CHAT, _CHAT
    if Capability.EMBEDDINGS in live.engine.spec.capabilities:
        return Route.EMBEDDINGS, {"input": "hello"}
    return Route.RERANK, {"query": "hello", "documents": ["world"]}


def _long(route: Route, body: dict[str, Any]) -> dict[str, Any]:
    """The same with more to do than a test waits for."""
    texts = ["long text " * 60] * 64
    if route is Route.RERANK:
        return {**body, "documents": texts * 8}
    return {**body, "max_tokens": 3500} if "max_tokens" in body else {"input": texts}


class EngineConformance:
    """What every engine must do. Subclasses supply the fixture `live`."""

    async def test_is_ready(self, live: LiveEngine) -> None:
        """It says that it would serve."""
        assert await live.engine.ready()

    async def test_chat(self, live: LiveEngine) -> None:
        """One whole answer, with usage."""
        _needs(live, Capability.CHAT)
        sink, usage = await _ask(live.engine, Route.CHAT, **_CHAT)
        answer = sink.json()
        assert sink.content_type.startswith("application/json")
        assert answer["object"] == "chat.completion"
        assert answer["model"] == live.engine.spec.model
        assert answer["choices"][0]["message"]["role"] == "assistant"
        assert answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")
        assert answer["usage"]["completion_tokens"] == usage.completion_tokens > 0
        assert answer["usage"]["prompt_tokens"] == usage.prompt_tokens > 0

    @pytest.mark.parametrize("include_usage", [False, True])
    async def test_chat_stream(self, live: LiveEngine, include_usage: bool) -> None:
        """Chunks, then `[DONE]`; usage in a chunk of its own if it was asked for, and always reported."""
        _needs(live, Capability.CHAT)
        sink, usage = await _ask(live.engine, Route.CHAT, stream=True, include_usage=include_usage, **_CHAT)
        self._check_stream(sink, usage, include_usage, "chat.completion.chunk", live)
        deltas = [c["delta"].get("content") or "" for e in sink.events() for c in e["choices"]]
        assert "".join(deltas)

    async def test_completion(self, live: LiveEngine) -> None:
        """One whole answer to a bare prompt."""
        _needs(live, Capability.COMPLETIONS)
        sink, usage = await _ask(live.engine, Route.COMPLETIONS, **_PROMPT)
        answer = sink.json()
        assert answer["object"] == "text_completion"
        assert answer["model"] == live.engine.spec.model
        assert answer["choices"][0]["text"]
        assert usage.completion_tokens > 0

    @pytest.mark.parametrize("include_usage", [False, True])
    async def test_completion_stream(self, live: LiveEngine, include_usage: bool) -> None:
        """As for chat."""
        _needs(live, Capability.COMPLETIONS)
        sink, usage = await _ask(
            live.engine, Route.COMPLETIONS, stream=True, include_usage=include_usage, **_PROMPT
        )
        self._check_stream(sink, usage, include_usage, "text_completion", live)
        assert "".join(c["text"] for e in sink.events() for c in e["choices"])

    async def test_stream_and_whole_agree(self, live: LiveEngine) -> None:
        """Greedy decoding gives the same text both ways."""
        _needs(live, Capability.COMPLETIONS)
        whole, _ = await _ask(live.engine, Route.COMPLETIONS, temperature=0, **_PROMPT)
        parts, _ = await _ask(live.engine, Route.COMPLETIONS, temperature=0, stream=True, **_PROMPT)
        text = "".join(c["text"] for e in parts.events() for c in e["choices"])
        assert whole.json()["choices"][0]["text"] == text

    async def test_embeddings(self, live: LiveEngine) -> None:
        """A string, a list, and base64 give the same vectors in input order."""
        _needs(live, Capability.EMBEDDINGS)
        texts = ["a red apple", "the theory of sets, at some length and with several words", "a red apple"]
        sink, usage = await _ask(live.engine, Route.EMBEDDINGS, input=texts)
        answer = sink.json()
        assert [each["index"] for each in answer["data"]] == [0, 1, 2]
        vectors = [each["embedding"] for each in answer["data"]]
        assert usage.prompt_tokens == answer["usage"]["prompt_tokens"] > 0
        coded, _ = await _ask(live.engine, Route.EMBEDDINGS, input=texts, encoding_format="base64")
        for vector, each in zip(vectors, coded.json()["data"], strict=True):
            raw = base64.b64decode(each["embedding"])
            assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(vector, abs=1e-3)
        single, _ = await _ask(live.engine, Route.EMBEDDINGS, input=texts[0])
        assert single.json()["data"][0]["embedding"] == pytest.approx(vectors[0], abs=1e-3)
        assert vectors[0] == pytest.approx(vectors[2], abs=1e-3)

    async def test_rerank(self, live: LiveEngine) -> None:
        """Every document has its score, by its index, the same alone and among others."""
        _needs(live, Capability.RERANK)
        documents = ["a red apple", "the theory of sets, at some length", "a red apple"]
        sink, usage = await _ask(live.engine, Route.RERANK, query="fruit", documents=documents)
        answer = sink.json()
        scores = {each["index"]: each["relevance_score"] for each in answer["results"]}
        assert sorted(scores) == [0, 1, 2]
        ranked = [each["relevance_score"] for each in answer["results"]]
        assert ranked == sorted(ranked, reverse=True)
        assert usage.prompt_tokens == answer["usage"]["prompt_tokens"] > 0
        assert scores[0] == pytest.approx(scores[2], abs=1e-3)
        single, _ = await _ask(live.engine, Route.RERANK, query="fruit", documents=documents[1:2])
        assert single.json()["results"][0]["relevance_score"] == pytest.approx(scores[1], abs=1e-3)

    async def test_score(self, live: LiveEngine) -> None:
        """One text with many, or pairs one by one: the scores are those of a rerank, in input order."""
        _needs(live, Capability.RERANK)
        texts = ["a red apple", "the theory of sets"]
        ranked, _ = await _ask(live.engine, Route.RERANK, query="fruit", documents=texts)
        wanted = {each["index"]: each["relevance_score"] for each in ranked.json()["results"]}
        for left in ("fruit", ["fruit", "fruit"]):
            sink, usage = await _ask(live.engine, Route.SCORE, text_1=left, text_2=texts)
            data = sink.json()["data"]
            assert [each["index"] for each in data] == [0, 1]
            assert [each["score"] for each in data] == pytest.approx([wanted[0], wanted[1]], abs=1e-3)
            assert usage.prompt_tokens > 0

    async def test_nothing_scores_that_does_not_declare_it(self, live: LiveEngine) -> None:
        """An engine of vectors compares none in place of a cross-encoder."""
        if Capability.EMBEDDINGS not in live.engine.spec.capabilities:
            pytest.skip("computes no vectors")
        assert Capability.RERANK not in live.engine.spec.capabilities

    async def test_bad_request(self, live: LiveEngine) -> None:
        """The engine's own 4xx is a BadRequestError, and nothing has reached the sink."""
        route, body = _example(live)
        sink = RecordingSink()
        with pytest.raises(BadRequestError):
            await live.engine.send(call_for(live.engine, route, **{**body, **live.unknown_field}), sink)
        assert sink.status == 0

    async def test_unreachable(self, live: LiveEngine) -> None:
        """Nothing listens: UnreachableError, not ready, and nothing has reached the sink."""
        route, body = _example(live)
        sink = RecordingSink()
        with pytest.raises(UnreachableError):
            await live.unreachable.send(call_for(live.unreachable, route, **body), sink)
        assert sink.status == 0
        assert not await live.unreachable.ready()

    async def test_begin_answers_as_send_does_or_leaves_it_to_that(self, live: LiveEngine) -> None:
        """What was begun is told once, what was broken off never."""
        route, body = _example(live)
        (_, usage), told = await _ask(live.engine, route, **body), list[Usage | Exception]()
        over: asyncio.Future[Usage | Exception] = asyncio.get_running_loop().create_future()
        begun = live.engine.begin(call_for(live.engine, route, **body), over.set_result)
        if begun is None:
            return
        assert getattr(await over, "prompt_tokens", None) == usage.prompt_tokens
        assert msgspec.json.decode(begun.body)
        dropped = live.engine.begin(call_for(live.engine, route, **_long(route, body)), told.append)
        assert dropped is not None
        dropped.abort()
        await _until(live.idle, True, 8.0)
        assert told == []

    @pytest.mark.parametrize("stream", [True, False])
    async def test_cancel_frees_the_engine(self, live: LiveEngine, stream: bool) -> None:
        """After a cancel the engine goes idle long before it would have finished, and serves the next."""
        route, body = _example(live)
        work = _long(route, body)
        stream = stream and route is Route.CHAT
        sinks = [RecordingSink() for _ in range(4)]
        tasks = [
            asyncio.create_task(live.engine.send(call_for(live.engine, route, stream=stream, **work), sink))
            for sink in sinks
        ]
        if stream:
            await asyncio.gather(*(sink.first.wait() for sink in sinks))
        else:
            await _until(live.idle, False, 10.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not any(sink.ended for sink in sinks), "the work was over before it could be cancelled"
        await _until(live.idle, True, 8.0)
        await _ask(live.engine, route, **body)

    async def test_many_at_once(self, live: LiveEngine) -> None:
        """Concurrent calls are all answered."""
        route, body = _example(live)
        answers = await asyncio.gather(*(_ask(live.engine, route, **body) for _ in range(16)))
        assert len(answers) == 16

    async def test_json_schema(self, live: LiveEngine) -> None:
        """`response_format` is obeyed where it is declared."""
        _needs(live, Capability.CHAT, Capability.RESPONSE_FORMAT)
        wanted = {"type": "json_schema", "json_schema": {"name": "colour", "schema": _SCHEMA, "strict": True}}
        sink, _ = await _ask(live.engine, Route.CHAT, response_format=wanted, **{**_CHAT, "max_tokens": 40})
        answer = msgspec.json.decode(sink.json()["choices"][0]["message"]["content"])
        assert answer["colour"] in ("red", "blue")

    async def test_json_schema_not_ignored(self, live: LiveEngine) -> None:
        """Where it is not declared it is refused, not ignored."""
        _needs(live, Capability.CHAT)
        if Capability.RESPONSE_FORMAT in live.engine.spec.capabilities:
            pytest.skip("declared")
        call = call_for(live.engine, Route.CHAT, response_format={"type": "json_object"}, **_CHAT)
        with pytest.raises(BadRequestError, match="response_format"):
            await live.engine.send(call, RecordingSink())

    async def test_tools(self, live: LiveEngine) -> None:
        """A named tool is called with arguments that fit its schema."""
        _needs(live, Capability.CHAT, Capability.TOOLS, Capability.TOOL_CHOICE)
        choice = {"type": "function", "function": {"name": "paint"}}
        body = {**_CHAT, "max_tokens": 120, "temperature": 0, "tools": [_TOOL], "tool_choice": choice}
        sink, _ = await _ask(live.engine, Route.CHAT, **body)
        called = sink.json()["choices"][0]["message"]["tool_calls"][0]["function"]
        assert called["name"] == "paint"
        assert msgspec.json.decode(called["arguments"])["colour"] in ("red", "blue")

    async def test_priority(self, live: LiveEngine) -> None:
        """`priority` is accepted where it is declared."""
        _needs(live, Capability.CHAT, Capability.PRIORITY)
        await _ask(live.engine, Route.CHAT, priority=3, **_CHAT)

    async def test_kill_and_restart(self, live: LiveEngine) -> None:
        """A stream that is cut fails with EngineError; after the restart the same connection pool serves."""
        route, body = _example(live)
        sink = RecordingSink()
        work = _long(route, body)
        stream = route is Route.CHAT
        task = asyncio.create_task(
            live.engine.send(call_for(live.engine, route, stream=stream, **work), sink)
        )
        if stream:
            await sink.first.wait()
        else:
            await _until(live.idle, False, 10.0)
        restarting = asyncio.ensure_future(live.restart())
        with pytest.raises((EngineError, UnreachableError)):
            await task
        await restarting
        assert not sink.ended
        await _ask(live.engine, route, **body)

    @staticmethod
    def _check_stream(
        sink: RecordingSink, usage: Usage, include_usage: bool, kind: str, live: LiveEngine
    ) -> None:
        events = sink.events()
        assert sink.content_type.startswith("text/event-stream")
        assert {each["object"] for each in events} == {kind}
        assert {each["model"] for each in events} == {live.engine.spec.model}
        reasons = [c.get("finish_reason") for e in events for c in e["choices"]]
        assert [reason for reason in reasons if reason] in (["stop"], ["length"])
        counted = [each["usage"] for each in events if each.get("usage")]
        assert usage.completion_tokens > 0
        assert usage.prompt_tokens > 0
        if include_usage:
            assert events[-1]["choices"] == []
            assert [each["completion_tokens"] for each in counted] == [usage.completion_tokens]
        else:
            assert counted == []
            assert all(each["choices"] for each in events)


async def _until(state: Callable[[], Awaitable[bool]], wanted: bool, timeout: float) -> None:
    """Ask until the engine is as wanted."""
    async with asyncio.timeout(timeout):
        while await state() is not wanted:  # noqa: ASYNC110 - another process, which cannot set an event
            await asyncio.sleep(0.02)
