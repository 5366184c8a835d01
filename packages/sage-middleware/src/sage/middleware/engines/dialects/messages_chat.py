"""A body of `/v1/messages` as one of a chat. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from sage.common.errors import BadRequestError
from sage.middleware.engines.dialects.chat import given
from sage.middleware.engines.dialects.messages_body import (
    Block,
    Image,
    Message,
    MessagesBody,
    Named,
    Prompt,
    Text,
    ToolResult,
    ToolUse,
    read_messages,
    read_prompt,
)

__all__ = ["chat_of", "tokenize_of"]

_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_FAILED: Final = "Error: "  # a chat has no other way to say that a tool has failed


def chat_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The chat that asks for the same. Raises BadRequestError with `param` naming what cannot be carried."""
    body = read_messages(fields)
    chat = _prompt(body) | given(
        max_tokens=body.max_tokens,
        stop=body.stop_sequences or None,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        user=body.metadata and body.metadata.user_id,
        tool_choice=_choice(body),
    )
    if body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use:
        chat["parallel_tool_calls"] = False
    if body.output_config is not None and body.output_config.format is not None:
        schema = {"name": "output", "schema": body.output_config.format.schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if body.stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    return chat


def tokenize_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The call that tells the tokens of the same prompt. Errors as of `chat_of`."""
    return _prompt(read_prompt(fields))


def _prompt(body: Prompt) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if body.system:
        content = body.system if isinstance(body.system, str) else _content(body.system)
        messages.append({"role": "system", "content": content})
    for at, message in enumerate(body.messages):
        _add(messages, message, f"messages[{at}]")
    tools = [
        {
            "type": "function",
            "function": {"name": tool.name, "parameters": tool.input_schema}
            | given(description=tool.description, strict=tool.strict),
        }
        for tool in body.tools or ()
    ]
    return {"model": body.model, "messages": messages} | given(tools=tools or None)


def _add(messages: list[dict[str, Any]], message: Message, where: str) -> None:
    if isinstance(message.content, str):
        messages.append({"role": message.role, "content": message.content})
    elif message.role == "assistant":
        messages.append(_said(message.content, where))
    elif message.role == "system":
        messages.append(_told(message.content, where))
    else:
        messages.extend(_asked(message.content, where))


def _said(blocks: Sequence[Block], where: str) -> dict[str, Any]:
    """An earlier answer. What was thought then is no part of a chat, as it is none here."""
    parts: list[Text | Image] = []
    calls = []
    for at, block in enumerate(blocks):
        if isinstance(block, Text):
            parts.append(block)
        elif isinstance(block, ToolUse):
            arguments = msgspec.json.encode(block.input).decode()
            calls.append(
                {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}
            )
        elif isinstance(block, Image | ToolResult):
            raise _misplaced(block, "user", f"{where}.content[{at}]")
    content = _content(parts) or (None if calls else "")
    return {"role": "assistant", "content": content} | given(tool_calls=calls or None)


def _told(blocks: Sequence[Block], where: str) -> dict[str, Any]:
    """Instructions; they are text."""
    parts: list[Text | Image] = []
    for at, block in enumerate(blocks):
        if not isinstance(block, Text):
            role = "user" if isinstance(block, Image | ToolResult) else "assistant"
            raise _misplaced(block, role, f"{where}.content[{at}]")
        parts.append(block)
    return {"role": "system", "content": _content(parts)}


def _asked(blocks: Sequence[Block], where: str) -> list[dict[str, Any]]:
    """A turn of the user: first what tools have answered, then the rest, with the tools' pictures."""
    results: list[dict[str, Any]] = []
    parts: list[Text | Image] = []
    for at, block in enumerate(blocks):
        if isinstance(block, Text | Image):
            parts.append(block)
        elif isinstance(block, ToolResult):
            given = [Text(text=block.content)] if isinstance(block.content, str) else block.content or []
            texts = [one.text for one in given if isinstance(one, Text)]
            parts += [one for one in given if isinstance(one, Image)]
            if block.is_error:
                texts[:1] = [_FAILED + (texts[0] if texts else "")]
            content = _content([Text(text=text) for text in texts])
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
        else:
            raise _misplaced(block, "assistant", f"{where}.content[{at}]")
    rest = [{"role": "user", "content": _content(parts)}] if parts or not results else []
    return results + rest


def _content(parts: Sequence[Text | Image]) -> str | list[dict[str, Any]]:
    """The parts of a chat's message; one text alone is a string, which more engines take."""
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": "image_url", "image_url": {"url": part.source.link}}
        for part in parts
    ]


def _choice(body: MessagesBody) -> str | dict[str, Any] | None:
    if body.tool_choice is None:
        return None
    if isinstance(body.tool_choice, Named):
        return {"type": "function", "function": {"name": body.tool_choice.name}}
    return _CHOICES[body.tool_choice.__struct_config__.tag]  # type: ignore[index]


def _misplaced(block: Block, role: str, where: str) -> BadRequestError:
    kind = block.__struct_config__.tag
    return BadRequestError(
        f"{where} is of type {kind!r}, which belongs to a message of the {role}.", param=where
    )
