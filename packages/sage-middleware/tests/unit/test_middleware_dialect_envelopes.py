"""How each dialect tells of an error, and what a field is called in it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from sage.common.errors import (
    BadRequestError,
    ConflictError,
    EngineError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    RequestTooLargeError,
    SageError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
)
from sage.middleware.engines.dialects.envelopes import envelope_at, envelope_of
from sage.middleware.engines.fields import convert
from sage.middleware.engines.port import Route
from sage.middleware.testing.dialects import events_of


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequestError("x"), "invalid_request_error"),
        (UnauthorizedError("x"), "authentication_error"),
        (ForbiddenError("x"), "permission_error"),
        (NotFoundError("x"), "not_found_error"),
        (ConflictError("x"), "invalid_request_error"),
        (RequestTooLargeError("x"), "request_too_large"),
        (OverloadedError("x"), "rate_limit_error"),
        (SageError("x"), "api_error"),
        (EngineError("x"), "api_error"),
        (UnavailableError("x"), "overloaded_error"),
        (TimedOutError("x"), "timeout_error"),
    ],
)
def test_anthropics_error_has_a_type_by_its_status(error: SageError, kind: str) -> None:
    told = {"type": "error", "error": {"type": kind, "message": "x"}, "request_id": "req-1"}
    envelope = envelope_of(Route.MESSAGES, "req-1")
    assert json.loads(envelope.body(error)) == told
    assert events_of(envelope.event(error, b"")) == [told]
    assert envelope.head == b"request-id: req-1\r\n"


def test_a_client_is_told_that_it_can_go_on_without_a_thread() -> None:
    envelope = envelope_of(Route.MESSAGES, "req-1")
    told = json.loads(envelope.body(BadRequestError("x", param="thread")))["error"]
    assert told["details"] == {"error_code": "thread_unsupported_request"}
    assert "details" not in json.loads(envelope.body(BadRequestError("x", param="threads")))["error"]


def test_a_fault_in_a_response_has_a_number_and_raises_in_clients() -> None:
    last = b'event: a\ndata: {"type":"a","sequence_number":3}\n\nevent: b\ndata: {"sequence_number" : 41}\n\n'
    error = EngineError("it broke", param="x")
    told = {"message": "it broke", "type": "server_error", "param": "x", "code": "engine_error"}
    envelope = envelope_of(Route.RESPONSES, "req-1")
    assert json.loads(envelope.body(error)) == {"error": told}
    (event,) = events_of(envelope.event(error, last))
    assert event == {
        "type": "error",
        "sequence_number": 42,
        "code": "engine_error",
        "message": "it broke",
        "param": "x",
        "error": told,
    }
    assert events_of(envelope.event(error, b""))[0]["sequence_number"] == 0


@pytest.mark.parametrize("route", [Route.CHAT, Route.MESSAGES, Route.RESPONSES])
def test_an_event_that_broke_off_is_ended_first(route: Route) -> None:
    envelope = envelope_of(route, "req-1")
    whole = envelope.event(EngineError("x"), b"data: {}\n\n")
    assert envelope.event(EngineError("x"), b"data: {") == b"\n\n" + whole
    assert not whole.startswith(b"\n")


@pytest.mark.parametrize(
    ("route", "param", "name"),
    [
        (Route.MESSAGES, "stop", "stop_sequences"),
        (Route.MESSAGES, "response_format", "output_config.format"),
        (Route.MESSAGES, "parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
        (Route.RESPONSES, "messages", "input"),
        (Route.RESPONSES, "max_tokens", "max_output_tokens"),
        (Route.RESPONSES, "response_format", "text.format"),
        (Route.RESPONSES, "reasoning_effort", "reasoning.effort"),
    ],
)
def test_a_field_has_the_name_that_the_client_knows(route: Route, param: str, name: str) -> None:
    told = json.loads(envelope_of(route, "r").body(BadRequestError("no", param=param)))["error"]
    assert told["message"] == f"{name}: no"
    assert told.get("param", name) == name


@pytest.mark.parametrize("param", [None, "temperature", "x-sage-class", "Tools"])
def test_another_field_keeps_its_name(param: str | None) -> None:
    for route in (Route.MESSAGES, Route.RESPONSES, Route.CHAT):
        told = json.loads(envelope_of(route, "r").body(BadRequestError("no", param=param)))["error"]
        assert (told["message"], told.get("param", param)) == ("no", param)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        (b"/v1/messages", Route.MESSAGES),
        (b"/v1/messages/count_tokens", Route.COUNT_TOKENS),
        (b"/v1/messages/none", Route.MESSAGES),
        (b"/v1/responses", Route.RESPONSES),
        (b"/v1/chat/completions", Route.CHAT),
        (b"/v1/models", Route.CHAT),
        (b"", Route.CHAT),
    ],
)
def test_a_path_is_answered_in_the_dialect_of_its_route(path: bytes, route: Route) -> None:
    error = NotFoundError("none")
    for made in (envelope_at(path, "r"), envelope_of(route, "r")):
        assert made.body(error) == envelope_of(route, "r").body(error)
        assert made.event(error, b"") == envelope_of(route, "r").event(error, b"")


# ---- fields ----


class _Inner(msgspec.Struct, forbid_unknown_fields=True):
    a: int


class _Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: _Inner | None = None
    several: list[_Inner] = []


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"inner": {}}, "inner.a", "missing"),
        ({"several": [{"a": 1}, {"a": 1, "b": 2}]}, "several[1].b", "not known"),
        ({"b": 1}, "b", "valid are: inner, several"),
        ({"several": [{"a": "x"}]}, "several[0].a", "Expected int, got str"),
        ({"b` - at `$.c": 1}, "c.b", "not known"),
        ({"x" * 999: 1}, "x" * 64, "not known"),
    ],
)
def test_a_field_that_does_not_fit_is_named_by_its_place(
    fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(BadRequestError, match=says) as refused:
        convert(fields, _Outer)
    assert refused.value.param == param
