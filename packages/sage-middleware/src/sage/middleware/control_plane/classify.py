"""What a request is: from its route, a few fields of its body and its headers. Pure.

The body itself goes on unchanged; it is judged strictly first, so that no engine sees bytes that it might
read in another way than we did (duplicate keys, NaN, lone surrogates, deep nesting).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from sage.common.config import ControlPlaneConfig, GatewayConfig
from sage.common.errors import BadRequestError
from sage.common.ids import new_id
from sage.common.telemetry import HEADER_CLASS, HEADER_DEADLINE, HEADER_REQUEST_ID, RequestClass
from sage.middleware.control_plane.json_guard import strict_object
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Call, Capability, Route

__all__ = ["DecodeTokens", "ParseLimits", "Parsed", "parse"]

DecodeTokens = Callable[[list[int]], str]

_T = TypeVar("_T")

MAX_MESSAGES: Final = 2048
MAX_TOOLS: Final = 128
MAX_N: Final = 8
MAX_TOP_LOGPROBS: Final = 20
BYTES_PER_TOKEN: Final = 4  # rule of thumb for English text; the scheduler only needs the order of magnitude

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ERROR_PATH = re.compile(r"^(?P<what>.*) - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """Bounds on a request, and where bulk begins."""

    max_inputs: int = 2048
    max_input_tokens: int = 300_000
    bulk_texts: int = 8
    bulk_tokens: int = 4000

    @classmethod
    def of(cls, gateway: GatewayConfig, control_plane: ControlPlaneConfig) -> ParseLimits:
        """The limits that a configuration sets."""
        return cls(
            max_inputs=gateway.max_inputs,
            bulk_texts=control_plane.bulk_texts,
            bulk_tokens=control_plane.bulk_tokens,
        )


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request ready for the control plane. `deadline`: seconds from now, as the caller asked for."""

    job: Job
    call: Call
    deadline: float | None = None


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


@dataclass(frozen=True, slots=True)
class _Facts:
    """What one route's body says; `body` differs from the client's only where tokens were decoded."""

    model: str
    body: bytes
    needs: frozenset[Capability]
    prompt_tokens: int
    max_tokens: int | None = None
    texts: int = 0
    stream: bool = False
    include_usage: bool = False


def parse(
    route: Route,
    body: bytes,
    *,
    limits: ParseLimits,
    tenant: str,
    headers: Mapping[str, str],
    decode_tokens: DecodeTokens | None = None,
) -> Parsed:
    """Judge a body and say what it asks for. `headers` have lower-case names.

    `decode_tokens` turns token ids into text (embedding input may be ids) and raises ValueError for an id
    that it does not know. Raises BadRequestError with `param` naming the field or header.
    """
    fields = strict_object(body)
    if route is Route.CHAT:
        facts = _chat(fields, body)
    elif route is Route.COMPLETIONS:
        facts = _completion(fields, body, limits)
    else:
        facts = _embedding(fields, body, limits, decode_tokens)
    deadline = _deadline(headers)
    request_id = _request_id(headers)
    job = Job(
        id=request_id,
        model=facts.model,
        request_class=_request_class(route, facts, limits, headers, deadline),
        tenant=tenant,
        needs=facts.needs,
        body_bytes=len(facts.body),
        prompt_tokens=facts.prompt_tokens,
        max_tokens=facts.max_tokens,
        texts=facts.texts,
    )
    call = Call(request_id, route, facts.body, facts.stream, facts.include_usage)
    return Parsed(job, call, deadline)


def _chat(fields: dict[str, Any], body: bytes) -> _Facts:
    chat = _convert(fields, _Chat)
    _bounded("messages", len(chat.messages), 1, MAX_MESSAGES, "messages")
    for index, message in enumerate(chat.messages):
        if not isinstance(message.get("role"), str):
            raise BadRequestError(
                f"messages[{index}] has no role; give one such as 'system', 'user' or 'assistant'.",
                param=f"messages[{index}].role",
            )
    _bounded("tools", len(chat.tools or ()), 0, MAX_TOOLS, "tools")
    if chat.top_logprobs is not None:
        _bounded("top_logprobs", chat.top_logprobs, 0, MAX_TOP_LOGPROBS)
    if chat.max_completion_tokens is not None:
        _bounded("max_completion_tokens", chat.max_completion_tokens, 1, None)
    needs = {Capability.CHAT, *_common_needs(chat)}
    if chat.logprobs or chat.top_logprobs:
        needs.add(Capability.LOGPROBS)
    if chat.response_format is not None and chat.response_format.get("type") != "text":
        needs.add(Capability.RESPONSE_FORMAT)
    if chat.tools:
        needs.add(Capability.TOOLS)
    if chat.tool_choice not in (None, "auto", "none"):
        needs.add(Capability.TOOL_CHOICE)
    return _Facts(
        model=chat.model,
        body=body,
        needs=frozenset(needs),
        prompt_tokens=_estimate(body),
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        stream=bool(chat.stream),
        include_usage=_include_usage(chat),
    )


def _completion(fields: dict[str, Any], body: bytes, limits: ParseLimits) -> _Facts:
    completion = _convert(fields, _Completion)
    if isinstance(completion.prompt, list):
        _bounded("prompt", len(completion.prompt), 1, limits.max_inputs, "prompts")
    needs = {Capability.COMPLETIONS, *_common_needs(completion)}
    if completion.logprobs is not None:
        needs.add(Capability.LOGPROBS)
    return _Facts(
        model=completion.model,
        body=body,
        needs=frozenset(needs),
        prompt_tokens=_estimate(body),
        max_tokens=completion.max_tokens,
        stream=bool(completion.stream),
        include_usage=_include_usage(completion),
    )


def _embedding(
    fields: dict[str, Any], body: bytes, limits: ParseLimits, decode_tokens: DecodeTokens | None
) -> _Facts:
    embedding = _convert(fields, _Embedding)
    if embedding.encoding_format not in (None, "float", "base64"):
        raise BadRequestError(
            f"encoding_format is {embedding.encoding_format!r}; it can be 'float' or 'base64'.",
            param="encoding_format",
        )
    if embedding.dimensions is not None:
        _bounded("dimensions", embedding.dimensions, 1, None)
    texts, token_count = _inputs(embedding.input, limits, decode_tokens)
    if token_count is None:
        tokens = _estimate(body)
    else:
        tokens = token_count
        body = msgspec.json.encode({**fields, "input": texts})
    if tokens > limits.max_input_tokens:
        raise BadRequestError(
            f"input has about {tokens} tokens; at most {limits.max_input_tokens} are allowed in one request.",
            param="input",
        )
    return _Facts(
        model=embedding.model,
        body=body,
        needs=frozenset((Capability.EMBEDDINGS,)),
        prompt_tokens=tokens,
        texts=len(texts),
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
    _bounded("input", len(value), 1, limits.max_inputs, "inputs")
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
                f"{param} is {_kind(item)}; each input is a string or a non-empty array of token ids.",
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


def _common_needs(body: _Common) -> set[Capability]:
    if body.max_tokens is not None:
        _bounded("max_tokens", body.max_tokens, 1, None)
    if body.n is None:
        return set()
    _bounded("n", body.n, 1, MAX_N)
    return {Capability.N} if body.n > 1 else set()


def _include_usage(body: _Common) -> bool:
    return bool(body.stream and body.stream_options and body.stream_options.include_usage)


def _request_class(
    route: Route,
    facts: _Facts,
    limits: ParseLimits,
    headers: Mapping[str, str],
    deadline: float | None,
) -> RequestClass:
    """The class by route and size. A caller may lower it by a header; a higher one is not granted."""
    asked = headers.get(HEADER_CLASS)
    if route is not Route.EMBEDDINGS:
        natural = RequestClass.CHAT if route is Route.CHAT else RequestClass.COMPLETION
        valid: tuple[RequestClass, ...] = (natural,)
    else:
        bulk = facts.texts > limits.bulk_texts or facts.prompt_tokens > limits.bulk_tokens
        lowered = asked == RequestClass.EMBED_BULK
        natural = RequestClass.EMBED_INTERACTIVE
        if lowered or (bulk and deadline is None):
            natural = RequestClass.EMBED_BULK
        valid = (RequestClass.EMBED_INTERACTIVE, RequestClass.EMBED_BULK)
    if asked is not None and asked not in valid:
        raise BadRequestError(
            f"{HEADER_CLASS} is {asked!r}; on /v1/{route} it can be {' or '.join(valid)}.", param=HEADER_CLASS
        )
    return natural


def _deadline(headers: Mapping[str, str]) -> float | None:
    value = headers.get(HEADER_DEADLINE)
    if value is None:
        return None
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise BadRequestError(
            f"{HEADER_DEADLINE} is {value!r}; it is a positive number of milliseconds.", param=HEADER_DEADLINE
        )
    return milliseconds / 1000


def _request_id(headers: Mapping[str, str]) -> str:
    value = headers.get(HEADER_REQUEST_ID)
    return value if value is not None and _REQUEST_ID.fullmatch(value) else new_id("req")


def _convert(fields: dict[str, Any], to: type[_T]) -> _T:
    try:
        return msgspec.convert(fields, to)
    except msgspec.ValidationError as exc:
        raise _bad_field(str(exc)) from None


def _bad_field(message: str) -> BadRequestError:
    missing = re.fullmatch(r"Object missing required field `(\w+)`(?: - at `\$\.?([^`]*)`)?", message)
    if missing:
        return BadRequestError(f"The field '{missing[1]}' is missing.", param=missing[1])
    found = _ERROR_PATH.match(message)
    if not found or not found["path"]:
        return BadRequestError(f"The body does not fit: {message}.")
    return BadRequestError(f"{found['path']}: {found['what'].replace('`', '')}.", param=found["path"])


def _bounded(param: str, value: int, low: int, high: int | None, noun: str = "") -> None:
    if value < low or (high is not None and value > high):
        if noun and value == 0:
            raise BadRequestError(f"{param} is empty; give at least {low}.", param=param)
        span = f"at least {low}" if high is None else f"between {low} and {high}"
        raise BadRequestError(
            f"{param}: {value} {noun or 'is out of range'}; allowed is {span}.", param=param
        )


def _text(param: str, value: str) -> None:
    if not value:
        raise BadRequestError(f"{param} is an empty string; there is nothing to embed.", param=param)


def _estimate(body: bytes) -> int:
    return max(1, len(body) // BYTES_PER_TOKEN)


def _kind(value: object) -> str:
    names = {
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "null")
