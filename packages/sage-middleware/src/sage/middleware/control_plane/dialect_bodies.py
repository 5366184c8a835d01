"""What a request in another dialect than a chat's asks for: what the chat that it becomes would. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import structs

from sage.common.telemetry import Bound
from sage.middleware.control_plane.facts import Facts, bounded, estimate
from sage.middleware.control_plane.token_bodies import MAX_MESSAGES
from sage.middleware.engines.dialects import messages_chat, responses_chat
from sage.middleware.engines.port import COUNT_TOKENS, MESSAGES, Capability, Route

__all__ = ["dialect_text", "read_dialect"]

_COUNTS: Final = frozenset((Capability.TOKENIZE, Capability.CHAT))


def read_dialect(
    route: Route, fields: dict[str, Any], body: bytes, judge: Callable[[dict[str, Any], bytes], Facts]
) -> Facts:
    """Judge a body of that route; `judge` does so for a chat. It goes on as it is.

    Raises BadRequestError with `param` naming the field, or what the chat calls it.
    """
    turns = "messages" if route is not Route.RESPONSES else "input"
    if isinstance(fields.get(turns), list):
        bounded(turns, len(fields[turns]), 1, MAX_MESSAGES, "items", Bound.MESSAGES)
    if route is COUNT_TOKENS:
        model = messages_chat.tokenize_of(fields)["model"]
        return Facts(model=model, body=body, needs=_COUNTS, prompt_tokens=estimate(len(body)))
    chat = messages_chat.chat_of(fields) if route is MESSAGES else responses_chat.chat_of(fields)
    facts = judge(chat, body)
    needs = facts.needs | {Capability.TOP_K} if "top_k" in chat else facts.needs
    return structs.replace(facts, needs=needs, include_usage=facts.stream)  # both always tell it


def dialect_text(fields: dict[str, Any]) -> bytes:
    """What equal beginnings of can be served from an engine's cache: tools, system, then the turns."""
    parts: list[Any] = [fields[name] for name in ("tools", "system", "instructions") if fields.get(name)]
    turns = fields.get("messages") or fields.get("input")
    parts += turns if isinstance(turns, list) else [turns]
    return b"\n".join(msgspec.json.encode(part, order="sorted") for part in parts)
