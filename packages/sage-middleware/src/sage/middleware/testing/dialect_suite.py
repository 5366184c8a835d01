"""What every engine that chats must do when asked in another dialect: a part of the conformance suite."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from sage.middleware.engines.dialects.interpreter import Interpreter
from sage.middleware.engines.port import Capability, Route, Usage
from sage.middleware.testing.dialects import read_message_stream, read_response_stream
from sage.middleware.testing.engines import LiveEngine, RecordingSink, call_for

__all__ = ["DialectConformance"]

_MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8}
_RESPONSES: dict[str, Any] = {"input": "Name a colour.", "max_output_tokens": 8, "store": False}


class DialectConformance:
    """By routes of its own or by a chat. Subclasses supply the fixture `live`."""

    @pytest.mark.parametrize("stream", [False, True])
    async def test_messages(self, live: LiveEngine, stream: bool) -> None:
        """A message with text, why it ended and what it took."""
        sink, usage = await _ask(live, Route.MESSAGES, stream, _MESSAGES)
        message = read_message_stream(sink.body) if stream else sink.json()
        assert (message["type"], message["role"]) == ("message", "assistant")
        assert "".join(block["text"] for block in message["content"])
        assert message["stop_reason"] in ("end_turn", "max_tokens")
        assert message["usage"]["output_tokens"] == usage.completion_tokens > 0
        assert usage.prompt_tokens > 0

    @pytest.mark.parametrize("stream", [False, True])
    async def test_responses(self, live: LiveEngine, stream: bool) -> None:
        """A response with text, how it stands and what it took."""
        sink, usage = await _ask(live, Route.RESPONSES, stream, _RESPONSES)
        response = read_response_stream(sink.body) if stream else sink.json()
        assert response["object"] == "response"
        assert response["status"] in ("completed", "incomplete")
        assert "".join(part["text"] for item in response["output"] for part in item["content"])
        assert response["usage"]["output_tokens"] == usage.completion_tokens > 0
        assert usage.prompt_tokens > 0


async def _ask(
    live: LiveEngine, route: Route, stream: bool, body: dict[str, Any]
) -> tuple[RecordingSink, Usage]:
    assert Capability.CHAT in live.engine.spec.capabilities
    sink = RecordingSink()
    call = structs.replace(call_for(live.engine, route, stream=stream, **body), include_usage=stream)
    usage = await Interpreter(live.engine).send(call, sink)
    assert (sink.status, sink.ended) == (200, True)
    return sink, usage
