"""Connections are counted in and out, and none is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import OverloadedError, UnavailableError
from sage.gateway.connections import Connections, Stall


def test_the_last_of_all_that_are_let_in_is_named() -> None:
    door = Connections(most=2)
    assert [door.enter(address) for address in ("a", "b")] == [None, None]
    assert isinstance(door.enter("c"), UnavailableError)
    door.leave("c")
    door.leave("a")
    assert door.enter("c") is None


def test_one_address_does_not_crowd_out_another() -> None:
    door = Connections(per_address=2)
    assert [door.enter("a") for _ in range(2)] == [None, None]
    refusal = door.enter("a")
    assert isinstance(refusal, OverloadedError)
    assert (refusal.retry_after, "2 connections" in refusal.message) == (1.0, True)
    assert door.enter("b") is None


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5), st.integers(1, 3))
def test_whoever_was_counted_in_and_has_gone_leaves_nothing(
    visitors: list[str], most: int, per_address: int
) -> None:
    door = Connections(most, per_address)
    for address in visitors:
        door.enter(address)
    for address in visitors:
        door.leave(address)
    assert door.enter("a") is None
    door.leave("a")
    assert not door._open


def test_a_stall_is_counted_while_nothing_moves() -> None:
    stall = Stall()
    steps = [(1.0, 0), (2.0, 10), (4.0, 10), (5.0, 10), (6.0, 9), (9.0, 9), (10.0, 0), (11.0, 9)]
    assert [stall.seconds(now, unsent) for now, unsent in steps] == [0, 0, 2, 3, 0, 3, 0, 0]
