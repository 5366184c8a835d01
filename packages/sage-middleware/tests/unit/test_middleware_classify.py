"""Reading requests: what is refused and why, what class they get, what they need."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from sage.common.config import ControlPlaneConfig, GatewayConfig
from sage.common.errors import BadRequestError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.json_guard import strict_object
from sage.middleware.engines.port import Capability, Route

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "m", "messages": HI}
EMBED = {"model": "m", "input": "text"}


def read(
    route: Route, body: bytes | dict[str, Any], headers: dict[str, str] | None = None, **more: Any
) -> Parsed:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    more.setdefault("limits", ParseLimits())
    return parse(route, raw, tenant="t", headers=headers or {}, **more)


def refused(
    route: Route, body: bytes | dict[str, Any], headers: dict[str, str] | None = None, **more: Any
) -> Any:
    with pytest.raises(BadRequestError) as caught:
        read(route, body, headers, **more)
    return caught.value


def test_a_chat_says_all_that_the_scheduler_needs() -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 7, "seed": 1}
    parsed = read(Route.CHAT, body, {"x-request-id": "abc"})
    job, call = parsed.job, parsed.call
    assert (job.id, job.model, job.request_class, job.tenant) == ("abc", "m", RequestClass.CHAT, "t")
    assert job.needs == {Capability.CHAT}
    assert (job.max_tokens, job.texts, job.body_bytes) == (7, 0, len(call.body))
    assert job.prompt_tokens == len(call.body) // 4
    assert (call.request_id, call.route, call.stream, call.include_usage) == ("abc", Route.CHAT, True, True)
    assert json.loads(call.body) == body
    assert parsed.deadline is None


def test_the_body_goes_on_byte_for_byte() -> None:
    raw = (
        b'  { "model" : "m","messages":[{"role":"user","content":"\\u00e9 \\"quoted\\" \\\\"}] , "x":1.50 }\n'
    )
    assert read(Route.CHAT, raw).call.body == raw


@pytest.mark.parametrize("value", ["", "a b", "x" * 129, "é", 'a"b'])
def test_a_request_id_that_could_do_harm_in_a_log_is_replaced(value: str) -> None:
    assert read(Route.CHAT, CHAT, {"x-request-id": value}).job.id.startswith("req-")


def test_an_id_that_is_known_is_taken_as_it_is() -> None:
    parsed = read(Route.CHAT, CHAT, {"x-request-id": "theirs"}, ident="ours")
    assert (parsed.job.id, parsed.call.request_id) == ("ours", "ours")


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"n": 1}, set()),
        ({"n": 2}, {Capability.N}),
        ({"logprobs": False}, set()),
        ({"logprobs": True}, {Capability.LOGPROBS}),
        ({"logprobs": True, "top_logprobs": 5}, {Capability.LOGPROBS}),
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": {"type": "json_object"}}, {Capability.RESPONSE_FORMAT}),
        ({"tools": []}, set()),
        ({"tools": [{"type": "function"}]}, {Capability.TOOLS}),
        ({"tool_choice": "auto"}, set()),
        ({"tool_choice": "none"}, set()),
        ({"tool_choice": "required"}, {Capability.TOOL_CHOICE}),
        ({"tool_choice": {"type": "function"}}, {Capability.TOOL_CHOICE}),
        ({"n": None, "logprobs": None, "tools": None, "response_format": None, "stream": None}, set()),
    ],
)
def test_needs_follow_from_the_fields_that_are_there(fields: dict[str, Any], needs: set[Capability]) -> None:
    assert read(Route.CHAT, {**CHAT, **fields}).job.needs == {Capability.CHAT, *needs}


def test_a_completion_has_its_own_fields() -> None:
    job = read(Route.COMPLETIONS, {"model": "m", "prompt": ["a", "b"], "logprobs": 0, "max_tokens": 3}).job
    assert job.request_class is RequestClass.COMPLETION
    assert job.needs == {Capability.COMPLETIONS, Capability.LOGPROBS}
    assert job.max_tokens == 3


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert read(Route.CHAT, {**CHAT, "max_tokens": 1, "max_completion_tokens": 2}).job.max_tokens == 2


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (Route.CHAT, {"messages": HI}, "model"),
        (Route.CHAT, {"model": "m"}, "messages"),
        (Route.COMPLETIONS, {"model": "m"}, "prompt"),
        (Route.EMBEDDINGS, {"model": "m"}, "input"),
        (Route.CHAT, {**CHAT, "model": 3}, "model"),
        (Route.CHAT, {**CHAT, "messages": []}, "messages"),
        (Route.CHAT, {**CHAT, "messages": "hi"}, "messages"),
        (Route.CHAT, {**CHAT, "messages": [HI[0], 7]}, "messages[...]"),
        (Route.CHAT, {**CHAT, "messages": [HI[0], {"content": "x"}]}, "messages[1].role"),
        (Route.CHAT, {**CHAT, "messages": HI * 2049}, "messages"),
        (Route.CHAT, {**CHAT, "tools": [{}] * 129}, "tools"),
        (Route.CHAT, {**CHAT, "n": 9}, "n"),
        (Route.CHAT, {**CHAT, "n": 0}, "n"),
        (Route.CHAT, {**CHAT, "n": True}, "n"),
        (Route.CHAT, {**CHAT, "max_tokens": 0}, "max_tokens"),
        (Route.CHAT, {**CHAT, "max_completion_tokens": -1}, "max_completion_tokens"),
        (Route.CHAT, {**CHAT, "top_logprobs": 21}, "top_logprobs"),
        (Route.CHAT, {**CHAT, "stream": "yes"}, "stream"),
        (Route.CHAT, {**CHAT, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (Route.COMPLETIONS, {"model": "m", "prompt": []}, "prompt"),
        (Route.EMBEDDINGS, {**EMBED, "input": ""}, "input"),
        (Route.EMBEDDINGS, {**EMBED, "input": []}, "input"),
        (Route.EMBEDDINGS, {**EMBED, "input": ["a", ""]}, "input[1]"),
        (Route.EMBEDDINGS, {**EMBED, "input": ["a", None]}, "input[1]"),
        (Route.EMBEDDINGS, {**EMBED, "input": ["a", []]}, "input[1]"),
        (Route.EMBEDDINGS, {**EMBED, "input": [True]}, "input[0]"),
        (Route.EMBEDDINGS, {**EMBED, "input": ["a"] * 2049}, "input"),
        (Route.EMBEDDINGS, {**EMBED, "input": "x" * 1_200_400}, "input"),
        (Route.EMBEDDINGS, {**EMBED, "encoding_format": "int8"}, "encoding_format"),
        (Route.EMBEDDINGS, {**EMBED, "dimensions": 0}, "dimensions"),
    ],
)
def test_what_is_wrong_is_refused_by_name(route: Route, fields: dict[str, Any], param: str) -> None:
    error = refused(route, fields)
    assert error.param is not None
    assert error.param.replace("[1]", "[...]") == param.replace("[1]", "[...]")
    assert error.message


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "truncated"),
        (b'{"model": "m",}', "byte 14"),
        (b"[1]", "not an object"),
        (b'{"model":"a","model":"b"}', "same key twice"),
        (b'{"model":"a","mod\\u0065l":"b"}', "same key twice"),
        (b'{"model":NaN}', "byte 9"),
        (b'{"model":1e999}', "out of range"),
        (b'{"x":"\\ud800"}', "valid JSON"),
        (b'{"x":{"y":["\\udc00 "]}}', "valid JSON"),
        (b'{"x":"\xff"}', "utf-8"),
        (b'{"x":"a\nb"}', "byte 7"),
        (b'{"x":' + b"[" * 64 + b"]" * 64 + b"}", "deeper than 64"),
        (b"[" * 5_000_000, "32768"),
        (b'{"x":[' + b'"",' * 70_000 + b'""]}', "65536 strings"),
        (b'{"x":{' + b",".join(b'"%d":1' % n for n in range(10_001)) + b"}}", "10000 keys"),
        (b'{"x":"' + b'\\"' * 100_000, "truncated"),
    ],
)
def test_malformed_bodies_are_refused_with_the_place(raw: bytes, what: str) -> None:
    assert what in refused(Route.CHAT, raw).message


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"[[{{::"}',
        '{"a\\"b":{"a":1},"c":[{"a":2},{"a":3}]}',
        '{"a\\\\":"\\\\","b":"\\\\\\""}',
        "{}",
        '{"":{"":{}}}',
    ],
)
def test_strings_are_told_from_structure(text: str) -> None:
    assert strict_object(text.encode()) == json.loads(text)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@PATIENT
@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), _JSON, max_size=5),
    st.booleans(),
)
def test_every_proper_object_is_read_as_it_is(value: dict[str, Any], ascii_only: bool) -> None:
    try:
        raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # a lone surrogate inside: the strict reader has to refuse it
        raw = json.dumps(value).encode()
    try:
        assert strict_object(raw) == value
    except BadRequestError:
        assert any("\ud800" <= char <= "\udfff" for char in repr(value)) or "\\ud" in repr(value)


@PATIENT
@given(st.binary(max_size=60) | st.text('{}[]":,\\ntrue0', max_size=40).map(str.encode))
def test_nothing_but_a_bad_request_comes_of_garbage(raw: bytes) -> None:
    for route in Route:
        with pytest.raises(BadRequestError):
            read(route, raw)


# ---- classes ----

LARGE = {**EMBED, "input": ["a"] * 9}


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (EMBED, {}, RequestClass.EMBED_INTERACTIVE),
        ({**EMBED, "input": ["a"] * 8}, {}, RequestClass.EMBED_INTERACTIVE),
        (LARGE, {}, RequestClass.EMBED_BULK),
        ({**EMBED, "input": "word " * 3300}, {}, RequestClass.EMBED_BULK),
        (LARGE, {"x-sage-deadline-ms": "200"}, RequestClass.EMBED_INTERACTIVE),
        (EMBED, {"x-sage-class": "embed_bulk"}, RequestClass.EMBED_BULK),
        (LARGE, {"x-sage-class": "embed_interactive"}, RequestClass.EMBED_BULK),
        (LARGE, {"x-sage-class": "embed_bulk", "x-sage-deadline-ms": "9"}, RequestClass.EMBED_BULK),
    ],
)
def test_bulk_is_by_size_and_a_caller_may_only_lower_its_class(
    body: dict[str, Any], headers: dict[str, str], expected: RequestClass
) -> None:
    assert read(Route.EMBEDDINGS, body, headers).job.request_class is expected


def test_a_class_that_does_not_belong_to_the_route_is_refused() -> None:
    error = refused(Route.CHAT, CHAT, {"x-sage-class": "embed_bulk"})
    assert (error.param, "'embed_bulk'" in error.message, "chat" in error.message) == (
        "x-sage-class",
        True,
        True,
    )
    assert refused(Route.EMBEDDINGS, EMBED, {"x-sage-class": "urgent"}).param == "x-sage-class"


@pytest.mark.parametrize("value", ["", "soon", "0", "-5", "nan", "inf"])
def test_a_deadline_is_a_positive_number(value: str) -> None:
    assert refused(Route.CHAT, CHAT, {"x-sage-deadline-ms": value}).param == "x-sage-deadline-ms"


def test_a_deadline_is_handed_on_in_seconds() -> None:
    assert read(Route.CHAT, CHAT, {"x-sage-deadline-ms": "1500"}).deadline == 1.5


def test_limits_come_from_the_configuration() -> None:
    limits = ParseLimits.of(GatewayConfig(max_inputs=3), ControlPlaneConfig(bulk_texts=2, bulk_tokens=5))
    assert (limits.max_inputs, limits.bulk_texts, limits.bulk_tokens) == (3, 2, 5)
    assert refused(Route.EMBEDDINGS, {**EMBED, "input": ["a"] * 4}, limits=limits).param == "input"


# ---- token ids ----


def decode(tokens: list[int]) -> str:
    if max(tokens) > 9:
        raise ValueError(f"{max(tokens)} is not in the vocabulary")
    return "".join(map(str, tokens))


def test_token_ids_reach_the_engine_as_text() -> None:
    parsed = read(Route.EMBEDDINGS, {**EMBED, "input": [1, 2], "user": "u"}, decode_tokens=decode)
    assert json.loads(parsed.call.body) == {"model": "m", "input": ["12"], "user": "u"}
    assert (parsed.job.texts, parsed.job.prompt_tokens) == (1, 2)
    parsed = read(Route.EMBEDDINGS, {**EMBED, "input": [[1, 2], "text text", [3]]}, decode_tokens=decode)
    assert json.loads(parsed.call.body)["input"] == ["12", "text text", "3"]
    assert (parsed.job.texts, parsed.job.prompt_tokens) == (3, 5)
    assert parsed.job.body_bytes == len(parsed.call.body)


def test_token_ids_that_cannot_be_decoded_are_refused() -> None:
    error = refused(Route.EMBEDDINGS, {**EMBED, "input": [[1], [99]]}, decode_tokens=decode)
    assert error.param == "input[1]"
    assert "99 is not in the vocabulary" in error.message
    assert "cl100k_base" in error.hint
    assert "no decoder" in refused(Route.EMBEDDINGS, {**EMBED, "input": [1]}).message
