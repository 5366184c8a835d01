"""Embedding calls: what is assembled, read and merged is what the clients sent and the engine wrote."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import EngineError
from sage.middleware import _native
from sage.middleware.control_plane import calls
from sage.middleware.control_plane.calls import (
    EmbeddingRequest,
    Vector,
    assemble,
    merge,
    read_answer,
    share_tokens,
)

TEXTS = st.lists(st.text(min_size=1), min_size=1, max_size=8)


def request_for(given: Any, **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest.decode(json.dumps({"model": "m", "input": given, **fields}).encode())


def answer(vectors: list[Any], *, order: list[int] | None = None, tokens: int | None = 12) -> bytes:
    data = [
        {"object": "embedding", "index": at, "embedding": vectors[at]} for at in order or range(len(vectors))
    ]
    usage = None if tokens is None else {"prompt_tokens": tokens, "total_tokens": tokens}
    return json.dumps({"object": "list", "data": data, "model": "m", "usage": usage}).encode()


class TestRequest:
    def test_a_single_string_is_one_text(self) -> None:
        assert request_for("hello").texts == [b'"hello"']

    @given(TEXTS)
    def test_texts_come_back_as_they_were(self, texts: list[str]) -> None:
        assert [json.loads(text) for text in request_for(texts).texts] == texts

    def test_spaces_around_the_input_do_not_matter(self) -> None:
        body = b'{ "model" : "m" , "input" :  [ "a" , "b" ]  }'
        assert EmbeddingRequest.decode(body).texts == [b'"a"', b'"b"']


class TestAssemble:
    @given(TEXTS, TEXTS)
    def test_two_requests_make_one_body(self, first: list[str], second: list[str]) -> None:
        requests = [request_for(texts, dimensions=4, encoding_format="base64") for texts in (first, second)]
        body = assemble(requests, [*requests[0].texts, *requests[1].texts])
        expected = {"model": "m", "dimensions": 4, "encoding_format": "base64", "input": first + second}
        assert json.loads(body) == expected

    def test_a_call_for_one_request_keeps_its_other_fields(self) -> None:
        one = request_for(["a", "b"], user="me", truncate=5)
        assert json.loads(assemble([one], one.texts[1:])) == {
            "model": "m",
            "input": ["b"],
            "user": "me",
            "truncate": 5,
        }

    def test_a_call_for_several_does_not_tell_one_s_name_to_all(self) -> None:
        requests = [request_for(["a"], user="me"), request_for(["b"], user="you")]
        assert json.loads(assemble(requests, [b'"a"', b'"b"'])) == {"model": "m", "input": ["a", "b"]}


class TestReadAnswer:
    @pytest.mark.parametrize("kind", ["float", "base64"])
    def test_vectors_are_the_engine_s_own_bytes_in_the_order_of_the_texts(self, kind: str) -> None:
        written = [b"[1.50,-2e-3]", b"[0.1,3]"] if kind == "float" else [b'"AACAPw=="', b'"AAAAQA=="']
        body = b'{"data":[{"index":1,"embedding":%b},{"index":0,"embedding":%b}]}' % (written[1], written[0])
        vectors, usage = read_answer(body, [b'"x"', b'"y"'])
        assert [bytes(vector.value) for vector in vectors] == written
        assert usage.prompt_tokens == 0

    def test_tokens_are_shared_out_by_the_length_of_the_texts(self) -> None:
        vectors, usage = read_answer(answer([[1.0], [2.0]]), [b'"12345678"', b'"23456789012345678"'])
        assert usage.prompt_tokens == 12
        assert [vector.tokens for vector in vectors] == [4, 8]

    @pytest.mark.parametrize(
        "body",
        [
            answer([[1.0]]),
            answer([[1.0], [2.0], [3.0]]),
            answer([[1.0], [2.0]], order=[0, 0]),
            answer([[1.0], [2.0, 3.0]]),
            answer([[1.0], "AACAPw=="]),
            answer([None, None]),
            answer([[1.0], [2.0]])[:-3],
            answer(["AA", "\\u00ff"]).replace(b"\\\\u00ff", b"\xff"),
            b"[]",
        ],
    )
    def test_what_cannot_be_right_is_an_engine_s_fault(self, body: bytes) -> None:
        with pytest.raises(EngineError, match="engine"):
            read_answer(body, [b'"x"', b'"y"'])


VECTORS = st.lists(
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9), min_size=1, max_size=3
)
DAMAGE = st.tuples(
    st.integers(0, 10_000), st.sampled_from([b"", b"0", b"e", b",", b"]", b'"', b"\\", b"\xff"])
)


@given(
    st.lists(VECTORS, min_size=1, max_size=4)
    | st.lists(st.text("AZaz09+/=", min_size=4, max_size=4), min_size=1),
    st.randoms(),
    st.none() | st.integers(0, 10**12),
    st.none() | DAMAGE,
)
def test_natively_an_answer_is_read_as_in_python(
    vectors: list[Any], random: Random, tokens: int | None, damage: tuple[int, bytes] | None
) -> None:
    body = answer(vectors, order=random.sample(range(len(vectors)), len(vectors)), tokens=tokens)
    if damage is not None:
        at = damage[0] % len(body)
        body = body[:at] + damage[1] + body[at + 1 :]
    texts = [b'"%b"' % (b"x" * random.randrange(9)) for _ in vectors]
    found = _native.read_vectors(body, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "_plain", lambda: None)
        if found is not None:
            assert found == read_answer(body, texts)
        elif damage is None and (tokens or 0) < 2**31:
            assert any(vector != vectors[0] for vector in vectors)
            with pytest.raises(EngineError, match="one length"):
                read_answer(body, texts)


class TestMerge:
    def test_answers_of_two_calls_become_one(self) -> None:
        first, _ = read_answer(answer([[1.0], [2.0]], order=[1, 0], tokens=5), [b'"a"', b'"b"'])
        second, _ = read_answer(answer([[3.0]], tokens=None), [b'"c"'])
        body = json.loads(merge([*first, *second], msgspec.Raw(b'"m"')))
        assert body["object"] == "list"
        assert body["model"] == "m"
        assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
        assert body["data"] == [
            {"object": "embedding", "index": index, "embedding": [value]}
            for index, value in enumerate((1.0, 2.0, 3.0))
        ]

    @given(
        st.lists(
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1
        )
    )
    def test_cut_and_merged_is_the_same_as_whole(self, rows: list[list[float]]) -> None:
        texts = [b'"%d"' % index for index in range(len(rows))]
        whole, _ = read_answer(answer(rows), texts)
        half = len(rows) // 2
        parts: list[Vector] = []
        for some, names in ((rows[:half], texts[:half]), (rows[half:], texts[half:])):
            if some:
                parts += read_answer(answer(some), names)[0]
        assert [vector.value for vector in parts] == [vector.value for vector in whole]


@given(st.integers(0, 100_000), st.lists(st.integers(1, 10_000), min_size=1, max_size=50))
def test_shares_add_up_and_none_is_off_by_more_than_one(total: int, weights: list[int]) -> None:
    shares = share_tokens(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) <= 1
