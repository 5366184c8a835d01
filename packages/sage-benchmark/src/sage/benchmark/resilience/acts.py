"""What a request asks a puppet engine to do, written into its prompt, which the gateway passes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

__all__ = ["Act", "acts_of", "chat", "embedding"]

CHAT_MODEL: Final = "llm"
VECTOR_MODEL: Final = "vectors"
_MARK: Final = "act:"


class Act(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One engine's part. Without any of it: answer `words` words at once.

    `tag` names the request in what the engine reports. `hold`: wait after so many pieces until the client
    goes away or the puppet is told to release (-1 = before the head). `cut` closes the connection, and `kill`
    ends the whole process by SIGKILL, after so many bytes of the body; with `once`, only the engine that can
    make that file does either, and it writes into it when it did (monotonic seconds). `refuse`: the share of
    answers that are a 500. `say`: one of `answers.NONSENSE`. `endless`: the words
    again and again. Times are in milliseconds.
    """

    tag: str = ""
    words: int = 3
    first_ms: float = 0.0
    gap_ms: float = 0.0
    hold: int | None = None
    cut: int | None = None
    kill: int | None = None
    once: str = ""
    refuse: float = 0.0
    say: str = ""
    endless: bool = False

    @property
    def text(self) -> str:
        """The prompt that asks for it."""
        return _MARK + msgspec.json.encode(self).decode()


def acts_of(body: bytes) -> tuple[list[Act], dict[str, Any]]:
    """What a request's body asks for, one act for each of its texts; and the body. Any object will do."""
    fields = msgspec.json.decode(body, type=dict[str, Any])
    texts = fields.get("input", fields.get("prompt"))
    if texts is None:
        messages = fields.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        texts = last.get("content") if isinstance(last, dict) else None
    found = texts if isinstance(texts, list) and texts else [texts]
    return [_act(text) for text in found], fields


def _act(text: object) -> Act:
    if isinstance(text, str) and text.startswith(_MARK):
        return msgspec.json.decode(text[len(_MARK) :], type=Act)
    return Act()


def chat(act: Act | None = None, *, model: str = CHAT_MODEL, **fields: Any) -> bytes:
    """The body of a chat request."""
    prompt = "hello" if act is None else act.text
    return msgspec.json.encode(
        {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64, **fields}
    )


def embedding(texts: Sequence[str], *, model: str = VECTOR_MODEL) -> bytes:
    """The body of an embedding request."""
    return msgspec.json.encode({"model": model, "input": list(texts)})
