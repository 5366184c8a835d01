"""What a request about tokens asks for: the tokens of a prompt or a chat, or the text of tokens. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sage.common.errors import BadRequestError
from sage.common.telemetry import Bound
from sage.middleware.control_plane.facts import Facts, ParseLimits, bounded, convert, estimate
from sage.middleware.engines.port import Capability

__all__ = ["MAX_MESSAGES", "read_detokenize", "read_tokenize"]

MAX_MESSAGES: Final = 2048

_PROMPTS: Final = frozenset((Capability.TOKENIZE,))
_CHATS: Final = frozenset((Capability.TOKENIZE, Capability.CHAT))  # whoever has no chat template cannot


class _Tokenize(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None


class _Detokenize(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    tokens: list[int]


def read_tokenize(fields: dict[str, Any], body: bytes) -> Facts:
    """Judge a tokenize body. Raises BadRequestError with `param` naming the field."""
    asked = convert(fields, _Tokenize)
    if (asked.prompt is None) == (asked.messages is None):
        raise BadRequestError("Give either 'prompt' or 'messages'.", param="prompt")
    if asked.messages is not None:
        bounded("messages", len(asked.messages), 1, MAX_MESSAGES, "messages", Bound.MESSAGES)
    elif asked.add_generation_prompt is not None:
        raise BadRequestError(
            "add_generation_prompt belongs to 'messages'; a prompt is taken as it is.",
            param="add_generation_prompt",
        )
    needs = _PROMPTS if asked.messages is None else _CHATS
    return Facts(model=asked.model, body=body, needs=needs, prompt_tokens=estimate(len(body)))


def read_detokenize(fields: dict[str, Any], body: bytes, limits: ParseLimits) -> Facts:
    """Judge a detokenize body. Errors as of `read_tokenize`."""
    asked = convert(fields, _Detokenize)
    bounded("tokens", len(asked.tokens), 1, limits.max_input_tokens, "token ids", Bound.INPUT_TOKENS)
    for at, token in enumerate(asked.tokens):
        if token < 0:
            bounded(f"tokens[{at}]", token, 0, None)
    return Facts(model=asked.model, body=body, needs=_PROMPTS, prompt_tokens=len(asked.tokens))
