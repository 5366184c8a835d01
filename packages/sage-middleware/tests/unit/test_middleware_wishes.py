"""What a caller may ask for in headers, and what the scheduler is told of a body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.config import ControlPlaneConfig, GatewayConfig, TenantConfig
from sage.common.errors import BadRequestError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.classify import Parsed, ParseLimits, parse
from sage.middleware.control_plane.types import Slo
from sage.middleware.control_plane.wishes import WISHES
from sage.middleware.engines.port import FORMS, Route

Body = dict[str, Any]

CHAT: Body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: Body = {"model": "m", "prompt": "hi"}
EMBED: Body = {"model": "m", "input": "text"}
FORM = b"".join(
    b'--b\r\nContent-Disposition: form-data; name="%b\r\n\r\nm\r\n' % name
    for name in (b'model"', b'file"; filename="a"', b'image"; filename="b"')
)
BODIES: dict[Route, Body | bytes] = {
    Route.CHAT: CHAT,
    Route.COMPLETIONS: COMPLETION,
    Route.MESSAGES: {**CHAT, "max_tokens": 1},
    Route.COUNT_TOKENS: CHAT,
    Route.RESPONSES: EMBED,
    Route.EMBEDDINGS: EMBED,
    Route.RERANK: {"model": "m", "query": "q", "documents": ["d"]},
    Route.SCORE: {"model": "m", "text_1": "a", "text_2": "b"},
    Route.TOKENIZE: {"model": "m", "prompt": "hi"},
    Route.DETOKENIZE: {"model": "m", "tokens": [1]},
    Route.SPEECH: EMBED,
    Route.IMAGES: COMPLETION,
    **dict.fromkeys(FORMS, FORM + b"--b--"),
}
LIMITS = ParseLimits(tenants=frozenset(("search", "nightly")))


def read(route: Route, body: Body | bytes, headers: dict[str, str] | None = None, **more: Any) -> Parsed:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"content-type": "multipart/form-data; boundary=b", **(headers or {})}
    return parse(route, raw, limits=LIMITS, tenant="key-1", headers=given, **more)


def refused(route: Route, name: str, value: str) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        read(route, BODIES[route], {name: value})
    assert caught.value.param == name
    assert f"{name} is {value!r}; " in caught.value.message
    return caught.value


# ---- headers ----


def test_without_headers_nothing_is_asked_for() -> None:
    parsed = read(Route.CHAT, CHAT)
    job = parsed.job
    assert (job.slo, job.priority, job.parent, job.explain, job.tenant) == (None, 0, "", False, "key-1")
    assert parsed.deadline is None


def test_all_that_is_asked_for_arrives() -> None:
    headers = {
        "x-sage-slo-ttft-ms": "500",
        "x-sage-slo-tpot-ms": "40.5",
        "x-sage-deadline-ms": "9000",
        "x-sage-priority": "-3",
        "x-sage-parent": "req-7",
        "x-sage-explain": "1",
        "x-sage-tenant": "search",
        "x-sage-class": "batch",
    }
    parsed = read(Route.COMPLETIONS, COMPLETION, headers)
    job = parsed.job
    assert job.slo == Slo(0.5, 0.0405, 9.0)
    assert (job.priority, job.parent, job.explain, job.tenant) == (-3, "req-7", True, "search")
    assert (job.request_class, parsed.deadline) == (RequestClass.BATCH, 9.0)


def test_the_goal_of_an_embedding_request_is_its_whole_answer() -> None:
    assert read(Route.EMBEDDINGS, EMBED, {"x-sage-slo-ttft-ms": "300"}).job.slo == Slo(total=0.3)
    both = {"x-sage-slo-ttft-ms": "300", "x-sage-deadline-ms": "200"}
    assert read(Route.EMBEDDINGS, EMBED, both).job.slo == Slo(total=0.2)
    assert "no tokens" in refused(Route.EMBEDDINGS, "x-sage-slo-tpot-ms", "20").message


@pytest.mark.parametrize(
    ("route", "asked", "expected"),
    [
        (Route.CHAT, "chat", RequestClass.CHAT),
        (Route.CHAT, "batch", RequestClass.BATCH),
        (Route.COMPLETIONS, "completion", RequestClass.COMPLETION),
        (Route.COMPLETIONS, "batch", RequestClass.BATCH),
        (Route.EMBEDDINGS, "embed_bulk", RequestClass.EMBED_BULK),
    ],
)
def test_a_class_can_be_lowered(route: Route, asked: str, expected: RequestClass) -> None:
    assert read(route, BODIES[route], {"x-sage-class": asked}).job.request_class is expected


@pytest.mark.parametrize(
    ("route", "asked", "valid"),
    [
        (Route.CHAT, "completion", "chat or batch"),
        (Route.COMPLETIONS, "chat", "completion or batch"),
        (Route.EMBEDDINGS, "batch", "embed_interactive or embed_bulk"),
        (Route.CHAT, "", "chat or batch"),
    ],
)
def test_a_class_of_another_route_is_refused(route: Route, asked: str, valid: str) -> None:
    assert valid in refused(route, "x-sage-class", asked).message


def test_a_request_is_for_a_tenant_of_the_configuration_or_the_keys_own() -> None:
    assert read(Route.CHAT, CHAT, {"x-sage-tenant": "key-1"}).job.tenant == "key-1"
    assert read(Route.CHAT, CHAT, {"x-sage-tenant": "nightly"}).job.tenant == "nightly"
    assert "key-1, nightly, search" in refused(Route.CHAT, "x-sage-tenant", "nobody").message
    tenants = (TenantConfig(name="a"), TenantConfig(name="b"))
    limits = ParseLimits.of(GatewayConfig(), ControlPlaneConfig(tenants=tenants))
    assert limits.tenants == {"a", "b"}


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("x-sage-priority", "10", "from -9 to 9"),
        ("x-sage-priority", "high", "from -9 to 9"),
        ("x-sage-priority", "", "from -9 to 9"),
        ("x-sage-priority", "٣", "from -9 to 9"),
        ("x-sage-parent", "", "x-request-id"),
        ("x-sage-parent", "a b", "x-request-id"),
        ("x-sage-explain", "yes", "1, or 0"),
        ("x-sage-slo-ttft-ms", "0", "positive number"),
        ("x-sage-slo-tpot-ms", "fast", "positive number"),
        ("x-sage-deadline-ms", "-1", "positive number"),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(name: str, value: str, valid: str) -> None:
    assert valid in refused(Route.CHAT, name, value).message


@given(st.sampled_from(WISHES), st.text(max_size=200), st.sampled_from(list(Route)))
def test_a_header_is_honoured_or_named(name: str, value: str, route: Route) -> None:
    param = name
    try:
        read(route, BODIES[route], {name: value})
    except BadRequestError as error:
        param = error.param or ""
    assert param == name


# ---- what the body tells the scheduler ----


def test_how_much_there_is_to_read() -> None:
    chat = read(Route.CHAT, CHAT)
    assert chat.job.prompt_bytes == len(chat.call.body)
    texts = read(Route.EMBEDDINGS, {**EMBED, "input": ["é", "ab"]}).job
    assert (texts.prompt_bytes, texts.texts) == (4, 2)


def test_token_ids_are_counted_exactly() -> None:
    job = read(Route.COMPLETIONS, {**COMPLETION, "prompt": [5, 6, 7]}).job
    assert (job.prompt_tokens, job.prompt_bytes) == (3, 0)
    job = read(Route.COMPLETIONS, {**COMPLETION, "prompt": [[5, 6], [7]]}).job
    assert (job.prompt_tokens, job.prompt_bytes) == (3, 0)
    long = read(Route.COMPLETIONS, {**COMPLETION, "prompt": [1] * 5000}).job
    assert long.prompt_tokens == 5000
    job = read(Route.EMBEDDINGS, {**EMBED, "input": [1, 2]}, decode_tokens=lambda ids: "x" * len(ids)).job
    assert (job.prompt_tokens, job.prompt_bytes, job.batch_key) == (2, 0, "")


def test_requests_that_could_share_a_call_have_one_key() -> None:
    def key(**fields: Any) -> str:
        return read(Route.EMBEDDINGS, {**EMBED, **fields}).job.batch_key

    assert key() == key(input=["other", "texts"]) == key(encoding_format="float") != ""
    assert len({key(), key(model="n"), key(dimensions=8), key(encoding_format="base64")}) == 4
    assert key(user="someone") == key(truncate=True) == ""
    assert read(Route.CHAT, CHAT).job.batch_key == ""


def test_what_is_short_and_idempotent_can_be_hedged() -> None:
    assert read(Route.EMBEDDINGS, EMBED).job.hedgeable
    assert not read(Route.EMBEDDINGS, {**EMBED, "input": ["a"] * 9}).job.hedgeable
    assert not read(Route.CHAT, CHAT).job.hedgeable


def test_whether_it_streams_is_known() -> None:
    assert read(Route.CHAT, {**CHAT, "stream": True}).job.stream
    assert not read(Route.CHAT, CHAT).job.stream


# ---- prefixes ----


def blocks(*contents: str, **fields: Any) -> tuple[int, ...]:
    messages = [{"role": "user", "content": content} for content in contents]
    return read(Route.CHAT, {**CHAT, "messages": messages, **fields}, blocks=True).job.blocks


def test_blocks_are_made_when_they_are_asked_for() -> None:
    long = {**CHAT, "messages": [{"role": "user", "content": "x" * 2000}]}
    assert read(Route.CHAT, long).job.blocks == ()
    assert len(read(Route.CHAT, long, blocks=True).job.blocks) == 2000 // 256
    assert len(read(Route.COMPLETIONS, {**COMPLETION, "prompt": "x" * 600}, blocks=True).job.blocks) == 2
    assert read(Route.COMPLETIONS, {**COMPLETION, "prompt": ["x" * 600]}, blocks=True).job.blocks == ()
    assert read(Route.EMBEDDINGS, {**EMBED, "input": "x" * 600}, blocks=True).job.blocks == ()


def test_a_conversation_that_goes_on_begins_with_the_blocks_it_had() -> None:
    before = blocks("a" * 1000, "b" * 1000)
    after = blocks("a" * 1000, "b" * 1000, "c" * 1000)
    assert len(after) > len(before)
    assert after[: len(before)] == before


def test_what_stands_before_the_text_changes_the_blocks() -> None:
    plain = blocks("a" * 1000)
    assert set(blocks("b" + "a" * 999)).isdisjoint(plain)
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert set(blocks("a" * 1000, tools=tools)).isdisjoint(plain)


def test_the_order_of_keys_in_a_message_does_not_matter() -> None:
    def of(*items: tuple[str, str]) -> tuple[int, ...]:
        return read(Route.CHAT, {**CHAT, "messages": [dict(items)]}, blocks=True).job.blocks

    text = "a" * 1000
    assert of(("role", "user"), ("content", text)) == of(("content", text), ("role", "user")) != ()
