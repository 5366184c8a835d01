"""A chat's answer as one of `/v1/messages`: events of a stream, or a whole message. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sage.common.errors import EngineError
from sage.middleware.engines.dialects.chat import Call, CallOrder, Chunk, Tokens, read_whole

__all__ = ["MessagesScribe", "count_of", "message_of"]

_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class MessagesScribe:
    """Writes the events of one stream. Blocks come one after the other, each begun, filled and ended.

    `ident` is the id of the message, `model` the one that was asked for. Thoughts are left out: nobody who is
    answered here has asked for them.
    """

    def __init__(self, ident: str, model: str) -> None:
        self._ident = ident
        self._model = model
        self._begun = False
        self._index = -1
        self._open = ""  # type of the block that is open
        self._calls = CallOrder()
        self._finish: str | None = None
        self._stopped_by: str | None = None
        self._usage = Tokens()

    def feed(self, chunk: Chunk) -> bytes:
        """The events that a chunk makes. Raises EngineError for calls that are not one after the other."""
        out = b"" if self._begun else self._begin()
        delta = chunk.delta
        for text in (delta.content, delta.refusal):
            if text:
                if self._open != "text":
                    self._calls.leave()
                    out += self._start({"type": "text", "text": ""})
                out += self._fill({"type": "text_delta", "text": text})
        for call in delta.tool_calls or ():
            out += self._call(call)
        self._finish = chunk.finish_reason or self._finish
        self._stopped_by = chunk.stopped_by or self._stopped_by
        self._usage = chunk.usage or self._usage
        return out

    def close(self) -> bytes:
        """The last events. Raises EngineError for a stream that did not say why it ended."""
        if self._finish is None:
            raise EngineError("The engine's stream ended without a finish reason.")
        delta = _end(self._finish, self._stopped_by, len(self._calls) > 0)
        out = b"" if self._begun else self._begin()
        out += self._stop() + _event("message_delta", delta=delta, usage=_usage(self._usage))
        return out + _event("message_stop")

    def _begin(self) -> bytes:
        self._begun = True
        message = _message(
            self._ident, self._model, [], {"stop_reason": None, "stop_sequence": None}, Tokens()
        )
        return _event("message_start", message=message)

    def _call(self, call: Call) -> bytes:
        out = b""
        if self._calls.begins(call):
            at = len(self._calls) - 1
            ident = call.id or f"toolu_{self._ident.removeprefix('msg_')}{at}"
            out = self._start({"type": "tool_use", "id": ident, "name": call.function.name, "input": {}})
        if call.function.arguments:
            out += self._fill({"type": "input_json_delta", "partial_json": call.function.arguments})
        return out

    def _start(self, block: dict[str, Any]) -> bytes:
        out = self._stop()
        self._open = block["type"]
        self._index += 1
        return out + _event("content_block_start", index=self._index, content_block=block)

    def _fill(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", index=self._index)


def message_of(ident: str, model: str, body: bytes) -> bytes:
    """The message that a whole chat answer makes.

    A call whose arguments the length has cut off is left out; `stop_reason` tells why. Raises EngineError for
    an answer that cannot be read, or a call with arguments that are no object.
    """
    whole = read_whole(body)
    if whole.finish_reason is None:
        raise EngineError("The engine's answer has no finish reason.")
    content: list[dict[str, Any]] = [
        {"type": "text", "text": text} for text in (whole.delta.content, whole.delta.refusal) if text
    ]
    for at, call in enumerate(whole.delta.tool_calls or ()):
        arguments = _arguments(call)
        if arguments is not None:
            name = {"id": call.id or f"toolu_{ident.removeprefix('msg_')}{at}", "name": call.function.name}
            content.append({"type": "tool_use", **name, "input": arguments})
        elif whole.finish_reason != "length":
            raise EngineError("The engine called a tool with arguments that are not a JSON object.")
    end = _end(whole.finish_reason, whole.stopped_by, bool(whole.delta.tool_calls))
    return msgspec.json.encode(_message(ident, model, content, end, whole.usage or Tokens()))


def count_of(body: bytes) -> bytes:
    """The answer to `/v1/messages/count_tokens` from one to `/tokenize`. Raises EngineError."""
    try:
        return msgspec.json.encode({"input_tokens": msgspec.json.decode(body, type=_Count).count})
    except msgspec.DecodeError as error:
        raise EngineError(f"The engine's count of tokens cannot be read: {error}.") from error


class _Count(msgspec.Struct):
    count: int


def _arguments(call: Call) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def _message(
    ident: str, model: str, content: list[dict[str, Any]], end: dict[str, Any], tokens: Tokens
) -> dict[str, Any]:
    head = {"id": ident, "type": "message", "role": "assistant", "model": model, "content": content}
    return {**head, **end, "usage": _usage(tokens)}


def _end(finish: str, stopped_by: str | None, calls: bool) -> dict[str, Any]:
    """Why it ended. Some engines say `stop` after the call of a tool too."""
    reason = "tool_use" if calls and finish == "stop" else _REASONS.get(finish, "end_turn")
    if reason == "end_turn" and stopped_by is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": stopped_by if reason == "stop_sequence" else None}


def _usage(tokens: Tokens) -> dict[str, int]:
    """By Anthropic's count what was read from a cache is not among `input_tokens`."""
    return {
        "input_tokens": tokens.prompt_tokens - tokens.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.completion_tokens,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))
