"""How each dialect tells of an error: as a whole body, and as an event in a stream. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec

from sage.common.errors import SageError
from sage.middleware.engines.port import COUNT_TOKENS, MESSAGES, RESPONSES, Route

__all__ = ["Envelope", "envelope_at", "envelope_of"]


class Envelope(Protocol):
    """What is around an answer. `head`: header lines of every answer."""

    head: bytes

    def body(self, error: SageError) -> bytes:
        """The body of an answer that is an error."""
        ...

    def event(self, error: SageError, last: bytes) -> bytes:
        """The event that ends a stream; `last`: the bytes that went out before it, whole events."""
        ...


class _OpenAI:
    """`{"error": {…}}`, alone or as the data of an event."""

    head = b""

    def body(self, error: SageError) -> bytes:
        """See `Envelope`."""
        return msgspec.json.encode(error.to_openai())

    def event(self, error: SageError, last: bytes) -> bytes:
        """See `Envelope`."""
        return _apart(last) + b"data: " + self.body(error) + b"\n\n"


class _Responses:
    """OpenAI's body; the event has a type and a number.

    The event says it twice: by the fields of the published schema, and by the object that the service itself
    sends and on which its clients raise.
    """

    head = b""

    def body(self, error: SageError) -> bytes:
        """See `Envelope`."""
        return msgspec.json.encode({"error": self._told(error)})

    def event(self, error: SageError, last: bytes) -> bytes:
        """See `Envelope`."""
        found = _SEQUENCE.findall(last)
        told = self._told(error)
        event = {"type": "error", "sequence_number": int(found[-1]) + 1 if found else 0}
        fields = {name: told[name] for name in ("code", "message", "param")}
        return _apart(last) + _event("error", {**event, **fields, "error": told})

    @staticmethod
    def _told(error: SageError) -> dict[str, Any]:
        message, param = _by_name(error, _RESPONSES_NAMES)
        return {"message": message, "type": error.type, "param": param, "code": error.code}


class _Anthropic:
    """`{"type": "error", "error": {…}, "request_id": …}`."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self.head = b"request-id: %b\r\n" % request_id.encode()

    def body(self, error: SageError) -> bytes:
        """See `Envelope`."""
        return msgspec.json.encode(self._told(error))

    def event(self, error: SageError, last: bytes) -> bytes:
        """See `Envelope`."""
        return _apart(last) + _event("error", self._told(error))

    def _told(self, error: SageError) -> dict[str, Any]:
        message, _ = _by_name(error, _MESSAGES_NAMES)
        kind = _KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        told: dict[str, Any] = {"type": kind, "message": message}
        if error.param in _DETAILS:
            told["details"] = {"error_code": _DETAILS[error.param]}
        return {"type": "error", "error": told, "request_id": self._request_id}


_SEQUENCE: Final = re.compile(rb'"sequence_number"\s*:\s*(\d{1,9})')
_KINDS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# By the field: what makes a client go on without it.
_DETAILS: Final = {"thread": "thread_unsupported_request"}
# What a chat calls it, and what the dialect calls it.
_MESSAGES_NAMES: Final = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "user": "metadata.user_id",
}
_RESPONSES_NAMES: Final = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}

_PLAIN: Final = _OpenAI()
_RESPONDING: Final = _Responses()
_FIELD: Final = re.compile(r"[a-z_]+")


def envelope_of(route: Route, request_id: str) -> Envelope:
    """That of a route."""
    if route is MESSAGES or route is COUNT_TOKENS:
        return _Anthropic(request_id)
    return _RESPONDING if route is RESPONSES else _PLAIN


def envelope_at(path: bytes, request_id: str) -> Envelope:
    """That of a path, served or not."""
    if path.startswith(b"/v1/messages"):
        return _Anthropic(request_id)
    return _RESPONDING if path == b"/v1/responses" else _PLAIN


def _by_name(error: SageError, names: Mapping[str, str]) -> tuple[str, str | None]:
    """What is said, and the field that it is about, by the name that the client knows."""
    field = _FIELD.match(error.param or "")
    name = names.get(field[0]) if field else None
    return (str(error), error.param) if name is None else (f"{name}: {error}", name)


def _apart(last: bytes) -> bytes:
    """What ends an event that broke off, so that the next one is one."""
    return b"" if not last or last.endswith(b"\n\n") else b"\n\n"


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data))
