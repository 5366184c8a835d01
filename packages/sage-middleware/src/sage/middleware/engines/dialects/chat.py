"""What a chat engine answers, as far as it is translated: chunks of a stream, and whole answers. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sage.common.errors import EngineError
from sage.middleware.engines.faults import UpstreamError

__all__ = ["Call", "CallOrder", "Chunk", "Delta", "Function", "Tokens", "given", "read_chunk", "read_whole"]


class Function(msgspec.Struct):
    """The function of a call, or the next piece of its arguments."""

    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    """A call of a tool, or the next piece of one: those of one `index` belong together."""

    index: int | None = None
    id: str | None = None
    function: Function = msgspec.field(default_factory=Function)


class Delta(msgspec.Struct):
    """A piece of an answer, or all of it. Servers call the thoughts by one of two names."""

    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Reasoned(msgspec.Struct):
    reasoning_tokens: int | None = None


class Tokens(msgspec.Struct):
    """Tokens as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Cached | None = None
    completion_tokens_details: _Reasoned | None = None

    @property
    def cached(self) -> int:
        """Prompt tokens that were read from a cache."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0

    @property
    def reasoned(self) -> int:
        """Tokens of the answer that were thoughts."""
        return (self.completion_tokens_details and self.completion_tokens_details.reasoning_tokens) or 0


class _Choice(msgspec.Struct):
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Tokens | None = None


class Chunk(msgspec.Struct):
    """What one event of a stream says. `stopped_by`: the stop sequence that ended it, where that is told."""

    delta: Delta
    finish_reason: str | None = None
    stopped_by: str | None = None
    usage: Tokens | None = None


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class CallOrder:
    """Which piece of a stream begins a call. Calls must come one after the other."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._open: int | None = None

    def __len__(self) -> int:
        return len(self._seen)

    def begins(self, call: Call) -> bool:
        """Whether this piece does; else it belongs to the call that is open.

        Raises EngineError for a piece of a call that is over, and for a call without a name.
        """
        index = call.index
        if index is None:  # of a server that sends each call whole, and does not number them
            index = len(self._seen) - (not call.id)
        if index == self._open:
            return False
        if index in self._seen:
            raise EngineError("The engine went back to a tool call after it had begun another.")
        if not call.function.name:
            raise EngineError("The engine began to call a tool without its name.")
        self._seen.add(index)
        self._open = index
        return True

    def leave(self) -> None:
        """Something else is said now."""
        self._open = None


def read_chunk(data: bytes) -> Chunk:
    """The first choice of a chunk. Raises EngineError for what is none."""
    answer = _decode(data)
    choice = answer.choices[0] if answer.choices else _Choice()
    return _chunk(choice, choice.delta or Delta(), answer.usage)


def read_whole(body: bytes) -> Chunk:
    """A whole answer, as if it had come in one piece. Raises EngineError for what is none."""
    answer = _decode(body)
    if not answer.choices or answer.choices[0].message is None:
        raise EngineError("The engine's answer holds no message.")
    choice = answer.choices[0]
    return _chunk(choice, answer.choices[0].message, answer.usage)


def _chunk(choice: _Choice, delta: Delta, usage: Tokens | None) -> Chunk:
    stopped_by = choice.stop_reason if isinstance(choice.stop_reason, str) else None
    return Chunk(delta, choice.finish_reason, stopped_by, usage)


def _decode(data: bytes) -> _Answer:
    try:
        return _ANSWER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamError("The engine's answer cannot be read.", str(error)) from error


def given(**fields: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
