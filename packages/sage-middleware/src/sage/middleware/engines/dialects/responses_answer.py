"""A chat's answer as one of `/v1/responses`: events of a stream, or a whole response. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from sage.common.errors import EngineError
from sage.middleware.engines.dialects.chat import Call, CallOrder, Chunk, Tokens, read_whole
from sage.middleware.engines.dialects.responses_body import ResponsesBody
from sage.middleware.engines.dialects.responses_items import FunctionItem, MessageItem, OpenItem, ThoughtsItem

__all__ = ["ResponsesScribe", "response_of"]

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesScribe:
    """Writes the events of one stream. Items come one after the other, each begun, filled and ended.

    `ident` is the id of the response, `created` Unix seconds. Nothing is written before the engine says
    something, so that until then another engine can be asked.
    """

    def __init__(self, ident: str, body: ResponsesBody, created: int) -> None:
        self._ident = ident
        self._body = body
        self._created = created
        self._sequence = 0
        self._begun = False
        self._open: OpenItem | None = None
        self._calls = CallOrder()
        self._output: list[dict[str, Any]] = []
        self._finish: str | None = None
        self._usage = Tokens()

    def feed(self, chunk: Chunk) -> bytes:
        """The events that a chunk makes. Raises EngineError for calls that are not one after the other."""
        delta, out = chunk.delta, b""
        thoughts = delta.reasoning or delta.reasoning_content
        if thoughts:
            out += self._enter(ThoughtsItem) + self._fill(thoughts)
        for kind, text in (("output_text", delta.content), ("refusal", delta.refusal)):
            if text:
                out += self._enter(MessageItem)
                assert isinstance(self._open, MessageItem)
                out += self._write(self._open.turn(kind)) + self._fill(text)
        for call in delta.tool_calls or ():
            out += self._add_call(call)
        self._finish = chunk.finish_reason or self._finish
        self._usage = chunk.usage or self._usage
        return out

    def close(self) -> bytes:
        """The last events. Raises EngineError for a stream that did not say why it ended."""
        response = self._whole()
        out = self._begin() + self._leave(self._finish in _INCOMPLETE)
        response["output"] = self._output
        return out + self._write([{"type": f"response.{response['status']}", "response": response}])

    def whole(self, body: bytes) -> bytes:
        """The response that a whole chat answer makes; instead of all events. Raises EngineError."""
        self.feed(read_whole(body))
        response = self._whole()
        self._leave(self._finish in _INCOMPLETE)
        return msgspec.json.encode({**response, "output": self._output})

    def _whole(self) -> dict[str, Any]:
        if self._finish is None:
            raise EngineError("The engine's answer has no finish reason.")
        reason = _INCOMPLETE.get(self._finish)
        return {
            **_response(self._ident, self._body, self._created),
            "status": "completed" if reason is None else "incomplete",
            "incomplete_details": None if reason is None else {"reason": reason},
            "usage": _usage(self._usage),
        }

    # ---- items ---------------------------------------------------------------------------------------------

    def _enter(self, kind: type[ThoughtsItem] | type[MessageItem]) -> bytes:
        """See to it that an item of this kind is open."""
        if isinstance(self._open, kind):
            return b""
        self._calls.leave()
        return self._start(lambda: kind(self._name(kind.prefix)))

    def _add_call(self, call: Call) -> bytes:
        out, name = b"", call.function.name or ""
        if self._calls.begins(call):
            out = self._start(lambda: FunctionItem(self._name("fc"), call.id or self._name("call"), name))
        return out + (self._fill(call.function.arguments) if call.function.arguments else b"")

    def _name(self, prefix: str) -> str:
        return f"{prefix}_{self._ident.removeprefix('resp_')}{len(self._output)}"

    def _start(self, make: Callable[[], OpenItem]) -> bytes:
        out = self._begin() + self._leave(False)
        item = self._open = make()
        return out + self._write([{"type": "response.output_item.added", "item": item.begun()}])

    def _fill(self, text: str) -> bytes:
        assert self._open is not None
        return self._write(self._open.fill(text))

    def _leave(self, cut: bool) -> bytes:
        """End the item that is open; `cut`: it is not whole."""
        if self._open is None:
            return b""
        item, self._open = self._open, None
        out = self._write(item.ending(), len(self._output))
        done = item.done("incomplete" if cut else "completed")
        at = len(self._output)
        self._output.append(done)
        return out + self._write([{"type": "response.output_item.done", "item": done}], at)

    # ---- events --------------------------------------------------------------------------------------------

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        response = {**_response(self._ident, self._body, self._created), "status": "in_progress"}
        names = ("response.created", "response.in_progress")
        return self._write([{"type": name, "response": response} for name in names])

    def _write(self, events: list[dict[str, Any]], at: int | None = None) -> bytes:
        """The bytes of events, numbered; those about an item name its place."""
        out = b""
        for event in events:
            kind = event.pop("type")
            head: dict[str, Any] = {"type": kind, "sequence_number": self._sequence}
            if "response" not in event:
                head["output_index"] = len(self._output) if at is None else at
            self._sequence += 1
            out += b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({**head, **event}))
        return out


def response_of(ident: str, body: ResponsesBody, created: int, answer: bytes) -> bytes:
    """The response that a whole chat answer makes. Raises EngineError for one that cannot be read."""
    return ResponsesScribe(ident, body, created).whole(answer)


def _response(ident: str, body: ResponsesBody, created: int) -> dict[str, Any]:
    """A response that has begun, with what was asked for."""
    asked = msgspec.to_builtins(body)
    return {
        "id": ident,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": asked["text"] or {"format": {"type": "text"}},
        "tool_choice": asked["tool_choice"] or "auto",
        "tools": asked["tools"] or [],
        "top_logprobs": 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _usage(tokens: Tokens) -> dict[str, Any]:
    return {
        "input_tokens": tokens.prompt_tokens,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
        "output_tokens": tokens.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoned},
        "total_tokens": tokens.prompt_tokens + tokens.completion_tokens,
    }
