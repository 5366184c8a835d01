"""What manager and process say to each other comes out as it went in."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import BadRequestError
from sage.common.jobs import OperatorInfo
from sage.kernel import OperatorReport
from sage.kernel.jobs.messages import (
    Answer,
    Beat,
    Begin,
    Check,
    Checked,
    Decide,
    Drain,
    Failed,
    Finished,
    Gates,
    Order,
    Pause,
    Paused,
    Running,
    Saved,
    Source,
    Word,
    decode_order,
    decode_word,
    encode,
)
from sage.kernel.jobs.worker import plain

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)
SOURCES = st.builds(
    Source,
    st.none() | OBJECTS,
    st.text(),
    OBJECTS,
    st.lists(st.text()).map(tuple),
    st.lists(st.text()).map(tuple),
    st.text(),
    st.dictionaries(st.text(), st.text(), max_size=2),
)
COUNTS = st.lists(OBJECTS, max_size=3).map(tuple)
ORDERS = st.one_of(
    st.builds(Check, SOURCES),
    st.builds(Begin, SOURCES, st.text(), st.floats(0.1, 100)),
    st.builds(Pause),
    st.builds(Drain),
    st.builds(Gates, st.integers(1)),
    st.builds(
        Decide,
        st.integers(1),
        st.text(),
        st.text(),
        st.booleans(),
        OBJECTS | st.just({"value": [1]}),
        st.text(),
    ),
)
WORDS = st.one_of(
    st.builds(Answer, st.integers(1), OBJECTS, st.text(), st.text(), st.text()),
    st.builds(Beat, st.floats(0, 100), COUNTS, st.dictionaries(st.text(), st.integers(0))),
    st.builds(Checked, st.text(), OBJECTS),
    st.builds(Running, st.none() | st.integers()),
    st.builds(Saved, st.integers(), st.floats(0, 1e10)),
    st.builds(Paused),
    st.builds(Finished, COUNTS),
    st.builds(Failed, st.text(), st.text(), st.text()),
)


@given(ORDERS)
def test_an_order_comes_through(order: Order) -> None:
    line = encode(order)
    assert line.count(b"\n") == 1
    assert decode_order(line) == order


@given(WORDS)
def test_a_word_comes_through(word: Word) -> None:
    line = encode(word)
    assert line.count(b"\n") == 1
    assert decode_word(line) == word


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"[]",
        b"{}",
        b'{"is": "Order"}',
        b'{"is": "Pause", "x": 1}',
        b'{"is": "Begin"}',
        b"\xff\n",
        b"1",
    ],
)
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(BadRequestError, match="valid is one of"):
        decode_order(line)
    with pytest.raises(BadRequestError, match="valid is one of"):
        decode_word(line)


def test_the_counts_of_an_operator_come_through_to_whoever_asks_for_the_job() -> None:
    report = OperatorReport("a", "map", 1, 2, 3, 4, 5, 6, 0.5, 0.25)
    assert set(OperatorInfo.model_fields) == {field.name for field in fields(OperatorReport)}
    beat = decode_word(encode(Beat(0.0, plain([report]))))
    assert isinstance(beat, Beat)
    assert OperatorInfo(**beat.operators[0]).model_dump() == asdict(report)


def test_who_speaks_is_told_apart() -> None:
    with pytest.raises(BadRequestError):
        decode_order(encode(Paused()))
    with pytest.raises(BadRequestError):
        decode_word(encode(Pause()))
