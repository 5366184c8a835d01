"""From passages to a prompt, and from a prompt to a streamed answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from sage.common.errors import UsageError
from sage.kernel.options import Part
from sage.middleware.client import Delta, Message, ModelClient
from sage.middleware.engines.port import Usage
from sage.middleware.operators.connect import Connected
from sage.middleware.operators.records import Answer, Prompt, Retrieval

__all__ = ["INSTRUCTIONS", "Generate", "prompt"]

INSTRUCTIONS = (
    "Answer the question from the numbered passages only. Cite the passages you use as [1], [2] and so on. "
    "If they do not hold the answer, say that you do not know."
)


def prompt(instructions: str = INSTRUCTIONS, max_chars: int = 6000) -> Callable[[Retrieval], Prompt]:
    """For `map`: a system message with the instructions, a user message with numbered passages and question.

    Passages are taken in order while they fit into `max_chars` characters; the first is cut to fit.
    """
    if max_chars < 1:
        raise UsageError(f"max_chars is {max_chars}; it has to be at least 1.")

    def ask(retrieval: Retrieval) -> Prompt:
        room, parts = max_chars, []
        for number, ranked in enumerate(retrieval.found, start=1):
            text = ranked.passage.text.strip()
            if number > 1 and len(text) > room:
                break
            parts.append(f"[{number}] ({ranked.passage.doc})\n{text[:room]}")
            room -= len(text)
        passages = "\n\n".join(parts) or "(none were found)"
        question = f"Passages:\n\n{passages}\n\nQuestion: {retrieval.question.text}"
        system: Message = {"role": "system", "content": instructions}
        user: Message = {"role": "user", "content": question}
        return Prompt(retrieval, (system, user))

    return ask


class Generate(Connected):
    """For `map`: stream the model's answer; each `Delta` is a partial result, the `Answer` the last one.

    `on_delta` is called with each delta as well, for a caller that runs a finite flow. `params` are OpenAI
    chat parameters such as `temperature`.
    """

    def __init__(
        self,
        model: str,
        max_tokens: int = 256,
        params: dict[str, Any] | None = None,
        *,
        client: ModelClient | None = None,
        on_delta: Callable[[Prompt, Delta], None] | None = None,
    ) -> None:
        super().__init__(client)
        self._model = model
        self._params = {"max_tokens": max_tokens, **(params or {})}
        self._on_delta = on_delta

    async def __call__(self, asked: Prompt) -> AsyncIterator[Part[Delta] | Answer]:
        """Generate."""
        texts: list[str] = []
        usage: Usage | None = None
        request_id = ""
        async for delta in self.client.chat(asked.messages, model=self._model, **self._params):
            texts.append(delta.text)
            usage = delta.usage or usage
            request_id = delta.request_id or request_id
            if self._on_delta is not None:
                self._on_delta(asked, delta)
            yield Part(delta)
        yield Answer(asked.retrieval, "".join(texts), usage, request_id)
