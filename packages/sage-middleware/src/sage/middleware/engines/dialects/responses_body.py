"""What a body of `/v1/responses` may say, as types. Pure.

Strict, as that of `/v1/messages`. Names of previous answers never come here: the gateway puts what was said
in their place.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sage.common.errors import BadRequestError
from sage.middleware.engines.fields import convert

__all__ = [
    "FunctionCall",
    "FunctionOutput",
    "InputImage",
    "InputText",
    "Item",
    "Message",
    "Named",
    "OutputText",
    "Part",
    "Refusal",
    "ResponsesBody",
    "Schema",
    "read_responses",
]


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class InputText(_Strict, tag="input_text", kw_only=True):
    """Words that go in."""

    text: str


class InputImage(_Strict, tag="input_image", kw_only=True):
    """A picture, by a URL that may hold it."""

    image_url: str
    detail: Literal["low", "high", "auto"] | None = None


class OutputText(_Strict, tag="output_text", kw_only=True):
    """Words of an earlier answer. Its notes and probabilities say nothing to a model.

    `parsed` is what a client has read from the text; OpenAI's own sends it back with the rest.
    """

    text: str
    parsed: Any = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Refusal(_Strict, tag="refusal", kw_only=True):
    """A refusal of an earlier answer."""

    refusal: str


Part = InputText | InputImage | OutputText | Refusal


class _Item(_Strict, kw_only=True):
    id: str | None = None
    status: str | None = None


class Message(_Item, tag="message", kw_only=True):
    """What somebody has said."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    phase: str | None = None


class FunctionCall(_Item, tag="function_call", kw_only=True):
    """A call of a function, of an earlier answer."""

    call_id: str
    name: str
    arguments: str


class FunctionOutput(_Item, tag="function_call_output", kw_only=True):
    """What a function has answered."""

    call_id: str
    output: str | list[InputText | InputImage]


class _Thoughts(_Item, tag="reasoning", kw_only=True):
    """Thoughts of an earlier answer. They are no part of a chat."""

    summary: list[Any]
    content: list[Any] | None = None
    encrypted_content: str | None = None


Item = Message | FunctionCall | FunctionOutput | _Thoughts


class Function(_Strict, tag="function", kw_only=True):
    """A function of the client's own."""

    name: str
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class Named(_Strict, tag="function", kw_only=True):
    """The function that must be called."""

    name: str


class _Plain(_Strict, tag="text", kw_only=True):
    pass


class _AnyJson(_Strict, tag="json_object", kw_only=True):
    pass


class Schema(_Strict, tag="json_schema", kw_only=True):
    """JSON of this schema."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class _Text(_Strict, kw_only=True):
    format: _Plain | _AnyJson | Schema | None = None
    verbosity: Literal["medium"] | None = None


class _Reasoning(_Strict, kw_only=True):
    effort: str | None = None
    summary: None = None


class _StreamOptions(_Strict, kw_only=True):
    include_obfuscation: bool | None = None


class ResponsesBody(_Strict, kw_only=True):
    """A request for an answer. Hints for caches and against abuse are taken, and change nothing here."""

    model: str
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    store: bool | None = None
    tools: list[Function] | None = None
    tool_choice: Literal["auto", "none", "required"] | Named | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    truncation: Literal["disabled"] | None = None


def read_responses(fields: dict[str, Any]) -> ResponsesBody:
    """The body of a request for an answer. Raises BadRequestError with `param` naming the field."""
    for name, why in _REFUSED.items():
        if fields.get(name):
            raise BadRequestError(f"{name} cannot be honoured: {why}.", hint="Leave it out.", param=name)
    for at, tool in _objects(fields.get("tools")):
        _only(f"tools[{at}].type", tool.get("type"), ("function",))
    items = fields.get("input")
    for at, item in _objects(items):
        kind = item.get("type", "message" if "role" in item else None)
        _only(f"input[{at}].type", kind, _ITEMS)
    if isinstance(items, list):  # a message need not say that it is one
        items = [{"type": "message", **one} if isinstance(one, dict) else one for one in items]
    taken = {name: value for name, value in fields.items() if name not in _REFUSED}
    return convert({**taken, "input": items} if "input" in fields else taken, ResponsesBody)


_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_REFUSED = {
    "background": "an answer is written while its client waits",
    "conversation": "only previous_response_id is kept here",
    "include": "there is nothing more to tell of an answer",
    "max_tool_calls": "there are no built-in tools here",
    "previous_response_id": "the answer that it names is not known here",
    "prompt": "there are no prompt templates here",
    "top_logprobs": "no probabilities are told here",
}


def _objects(value: Any) -> list[tuple[int, dict[str, Any]]]:
    """The objects in a list, if it is one; what is none is judged later."""
    return [
        (at, one) for at, one in enumerate(value if isinstance(value, list) else ()) if isinstance(one, dict)
    ]


def _only(param: str, found: Any, valid: tuple[str, ...]) -> None:
    if found not in valid:
        raise BadRequestError(
            f"{param} is {str(found)[:64]!r}; valid here: {', '.join(valid)}.",
            hint="There are no built-in tools or stored items." if found else "",
            param=param,
        )
