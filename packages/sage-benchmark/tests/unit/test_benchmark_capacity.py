"""The search for the rate at which a server fails."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.benchmark.capacity import Bracket, Search, bracket


async def look(limit: float, search: Search) -> tuple[Bracket, list[float]]:
    tried: list[float] = []

    async def passes(rate: float) -> bool:
        tried.append(rate)
        return rate < limit

    return await bracket(passes, search), tried


async def test_it_grows_until_it_fails_and_then_halves_the_gap() -> None:
    found, tried = await look(11.0, Search(4.0, 2.0, 64.0, 3))
    assert tried == [4, 8, 16, 12, 10, 11]
    assert found == Bracket(10, 11)


async def test_a_first_rate_that_fails_is_halved_down_from() -> None:
    found, tried = await look(1.5, Search(4.0, 2.0, 64.0, 2))
    assert tried == [4, 2, 1]
    assert found == Bracket(1, 2)


async def test_what_never_fails_has_no_upper_end() -> None:
    found, tried = await look(1000.0, Search(4.0, 3.0, 20.0, 3))
    assert tried == [4, 12, 20]
    assert found == Bracket(20, None)


@given(st.floats(0.01, 1e4), st.floats(0.1, 50), st.floats(1.1, 4), st.integers(0, 8))
async def test_the_limit_lies_between_both_ends(limit: Any, first: Any, factor: Any, steps: Any) -> None:
    found, tried = await look(limit, Search(first, factor, first * 100, steps))
    assert found.good < limit
    assert found.bad is None or found.bad >= limit
    assert found.good == max((rate for rate in tried if rate < limit), default=0.0)
    if found.bad is not None:
        assert found.bad == min(rate for rate in tried if rate >= limit)


@pytest.mark.parametrize(
    "bad", [Search(0.0), Search(5.0, last=4.0), Search(1.0, factor=1.0), Search(1.0, steps=-1)]
)
async def test_a_search_that_cannot_end_is_refused(bad: Search) -> None:
    with pytest.raises(ValueError, match="A search needs"):
        await look(1.0, bad)
