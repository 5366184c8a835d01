"""A body of `/v1/responses` as one of a chat. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sage.common.errors import BadRequestError
from sage.middleware.engines.dialects.chat import given
from sage.middleware.engines.dialects.responses_body import (
    FunctionCall,
    FunctionOutput,
    InputImage,
    InputText,
    Message,
    Named,
    OutputText,
    Part,
    Refusal,
    ResponsesBody,
    Schema,
    read_responses,
)

__all__ = ["chat_of"]

_ASKS = (InputText, InputImage)
_SAYS = (OutputText, Refusal, InputText)


def chat_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The chat that asks for the same. Raises BadRequestError with `param` naming what cannot be carried."""
    body = read_responses(fields)
    chat: dict[str, Any] = {"model": body.model, "messages": _messages(body)} | given(
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        user=body.user,
        tools=[_tool(body, at) for at in range(len(body.tools or ()))] or None,
        tool_choice=_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=body.reasoning and body.reasoning.effort,
        response_format=_format(body),
    )
    if body.stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return chat


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for at, item in enumerate(body.input):
        if isinstance(item, Message):
            messages.append(_message(item, f"input[{at}]"))
        elif isinstance(item, FunctionCall):
            _add_call(messages, item)
        elif isinstance(item, FunctionOutput):
            messages.extend(_output(item))
    return messages


def _message(item: Message, where: str) -> dict[str, Any]:
    """A developer speaks as the system: that is what the templates of most models know."""
    role = "system" if item.role == "developer" else item.role
    if isinstance(item.content, str):
        return {"role": role, "content": item.content}
    valid = _SAYS if role == "assistant" else _ASKS
    for at, part in enumerate(item.content):
        if not isinstance(part, valid):
            kind = part.__struct_config__.tag
            raise BadRequestError(
                f"{where}.content[{at}] is of type {kind!r}, which no message of the {item.role} has.",
                param=f"{where}.content[{at}]",
            )
    return {"role": role, "content": _content(item.content)}


def _add_call(messages: list[dict[str, Any]], item: FunctionCall) -> None:
    """A call is part of what was said before it, if that was the assistant's."""
    function = {"name": item.name, "arguments": item.arguments}
    call = {"id": item.call_id, "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _output(item: FunctionOutput) -> list[dict[str, Any]]:
    """What a function has answered; its pictures follow as the user's, as a tool's message takes none."""
    if isinstance(item.output, str):
        return [{"role": "tool", "tool_call_id": item.call_id, "content": item.output}]
    texts = [part for part in item.output if isinstance(part, InputText)]
    images = [part for part in item.output if isinstance(part, InputImage)]
    answer = {"role": "tool", "tool_call_id": item.call_id, "content": _content(texts)}
    return [answer, {"role": "user", "content": _content(images)}] if images else [answer]


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """The parts of a chat's message; one text alone is a string, which more engines take."""
    if not parts:
        return ""
    converted = [_part(part) for part in parts]
    return converted[0]["text"] if len(converted) == 1 and "text" in converted[0] else converted


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, InputImage):
        return {"type": "image_url", "image_url": {"url": part.image_url} | given(detail=part.detail)}
    return {"type": "text", "text": part.refusal if isinstance(part, Refusal) else part.text}


def _tool(body: ResponsesBody, at: int) -> dict[str, Any]:
    assert body.tools is not None
    tool = body.tools[at]
    function = {"name": tool.name} | given(
        description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return {"type": "function", "function": function}


def _choice(body: ResponsesBody) -> str | dict[str, Any] | None:
    if isinstance(body.tool_choice, Named):
        return {"type": "function", "function": {"name": body.tool_choice.name}}
    return body.tool_choice


def _format(body: ResponsesBody) -> dict[str, Any] | None:
    asked = body.text.format if body.text is not None else None
    if asked is None:
        return None
    if isinstance(asked, Schema):
        schema = {"name": asked.name, "schema": asked.schema} | given(
            description=asked.description, strict=asked.strict
        )
        return {"type": "json_schema", "json_schema": schema}
    return {"type": asked.__struct_config__.tag}
