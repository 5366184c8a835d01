"""Which texts the embedding server computes together."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from sage.middleware.engines.batching import MAX_CHARS, Work, plan, take


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
        batches = plan(items)
        assert sorted(map(id_of, items)) == sorted(map(id_of, [item for batch in batches for item in batch]))
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
