"""The native readers against those in Python: what both read they read alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from random import Random
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

from sage.common.errors import BadRequestError
from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.bodies import read_body
from sage.middleware.control_plane.classify import ParseLimits, parse
from sage.middleware.control_plane.facts import Facts
from sage.middleware.control_plane.json_guard import MAX_CONTAINERS, MAX_DEPTH, MAX_KEYS, MAX_STRINGS
from sage.middleware.control_plane.plain import parse_chat, parse_embedding, read_plain
from sage.middleware.engines.port import CHAT, COMPLETIONS, EMBEDDINGS, Capability, Route

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
LIMITS = ParseLimits()
HI = [{"role": "user", "content": "hi"}]


def plain(route: Route, body: bytes, *, blocks: bool = True, limits: ParseLimits = LIMITS) -> Facts | None:
    return read_plain(route, body, limits, blocks=blocks)


def closely(route: Route, body: bytes, *, blocks: bool = True) -> Facts | None:
    """What Python reads; None for what it refuses."""
    try:
        return read_body(route, body, LIMITS, None, blocks=blocks)
    except BadRequestError:
        return None


def agree(route: Route, body: bytes) -> bool:
    """Compare; whether the body is plain. What is not plain is Python's to judge."""
    found = plain(route, body)
    assert found is None or found == closely(route, body)
    assert (found is None) == (plain(route, body, blocks=False) is None) or found is None
    taken_in_alike(route, body, plain=found is not None)
    return found is not None


def taken_in_alike(route: Route, body: bytes, *, plain: bool) -> None:
    """All of it in one step, and step by step, as where there are headers to look at."""
    if route is CHAT:
        whole = parse_chat(body, "r", "t", blocks=True)
    else:
        whole = parse_embedding(body, "r", "t", LIMITS)
    if not plain:
        assert whole is None
        return
    for headers in ({}, {"other": "header"}):
        told = parse(route, body, limits=LIMITS, tenant="t", headers=headers, ident="r", blocks=True)
        assert whole == (None if told.job.request_class is RequestClass.EMBED_BULK else told)


@pytest.mark.parametrize(
    ("limits", "texts", "taken"),
    [
        (ParseLimits(bulk_texts=2), 2, True),
        (ParseLimits(bulk_texts=2), 3, False),
        (ParseLimits(bulk_tokens=2), 2, True),
        (ParseLimits(bulk_tokens=2), 3, False),
        (ParseLimits(max_inputs=1), 2, False),
        (ParseLimits(max_input_tokens=1), 2, False),
    ],
)
def test_what_is_bulk_or_too_much_is_not_taken_in_at_once(
    limits: ParseLimits, texts: int, taken: bool
) -> None:
    body = json.dumps({"model": "m", "input": ["four"] * texts}).encode()
    assert (parse_embedding(body, "r", "t", limits) is not None) is taken


# ---- bodies that may be anything ---------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(
    '\\"/\n\t\x00é€😀', max_size=300
)
NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def usually(valid: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Nine times in ten what is valid there."""
    return st.integers(0, 9).flatmap(lambda drawn: valid if drawn else JSON)


MESSAGE = st.fixed_dictionaries({"role": usually(TEXT), "content": JSON}, optional={"name": TEXT, "x": JSON})
CHAT_BODY = st.fixed_dictionaries(
    {"model": usually(TEXT), "messages": usually(st.lists(usually(MESSAGE), max_size=4))},
    optional={
        "stream": usually(st.booleans()),
        "stream_options": usually(
            st.fixed_dictionaries({}, optional={"include_usage": usually(st.booleans())})
        ),
        "max_tokens": usually(st.integers(-1, 5000)),
        "max_completion_tokens": usually(st.integers(0, 5000)),
        "n": usually(st.integers(0, 9)),
        "logprobs": usually(st.booleans()),
        "top_logprobs": usually(st.integers(-1, 21)),
        "response_format": usually(st.sampled_from([{"type": "text"}, {"type": "json_object"}, {}])),
        "tools": usually(st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=3)),
        "tool_choice": usually(st.sampled_from(["auto", "none", "required", {"type": "function"}])),
        "temperature": NUMBERS,
        "anything": JSON,
    },
)
EMBEDDING_BODY = st.fixed_dictionaries(
    {"model": usually(TEXT), "input": usually(TEXT | st.lists(usually(TEXT), max_size=4))},
    optional={
        "encoding_format": usually(st.sampled_from(["float", "base64", None, "hex"])),
        "dimensions": usually(st.integers(-1, 5)),
        "user": JSON,
    },
)
BODIES = st.tuples(st.just(CHAT), CHAT_BODY) | st.tuples(st.just(EMBEDDINGS), EMBEDDING_BODY)
FORMS = st.sampled_from(
    [{}, {"ensure_ascii": False}, {"indent": 1}, {"separators": (",", ":")}, {"separators": (" ,\r", "\t: ")}]
)


@PATIENT
@given(BODIES, FORMS)
@example((CHAT, {"model": "m", "messages": HI, "x": {"é": 1, "e": [1, {"b": "\u2028", "a": "/"}]}}), {})
def test_what_both_read_they_read_alike(case: tuple[Route, Any], form: dict[str, Any]) -> None:
    route, body = case
    agree(route, json.dumps(body, **form).encode())


@PATIENT
@given(BODIES, st.binary(min_size=1, max_size=3), st.data())
def test_damaged_bodies_are_never_read_otherwise(
    case: tuple[Route, Any], junk: bytes, data: st.DataObject
) -> None:
    route, body = case
    raw = json.dumps(body).encode()
    at = data.draw(st.integers(0, len(raw)))
    removed = data.draw(st.integers(0, 3))
    agree(route, raw[:at] + junk + raw[at + removed :])
    agree(route, raw[:at] + raw[at + removed :])


def test_every_flipped_byte_of_a_body_with_everything_in_it() -> None:
    """Each byte of a chat and of an embedding, replaced by every other value."""
    chat = (
        '{"model":"a\\/b","messages":[{"role":"user","content":"é\\u00e9\\ud83d\\ude00\\n"}],"stream":true,'
        '"max_tokens":12,"n":2,"temperature":0.5,"stop":[null,-7],"tools":[{"b":1,"a":{}}],"tool_choice":"auto"}'
    ).encode()
    embedding = b'{"model":"m","input":["a\\t","\xc3\xa9"],"dimensions":3,"encoding_format":"float"}'
    read = total = 0
    for route, raw in ((CHAT, chat), (EMBEDDINGS, embedding)):
        assert agree(route, raw)
        for at in range(len(raw)):
            for byte in range(256):
                read += agree(route, raw[:at] + bytes((byte,)) + raw[at + 1 :])
                total += 1
    assert 1000 < read < total // 2


# ---- what is plain -----------------------------------------------------------------------------------------

USUAL: list[tuple[Route, dict[str, Any]]] = [
    (CHAT, {"model": "m", "messages": HI}),
    (CHAT, {"model": "m", "messages": HI, "temperature": 0.7, "top_p": 1, "stop": ["\n"], "user": "ü"}),
    (CHAT, {"model": "m", "messages": HI, "stream": True, "stream_options": {"include_usage": True}}),
    (
        CHAT,
        {"model": "m", "messages": HI * 2048, "max_tokens": 1, "seed": -(2**53), "logit_bias": {"1": -100}},
    ),
    (CHAT, {"model": "m", "messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}] * 128}),
    (
        CHAT,
        {"model": "m", "messages": HI, "response_format": {"type": "json_object"}, "tool_choice": "required"},
    ),
    (CHAT, {"model": "m", "messages": HI, "stream": None, "max_tokens": None, "tools": None, "n": None}),
    (EMBEDDINGS, {"model": "m", "input": "text"}),
    (EMBEDDINGS, {"model": "m", "input": ["text", 'é"\n'] * 1024, "encoding_format": "base64"}),
    (EMBEDDINGS, {"model": "m", "input": "text", "user": "somebody", "dimensions": 3}),
]


@pytest.mark.parametrize(("route", "body"), USUAL)
def test_usual_bodies_are_plain(route: Route, body: dict[str, Any]) -> None:
    assert agree(route, json.dumps(body).encode())
    assert agree(route, json.dumps(body, ensure_ascii=False, indent=2).encode())


def test_a_plain_chat_says_what_it_needs() -> None:
    extra = {
        "n": 2,
        "top_logprobs": 1,
        "tools": [{}],
        "tool_choice": {"type": "function"},
        "response_format": {},
    }
    found = plain(CHAT, json.dumps({"model": "m", "messages": HI, **extra}).encode())
    assert found is not None
    assert found.needs == {
        Capability.CHAT,
        Capability.N,
        Capability.LOGPROBS,
        Capability.TOOLS,
        Capability.TOOL_CHOICE,
        Capability.RESPONSE_FORMAT,
    }


@pytest.mark.parametrize(
    "field",
    [
        '"model":"x"',  # twice
        '"x":1e5',
        '"x":1e400',
        '"x":-0',
        '"x":123456789012345678901',
        '"\\u0078":1',
        '"max_tokens":0',
        '"max_tokens":1.0',
        '"top_logprobs":21',
        '"n":9',
        '"stream":1',
        '"stream_options":{"include_usage":0}',
        '"tools":[1]',
        '"tool_choice":[]',
        '"response_format":"text"',
    ],
)
def test_whatever_is_out_of_the_ordinary_is_left_to_python(field: str) -> None:
    body = f'{{"model":"m","messages":[{{"role":"user"}}],{field}}}'.encode()
    assert not agree(CHAT, body)


@pytest.mark.parametrize(
    ("inside", "is_plain"),
    [
        ("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), True),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, False),
        ("{" + ",".join(f'"{n}":1' for n in range(MAX_KEYS - 4)) + "}", True),
        ("{" + ",".join(f'"{n}":1' for n in range(MAX_KEYS - 3)) + "}", False),
        ("[" + ",".join(["[]"] * (MAX_CONTAINERS - 4)) + "]", True),
        ("[" + ",".join(["[]"] * (MAX_CONTAINERS - 3)) + "]", False),
        ("[" + ",".join(['""'] * (MAX_STRINGS - 7)) + "]", True),
        ("[" + ",".join(['""'] * (MAX_STRINGS - 6)) + "]", False),
    ],
    ids=[
        "depth",
        "deeper",
        "names",
        "more names",
        "containers",
        "more containers",
        "strings",
        "more strings",
    ],
)
def test_the_bounds_are_the_same(inside: str, is_plain: bool) -> None:
    body = f'{{"model":"m","messages":[{{"role":"user"}}],"x":{inside}}}'.encode()
    assert (closely(CHAT, body) is not None) == is_plain
    assert agree(CHAT, body) == is_plain


def test_the_text_of_a_chat_does_not_depend_on_how_it_was_written() -> None:
    random = Random(3)  # noqa: S311 - no secret
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"z": [1, True, None], "a": {}}}}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "".join(random.choices('ab"\\/\n\x01\x7fé€😀', k=900))},
        {"content": [{"type": "text", "text": "more " * 100}], "role": "user"},
    ]
    one = json.dumps({"model": "m", "messages": messages, "tools": tools}).encode()
    turned = [dict(reversed(message.items())) for message in messages]
    other = json.dumps(
        {"tools": tools, "messages": turned, "model": "m"}, ensure_ascii=False, indent=3
    ).encode()
    found, same = plain(CHAT, one), plain(CHAT, other)
    assert found is not None
    assert same is not None
    assert found.blocks == same.blocks
    assert len(found.blocks) > 3
    assert agree(CHAT, one)
    assert agree(CHAT, other)


@pytest.mark.parametrize("value", ['{"x":1.5}', '{"x":1,"x":2}'])
def test_what_has_no_certain_form_is_only_hashed_by_python(value: str) -> None:
    body = f'{{"model":"m","messages":[{{"role":"user","content":{value}}}]}}'.encode()
    assert plain(CHAT, body, blocks=False) == closely(CHAT, body, blocks=False)
    assert plain(CHAT, body, blocks=False) is not None
    assert plain(CHAT, body) is None


def test_limits_on_embeddings_are_the_callers() -> None:
    body = json.dumps({"model": "m", "input": ["four", "more"]}).encode()
    assert plain(EMBEDDINGS, body, limits=ParseLimits(max_inputs=2)) is not None
    assert plain(EMBEDDINGS, body, limits=ParseLimits(max_inputs=1)) is None
    assert plain(EMBEDDINGS, body, limits=ParseLimits(max_input_tokens=1)) is None


def test_other_routes_are_not_read_here() -> None:
    assert plain(COMPLETIONS, b'{"model":"m","prompt":"p"}') is None


WITHOUT = """
import sys
sys.modules["sage.middleware._native"] = None
from sage.middleware.control_plane.classify import ParseLimits, parse
from sage.middleware.control_plane.prefix import new_prefix_index
from sage.middleware.engines.port import Route
body = b'{"model": "m", "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * 600)
try:
    job = parse(Route.CHAT, body, limits=ParseLimits(), tenant="t", headers={}, blocks=True).job
    index = new_prefix_index()
    index.insert("e", job.blocks)
    print(index.match(job.blocks), len(job.blocks), job.max_tokens)
except Exception as exc:
    print(type(exc).__name__, exc)
"""


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("", "ConfigError The native module"), ("0", "{'e': 2} 2 None")],
    ids=["native", "python"],
)
def test_without_the_native_module_it_runs_in_python_only_where_asked(setting: str, expected: str) -> None:
    env = {**os.environ, "SAGE_NATIVE": setting}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(expected)
