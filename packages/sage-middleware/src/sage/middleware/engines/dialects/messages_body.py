"""What a body of `/v1/messages` may say, as types. Pure.

Strict: a field that is not here has no place in a chat, and would be ignored; it is refused by its name.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sage.common.errors import BadRequestError
from sage.middleware.engines.fields import convert

__all__ = [
    "Block",
    "Image",
    "Message",
    "MessagesBody",
    "Named",
    "Prompt",
    "Text",
    "ToolResult",
    "ToolUse",
    "read_messages",
    "read_prompt",
]


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class _Block(_Strict, kw_only=True):
    """Any block may carry the wish to cache it, which changes no answer."""

    cache_control: dict[str, Any] | None = None


class Text(_Block, tag="text", kw_only=True):
    """Words."""

    text: str
    citations: None = None


class _Base64(_Strict, tag="base64", kw_only=True):
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str

    @property
    def link(self) -> str:
        """The picture as a URL."""
        return f"data:{self.media_type};base64,{self.data}"


class _Url(_Strict, tag="url", kw_only=True):
    url: str

    @property
    def link(self) -> str:
        """The picture as a URL."""
        return self.url


class Image(_Block, tag="image", kw_only=True):
    """A picture."""

    source: _Base64 | _Url


class ToolUse(_Block, tag="tool_use", kw_only=True):
    """A call of a tool, of an earlier answer."""

    id: str
    name: str
    input: dict[str, Any]


class ToolResult(_Block, tag="tool_result", kw_only=True):
    """What a tool has answered."""

    tool_use_id: str
    content: str | list[Text | Image] | None = None
    is_error: bool | None = None


class _Thinking(_Strict, tag="thinking", kw_only=True):
    thinking: str
    signature: str


class _Redacted(_Strict, tag="redacted_thinking", kw_only=True):
    data: str


Block = Text | Image | ToolUse | ToolResult | _Thinking | _Redacted


class Message(_Strict, kw_only=True):
    """One turn, or instructions between two of them."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(_Block, kw_only=True):
    """A tool of the client's own."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None


class _Auto(_Strict, tag="auto", kw_only=True):
    disable_parallel_tool_use: bool = False


class _Any(_Strict, tag="any", kw_only=True):
    disable_parallel_tool_use: bool = False


class Named(_Strict, tag="tool", kw_only=True):
    """The tool that must be called."""

    name: str
    disable_parallel_tool_use: bool = False


class _Never(_Strict, tag="none", kw_only=True):
    @property
    def disable_parallel_tool_use(self) -> bool:
        """No call, no two at once."""
        return False


class _Schema(_Strict, tag="json_schema", kw_only=True):
    schema: dict[str, Any]


class _Output(_Strict, kw_only=True):
    format: _Schema | None = None


class _NoThoughts(_Strict, tag="disabled", kw_only=True):
    pass


class _Metadata(_Strict, kw_only=True):
    user_id: str | None = None


class Prompt(_Strict, kw_only=True):
    """What is counted: all that the model reads."""

    model: str
    messages: list[Message]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: _Auto | _Any | Named | _Never | None = None
    thinking: _NoThoughts | None = None
    output_config: _Output | None = None
    cache_control: dict[str, Any] | None = None


class MessagesBody(Prompt, kw_only=True):
    """A request for an answer."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: _Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


def read_messages(fields: dict[str, Any]) -> MessagesBody:
    """The body of a request for an answer. Raises BadRequestError with `param` naming the field."""
    _check(fields)
    body = convert(fields, MessagesBody)
    if body.messages and body.messages[-1].role == "assistant":
        last = f"messages[{len(body.messages) - 1}]"
        raise BadRequestError(
            f"{last} is the assistant's; a chat cannot go on with a message that is begun.",
            hint="End with a message of the user.",
            param=last,
        )
    return body


def read_prompt(fields: dict[str, Any]) -> Prompt:
    """The body of a request for a count. Raises BadRequestError with `param` naming the field."""
    _check(fields)
    return convert(fields, Prompt)


def _check(fields: dict[str, Any]) -> None:
    """Say more of what clients are likely to ask for than that it does not fit."""
    thinking = fields.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") != "disabled":
        raise BadRequestError(
            "thinking cannot be carried to the engines here.", hint="Leave it out.", param="thinking"
        )
    if fields.get("thread") is not None:  # the client's own runner of tools asks for it, and can do without
        raise BadRequestError(
            "thread cannot be kept: no turn is remembered here.",
            hint="Leave it out, and send the whole conversation.",
            param="thread",
        )
    tools = fields.get("tools")
    for at, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in (None, "custom"):
            raise BadRequestError(
                f"tools[{at}].type is {str(kind)[:64]!r}; there are no built-in tools here, only the"
                " client's own: 'custom'.",
                param=f"tools[{at}].type",
            )
