"""An engine's error body: what the log gets, what the client gets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.middleware.engines.faults import Complaint, brief, complaint_of, refused, seconds_of


def read(value: Any) -> Complaint:
    return complaint_of(msgspec.json.encode(value))


@pytest.mark.parametrize(
    ("text", "limit", "asked"),
    [
        (
            "This model's maximum context length is 2048 tokens. However, you requested 100 output tokens "
            "and your prompt contains at least 1949 input tokens, for a total of at least 2049 tokens.",
            2048,
            2049,
        ),
        (
            "This model's maximum context length is 4097 tokens. However, your messages resulted in "
            "5000 tokens.",
            4097,
            5000,
        ),
        ("The decoder prompt (length 9000) is longer than the maximum model length of 4096.", 4096, 9000),
        ("maximum context length is 77777777777777777777 tokens", None, None),
    ],
)
def test_a_context_that_is_too_small(text: str, limit: int | None, asked: int | None) -> None:
    found = read({"error": {"message": text}})
    assert (found.overlong, found.limit, found.asked) == (True, limit, asked)
    assert "does not fit the context" in str(refused("e", 400, found))


def test_the_code_alone_tells_a_context() -> None:
    found = read({"error": {"message": "no", "code": "context_length_exceeded"}})
    assert str(refused("e", 400, found)).startswith(
        "The engine e answered 400: the request does not fit the "
    )


def test_a_prompt_that_speaks_of_a_context_is_no_such_error() -> None:
    found = read({"error": "bad value, 'input': 'the maximum context length is 5'"})
    assert not found.overlong
    assert found.words == "bad value, …"


@pytest.mark.parametrize(
    "param", ["two words", "x" * 300, "<b>", "a\nb", "", 7, None, "temperature: use sk-key"]
)
def test_what_is_no_name_of_a_field_is_not_passed_on(param: object) -> None:
    assert read({"error": {"message": "m", "param": param}}).param is None


@pytest.mark.parametrize(
    ("loc", "param"),
    [
        (["body", "stop"], "stop"),
        (["body", "messages", 0, "content"], "messages[0].content"),
        (["body"], None),
        (["body", "<script>"], None),
        ([], None),
        ("body", None),
        (None, None),
    ],
)
def test_a_validators_place(loc: object, param: str | None) -> None:
    assert read({"detail": [{"loc": loc, "msg": "m", "type": "t", "input": "PROMPT"}]}).param == param


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"7", b'{"detail": [1]}', b'{"error": null}', b"\xff", b'{"x": {}}']
)
def test_a_body_that_says_nothing(body: bytes) -> None:
    found = complaint_of(body)
    assert found.words
    assert found.param is None


def test_long_words_are_cut() -> None:
    assert len(brief("word " * 500)) == 301
    assert brief(" a\n b ") == "a b"


@given(st.text(alphabet=st.characters(categories=["Lu"]), min_size=30))
def test_no_word_of_an_engine_reaches_the_client(secret: str) -> None:
    for value in (
        {"error": secret},
        {"error": {"message": f"maximum context length is {secret}", "code": secret}},
        {"detail": [{"msg": secret, "type": secret, "input": secret}]},
    ):
        assert secret not in str(refused("e", 400, read(value)))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("99999999999999999999", 3600.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:00:05 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("1.5", None),
        ("\u0663", None),
    ],
)
def test_when_to_come_again(header: str, seconds: float | None) -> None:
    assert seconds_of(header, now=10.0) == seconds


@given(st.text(max_size=40))
def test_no_header_of_a_server_breaks_us(header: str) -> None:
    found = seconds_of(header, now=0.0)
    assert found is None or 0.0 <= found <= 3600.0
