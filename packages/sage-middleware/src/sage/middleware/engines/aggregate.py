"""One whole answer from a stream, for engines that can only be cancelled while they stream. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from sage.common.errors import EngineError
from sage.middleware.engines.faults import UpstreamError
from sage.middleware.engines.port import Usage
from sage.middleware.engines.sse import Splitter, data_of

__all__ = ["Aggregator"]


class _Choice:
    """One answer among `n`, as it grows."""

    def __init__(self) -> None:
        self.text: dict[str, list[str]] = {}  # content, reasoning_content, refusal, text
        self.tools: dict[int, dict[str, Any]] = {}
        self.logprobs: list[Any] = []
        self.finish_reason: str | None = None

    def add(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {}
        for name in ("content", "reasoning_content", "refusal"):
            if isinstance(delta.get(name), str):
                self.text.setdefault(name, []).append(delta[name])
        if isinstance(choice.get("text"), str):
            self.text.setdefault("text", []).append(choice["text"])
        for call in delta.get("tool_calls") or ():
            self._add_tool(call)
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            self.logprobs.extend(logprobs.get("content") or ())
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _add_tool(self, delta: dict[str, Any]) -> None:
        index = delta.get("index", len(self.tools))
        call = self.tools.setdefault(
            index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = delta.get("id") or call["id"]
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    def message(self) -> dict[str, Any]:
        joined = {name: "".join(parts) for name, parts in self.text.items()}
        message: dict[str, Any] = {"role": "assistant", "content": joined.pop("content", None)}
        if self.tools:
            message["tool_calls"] = [self.tools[index] for index in sorted(self.tools)]
            message["content"] = message["content"] or None
        elif message["content"] is None:
            message["content"] = ""
        return {**message, **joined}


class Aggregator:
    """Feed it an OpenAI stream (chat or completions), then ask for the JSON body that is not a stream."""

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._choices: dict[int, _Choice] = {}
        self._top: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises EngineError for an event that is not a JSON object."""
        for event in self._splitter.feed(chunk):
            data = data_of(event)
            if data and data != b"[DONE]":
                self._add(data)

    @property
    def usage(self) -> Usage:
        """Tokens used so far as the engine reported them."""
        found = self._usage or {}
        return Usage(found.get("prompt_tokens", 0), found.get("completion_tokens", 0))

    def result(self) -> bytes:
        """The whole answer. Raises EngineError if the stream had no choice in it."""
        if not self._choices:
            raise EngineError("The engine's stream held no answer.")
        chat = self._top.get("object") == "chat.completion.chunk"
        kind = "chat.completion" if chat else "text_completion"
        choices = [_whole(index, self._choices[index], chat) for index in sorted(self._choices)]
        answer = {**self._top, "object": kind, "choices": choices}
        if self._usage is not None:
            answer["usage"] = self._usage
        return msgspec.json.encode(answer)

    def _add(self, data: bytes) -> None:
        try:
            chunk = msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise UpstreamError("The engine's stream cannot be read.", str(error)) from error
        choices = chunk.pop("choices", None) or ()
        self._usage = chunk.pop("usage", None) or self._usage
        if not self._top:
            self._top = chunk
        for choice in choices:
            self._choices.setdefault(choice.get("index", 0), _Choice()).add(choice)


def _whole(index: int, choice: _Choice, chat: bool) -> dict[str, Any]:
    body: dict[str, Any] = (
        {"message": choice.message()} if chat else {"text": "".join(choice.text.get("text", ()))}
    )
    logprobs = {"content": choice.logprobs} if choice.logprobs else None
    return {"index": index, **body, "logprobs": logprobs, "finish_reason": choice.finish_reason}
