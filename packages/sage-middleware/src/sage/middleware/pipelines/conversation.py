"""From the body of a chat to what a flow is asked, and from what it replies to text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sage.common.errors import BadRequestError, ConfigError, EngineError
from sage.kernel.runtime.report import spell
from sage.middleware.operators.records import Chat, Question

__all__ = ["ASKED", "Told", "asked_of", "check_kind", "text_of"]

ASKED: Final = (str, Question, Chat, dict)
"""What the requests of a pipeline may be: the words of the last message, or the whole conversation."""

_ANY: Final = frozenset(
    (
        *("model", "messages", "stream", "stream_options", "user", "metadata", "store"),
        *("max_tokens", "max_completion_tokens"),
    )
)
_ROLES: Final = frozenset(("system", "developer", "user", "assistant"))


def check_kind(pipeline: str, kind: Any) -> None:
    """Raise ConfigError for requests that no chat can be turned into."""
    if kind not in ASKED:
        valid = ", ".join(one.__name__ for one in ASKED)
        name = getattr(kind, "__name__", repr(kind))
        raise ConfigError(
            f"Pipeline {pipeline}: its requests are {name}, and a chat becomes one of: {valid}.",
            hint="Begin the flow with flow.requests(str), and map to what it works on.",
        )


def asked_of(pipeline: str, kind: Any, fields: Mapping[str, Any]) -> Any:
    """One request for a flow whose requests are `kind`, from the fields of a chat.

    Raises BadRequestError with `param` for what it would have to ignore.
    """
    messages = [_message(at, one) for at, one in enumerate(fields["messages"])]
    params = {name: value for name, value in fields.items() if name not in _ANY and value is not None}
    if kind is dict:
        return {"messages": messages, **params}
    if kind is Chat:
        return Chat(tuple(messages), params)
    for name in params:
        raise BadRequestError(
            f"{pipeline} takes no {name}: what it does with a question is its own to say.", param=name
        )
    if not messages or messages[-1]["role"] != "user":
        raise BadRequestError(
            f"{pipeline} answers the last message, which has to be the user's.", param="messages"
        )
    words = messages[-1]["content"]
    return Question(words) if kind is Question else words


def _message(at: int, message: Mapping[str, Any]) -> Any:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise BadRequestError(
            f"messages[{at}].role is {role!r}; a pipeline takes {', '.join(sorted(_ROLES))}.",
            param="messages",
        )
    if isinstance(content, list) and all(_is_text(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRequestError(
            f"messages[{at}].content is no text, and text is all that a pipeline takes.", param="messages"
        )
    return {"role": "system" if role == "developer" else role, "content": content}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def text_of(value: Any) -> str:
    """The text of a reply or a partial one: a string, or what has its text as `text` or `["content"]`.

    Raises EngineError for anything else.
    """
    for found in (value, getattr(value, "text", None)):
        if isinstance(found, str):
            return found
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return str(value["content"])
    raise EngineError(
        f"The pipeline replied with {spell(value, 60)}, in which there is no text.",
        hint="Let the flow reply with a string, or with an object that has `text`.",
    )


class Told:
    """What has been shown of a reply by its parts, so that the rest can follow."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def add(self, part: Any) -> str:
        """The text of a part, to be shown now."""
        text = text_of(part)
        self._parts.append(text)
        return text

    def rest(self, reply: Any) -> str:
        """What of the reply is still to be shown: nothing where the parts end with it."""
        text, shown = text_of(reply), "".join(self._parts)
        if not shown or text.startswith(shown):
            return text[len(shown) :]
        return "" if shown.endswith(text) else f"\n\n{text}"
