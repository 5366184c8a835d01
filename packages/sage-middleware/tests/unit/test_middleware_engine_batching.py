"""Which texts the embedding server computes together."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.middleware.engines.batching import MAX_CHARS, Work, cut, patience, plan, take


def work(*lengths: int) -> Work:
    return Work(["x" * length for length in lengths], lambda vectors, tokens: None, lambda error: None)


def test_requests_take_turns() -> None:
    bulk, single = work(*[10] * 100), work(5)
    queue = deque([bulk, single])
    items = take(queue, texts=4)
    assert [owner is single for owner, _ in items] == [False, True, False, False]
    assert list(queue) == [bulk]


def test_a_cancelled_request_is_dropped() -> None:
    gone, here = work(1, 2, 3), work(4)
    gone.cancelled = True
    queue = deque([gone, here])
    assert [owner for owner, _ in take(queue)] == [here]
    assert not queue


def test_a_round_is_short_enough_to_wait_for() -> None:
    items = take(deque([work(*[MAX_CHARS // 4] * 50)]))
    assert len(items) == 4
    assert len(take(deque([work(MAX_CHARS * 3)]))) == 1  # one text always goes


@given(st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=30), min_size=1, max_size=8))
def test_every_text_once(requests: list[list[int]]) -> None:
    works = [work(*lengths) for lengths in requests]
    queue, seen = deque(works), []
    while items := take(queue):
        for batches in (plan(items), cut(items)):
            computed = [item for batch in batches for item in batch]
            assert sorted(map(id_of, items)) == sorted(map(id_of, computed))
            assert all(batch for batch in batches)
        seen += items
    assert sorted(map(id_of, seen)) == sorted((id(w), i) for w in works for i in range(len(w.texts)))


def id_of(item: tuple[Work, int]) -> tuple[int, int]:
    return id(item[0]), item[1]


def test_similar_lengths_stay_together_and_long_ones_go_alone() -> None:
    mixed = work(*[20] * 10, 2000)
    batches = plan([(mixed, index) for index in range(11)])
    assert [len(batch) for batch in batches] == [10, 1]  # the short ones do not wait for the long one
    even = work(*range(100, 110))
    assert len(plan([(even, index) for index in range(10)])) == 1
    assert plan([]) == []


def test_without_padding_a_round_is_cut_into_equal_pieces_the_shortest_first() -> None:
    mixed = work(*[20, 160] * 40)
    batches = cut([(mixed, index) for index in range(80)], chars=1800)
    sizes = [[len(owner.texts[index]) for owner, index in batch] for batch in batches]
    assert [sum(batch) for batch in sizes] == pytest.approx([1800] * 4, abs=160)
    assert [size for batch in sizes for size in batch] == [20] * 40 + [160] * 40


@given(st.lists(st.integers(1, 600), min_size=1, max_size=64))
def test_a_piece_is_never_far_from_its_size(lengths: list[int]) -> None:
    owner = work(*lengths)
    pieces = cut([(owner, index) for index in range(len(lengths))], chars=1000)
    assert all(sum(len(owner.texts[i]) for _, i in piece) <= 1500 + 600 for piece in pieces)
    if sum(lengths) < 1500:
        assert len(pieces) == 1


def test_a_text_longer_than_a_piece_and_none_at_all() -> None:
    assert [len(piece) for piece in cut([(work(5000), 0)], chars=1000)] == [1]
    assert cut([]) == []


def test_clients_that_were_just_answered_are_waited_for_in_short() -> None:
    assert patience(waiting=1, requests=32, seconds=0.02) == pytest.approx(0.001)
    assert patience(waiting=31, requests=32, seconds=5.0) == pytest.approx(0.003)
    assert patience(waiting=32, requests=32, seconds=5.0) == 0.0
    assert patience(waiting=1, requests=0, seconds=0.0) == 0.0


def test_one_client_of_several_texts_is_not_held_back() -> None:
    assert patience(waiting=1, requests=1, seconds=0.05) == 0.0
