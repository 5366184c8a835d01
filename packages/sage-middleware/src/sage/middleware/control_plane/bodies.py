"""What one route's body asks for: a few of its fields, judged by name and bound. Pure.

What is plain has been read by `plain` before; this reads all that there is, and says what is wrong with it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import structs

from sage.common.errors import BadRequestError
from sage.common.telemetry import Bound
from sage.middleware.control_plane.dialect_bodies import dialect_text, read_dialect
from sage.middleware.control_plane.facts import (
    BYTES_PER_TOKEN,
    DecodeTokens,
    Facts,
    ParseLimits,
    batch_key,
    bounded,
    convert,
    estimate,
    kind_of,
    within_tokens,
)
from sage.middleware.control_plane.json_guard import strict_object
from sage.middleware.control_plane.pair_bodies import read_rerank, read_score
from sage.middleware.control_plane.prefix import prompt_blocks
from sage.middleware.control_plane.token_bodies import MAX_MESSAGES, read_detokenize, read_tokenize
from sage.middleware.engines.port import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    RERANK,
    RESPONSES,
    SCORE,
    TOKENIZE,
    Capability,
    Route,
)

__all__ = ["read_body"]

MAX_TOOLS: Final = 128
MAX_N: Final = 8
MAX_TOP_LOGPROBS: Final = 20

_CHATS: Final = frozenset((Capability.CHAT,))
_EMBEDS: Final = frozenset((Capability.EMBEDDINGS,))
_COMPLETES: Final = frozenset((Capability.COMPLETIONS,))


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Common(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None


class _Chat(_Common, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class _Completion(_Common, kw_only=True):
    prompt: str | list[Any]
    logprobs: int | None = None


class _Embedding(msgspec.Struct, kw_only=True):
    model: str
    input: str | list[Any]
    encoding_format: str | None = None
    dimensions: int | None = None


_BATCHED: Final = frozenset(_Embedding.__struct_fields__)


def read_body(
    route: Route, body: bytes, limits: ParseLimits, decode_tokens: DecodeTokens | None, *, blocks: bool
) -> Facts:
    """Judge a body, and hash its text if `blocks` says so.

    Raises BadRequestError, with `param` naming the field if it is one.
    """
    fields = strict_object(body)
    facts = _read(route, fields, body, limits, decode_tokens)
    if not blocks or facts.texts:
        return facts
    return structs.replace(facts, blocks=prompt_blocks(_prompt_text(route, fields)))


def _read(
    route: Route,
    fields: dict[str, Any],
    body: bytes,
    limits: ParseLimits,
    decode_tokens: DecodeTokens | None,
) -> Facts:
    if route is CHAT:
        return _chat(fields, body)
    if route is COMPLETIONS:
        return _completion(fields, body, limits)
    if route is MESSAGES or route is RESPONSES or route is COUNT_TOKENS:
        return read_dialect(route, fields, body, _chat)
    if route is EMBEDDINGS:
        return _embedding(fields, body, limits, decode_tokens)
    if route is RERANK:
        return read_rerank(fields, body, limits)
    if route is SCORE:
        return read_score(fields, body, limits)
    if route is TOKENIZE:
        return read_tokenize(fields, body)
    return read_detokenize(fields, body, limits)


def _prompt_text(route: Route, fields: dict[str, Any]) -> bytes:
    """The text of which equal beginnings can be served from an engine's cache; empty where there is none.

    Of a chat: its tools, then its messages, each with sorted keys, so that a conversation begins with what
    was said in it before.
    """
    if route is CHAT:
        parts = [fields["tools"]] if fields.get("tools") else []
        return b"\n".join(msgspec.json.encode(part, order="sorted") for part in parts + fields["messages"])
    if route is MESSAGES or route is RESPONSES:
        return dialect_text(fields)
    prompt = fields.get("prompt")
    return prompt.encode() if isinstance(prompt, str) else b""


def _chat(fields: dict[str, Any], body: bytes) -> Facts:
    chat = convert(fields, _Chat)
    bounded("messages", len(chat.messages), 1, MAX_MESSAGES, "messages", Bound.MESSAGES)
    for index, message in enumerate(chat.messages):
        if not isinstance(message.get("role"), str):
            raise BadRequestError(
                f"messages[{index}] has no role; give one such as 'system', 'user' or 'assistant'.",
                param=f"messages[{index}].role",
            )
    bounded("tools", len(chat.tools or ()), 0, MAX_TOOLS, "tools", Bound.TOOLS)
    if chat.top_logprobs is not None:
        bounded("top_logprobs", chat.top_logprobs, 0, MAX_TOP_LOGPROBS, bound=Bound.TOP_LOGPROBS)
    if chat.max_completion_tokens is not None:
        bounded("max_completion_tokens", chat.max_completion_tokens, 1, None)
    needs = _common_needs(chat)
    if chat.logprobs or chat.top_logprobs:
        needs.append(Capability.LOGPROBS)
    if chat.response_format is not None and chat.response_format.get("type") != "text":
        needs.append(Capability.RESPONSE_FORMAT)
    if chat.tools:
        needs.append(Capability.TOOLS)
    if chat.tool_choice not in (None, "auto", "none"):
        needs.append(Capability.TOOL_CHOICE)
    return Facts(
        model=chat.model,
        body=body,
        needs=_CHATS.union(needs) if needs else _CHATS,
        prompt_tokens=estimate(len(body)),
        prompt_bytes=len(body),  # what is not message text in it is small
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        stream=bool(chat.stream),
        include_usage=_include_usage(chat),
    )


def _completion(fields: dict[str, Any], body: bytes, limits: ParseLimits) -> Facts:
    completion = convert(fields, _Completion)
    tokens = _prompt_tokens(completion.prompt, limits)
    needs = _common_needs(completion)
    if completion.logprobs is not None:
        needs.append(Capability.LOGPROBS)
    return Facts(
        model=completion.model,
        body=body,
        needs=_COMPLETES.union(needs),
        prompt_tokens=tokens or estimate(len(body)),
        prompt_bytes=0 if tokens else len(body),
        max_tokens=completion.max_tokens,
        stream=bool(completion.stream),
        include_usage=_include_usage(completion),
    )


def _prompt_tokens(prompt: str | list[Any], limits: ParseLimits) -> int:
    """How many token ids the prompts are; 0 where they are text."""
    if isinstance(prompt, str):
        return 0
    if prompt and all(type(item) is int for item in prompt):  # one prompt, given as token ids
        bounded("prompt", len(prompt), 1, limits.max_input_tokens, "token ids", Bound.INPUT_TOKENS)
        return len(prompt)
    bounded("prompt", len(prompt), 1, limits.max_inputs, "prompts", Bound.INPUTS)
    return sum(len(item) for item in prompt) if all(isinstance(item, list) for item in prompt) else 0


def _embedding(
    fields: dict[str, Any], body: bytes, limits: ParseLimits, decode_tokens: DecodeTokens | None
) -> Facts:
    embedding = convert(fields, _Embedding)
    if embedding.encoding_format not in (None, "float", "base64"):
        raise BadRequestError(
            f"encoding_format is {embedding.encoding_format!r}; it can be 'float' or 'base64'.",
            param="encoding_format",
        )
    if embedding.dimensions is not None:
        bounded("dimensions", embedding.dimensions, 1, None)
    texts, token_count = _inputs(embedding.input, limits, decode_tokens)
    size = 0
    if token_count is None:
        size = sum(len(text.encode()) for text in texts)
        tokens = estimate(size)
    else:
        tokens = token_count
        body = msgspec.json.encode({**fields, "input": texts})
    within_tokens("input", tokens, limits)
    return Facts(
        model=embedding.model,
        body=body,
        needs=_EMBEDS,
        prompt_tokens=tokens,
        prompt_bytes=size,
        texts=len(texts),
        batch_key=(
            # a field that is not in the key could ask for something else of each request in a batch
            batch_key(embedding.model, embedding.dimensions, embedding.encoding_format)
            if size and fields.keys() <= _BATCHED
            else ""
        ),
    )


def _inputs(
    value: str | list[Any], limits: ParseLimits, decode_tokens: DecodeTokens | None
) -> tuple[list[str], int | None]:
    """The texts of an embedding request, and the number of token ids where it was made of ids."""
    if isinstance(value, str):
        _text("input", value)
        return [value], None
    if value and all(type(item) is int for item in value):  # one text, given as token ids
        return [_decode("input", value, decode_tokens)], len(value)
    bounded("input", len(value), 1, limits.max_inputs, "inputs", Bound.INPUTS)
    texts: list[str] = []
    token_count = 0
    for index, item in enumerate(value):
        param = f"input[{index}]"
        if isinstance(item, str):
            _text(param, item)
            texts.append(item)
        elif isinstance(item, list) and item and all(type(token) is int for token in item):
            texts.append(_decode(param, item, decode_tokens))
            token_count += len(item)
        else:
            raise BadRequestError(
                f"{param} is {kind_of(item)}; each input is a string or a non-empty array of token ids.",
                param=param,
            )
    if token_count:
        return texts, token_count + sum(
            len(item) // BYTES_PER_TOKEN for item in value if isinstance(item, str)
        )
    return texts, None


def _decode(param: str, tokens: list[int], decode_tokens: DecodeTokens | None) -> str:
    if decode_tokens is None:
        raise BadRequestError(
            f"{param} is an array of token ids, and this server has no decoder for them; send strings.",
            param=param,
        )
    try:
        return decode_tokens(tokens)
    except ValueError as exc:
        raise BadRequestError(
            f"{param} holds token ids that cannot be decoded: {exc}.",
            hint="Token ids are read as cl100k_base; send strings to be independent of any tokenizer.",
            param=param,
        ) from exc


def _common_needs(body: _Common) -> list[Capability]:
    if body.max_tokens is not None:
        bounded("max_tokens", body.max_tokens, 1, None)
    if body.n is None:
        return []
    bounded("n", body.n, 1, MAX_N, bound=Bound.N)
    return [Capability.N] if body.n > 1 else []


def _include_usage(body: _Common) -> bool:
    return bool(body.stream and body.stream_options and body.stream_options.include_usage)


def _text(param: str, value: str) -> None:
    if not value:
        raise BadRequestError(f"{param} is an empty string; there is nothing to embed.", param=param)
