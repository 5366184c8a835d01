"""The answer of a pipeline in the form of a chat: events of a stream, or one body. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from sage.middleware.engines.port import Usage

__all__ = ["ChatWriter"]


class _Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatWriter:
    """Writes the answer of one chat in OpenAI's form. `created` in Unix seconds."""

    def __init__(self, ident: str, model: str, created: int) -> None:
        self._top = {"id": f"chatcmpl-{ident}", "created": created, "model": model}
        self._begun = False

    def piece(self, text: str) -> bytes:
        """The event of the next piece of text; the first one says who speaks, too."""
        role, self._begun = (None if self._begun else "assistant"), True
        return self._event([{"index": 0, "delta": _Delta(role, text), "finish_reason": None}])

    def end(self, usage: Usage, *, tell: bool) -> bytes:
        """The last events. `tell`: the client asked for the usage."""
        delta = _Delta(None if self._begun else "assistant", None if self._begun else "")
        last = self._event([{"index": 0, "delta": delta, "finish_reason": "stop"}])
        if tell:
            last += self._event([], usage=_figures(usage))
        return last + b"data: [DONE]\n\n"

    def whole(self, text: str, usage: Usage) -> bytes:
        """The body of an answer that is no stream."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        top = {**self._top, "object": "chat.completion", "choices": [choice]}
        return msgspec.json.encode({**top, "usage": _figures(usage)})

    def _event(self, choices: list[Any], **more: Any) -> bytes:
        chunk = {**self._top, "object": "chat.completion.chunk", "choices": choices, **more}
        return b"data: %b\n\n" % msgspec.json.encode(chunk)


def _figures(usage: Usage) -> dict[str, int]:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
