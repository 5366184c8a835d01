"""Which threads of the embedding server run where."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import BadRequestError, UsageError
from sage.middleware.engines.threads import Cores, ThreadTeam, pin, usable


class OpenMp:
    """libgomp as `ThreadTeam` relies on it: thread 0 computes, others are made when a region wants them."""

    def __init__(self) -> None:
        self.count = 1
        self.here: tuple[int, ...] = ()
        self.helpers: list[tuple[int, ...]] = []

    def set_count(self, count: int) -> None:
        self.count = count

    def region(self, _count: int) -> None:
        if self.count == 1:
            return  # no team: the helpers sleep on
        del self.helpers[self.count - 1 :]
        while len(self.helpers) < self.count - 1:
            self.helpers.append(self.here)

    def pin(self, cores: Sequence[int]) -> None:
        if cores:
            self.here = tuple(cores)


@given(
    own=st.integers(1, 4),
    lent=st.integers(1, 4),
    batches=st.lists(st.tuples(st.integers(1, 8), st.booleans()), max_size=30),
)
def test_own_threads_stay_on_own_cores_and_the_others_on_lent_ones(
    own: int, lent: int, batches: list[tuple[int, bool]]
) -> None:
    cores = Cores.of(range(own), own, own + lent, range(own + lent))
    library = OpenMp()
    team = ThreadTeam(cores, library.set_count, library.region, library.pin)
    for asked, has_region in batches:
        count = min(asked, cores.most)
        team.use(count)
        if has_region:
            library.region(count)
        assert library.count == count
        assert library.here == cores.own
        assert library.helpers[: own - 1] == [cores.own] * min(own - 1, len(library.helpers))
        assert all(where == cores.lent for where in library.helpers[own - 1 :])


def test_a_team_on_cores_that_nobody_shared_out_pins_nothing() -> None:
    library = OpenMp()
    team = ThreadTeam(Cores.of((), 2, 4, range(4)), library.set_count, library.region, library.pin)
    team.use(4)
    assert (library.count, library.here, library.helpers) == (4, (), [()] * 3)


def test_the_computing_thread_comes_home_when_a_thread_cannot_be_made() -> None:
    library = OpenMp()

    def fails(_count: int) -> None:
        raise RuntimeError("no more threads")

    team = ThreadTeam(Cores.of((0,), 1, 2, (0, 1)), library.set_count, fails, library.pin)
    with pytest.raises(RuntimeError, match="no more threads"):
        team.use(2)
    assert library.here == (0,)


def test_cores_and_counts_that_are_given_and_that_follow() -> None:
    assert Cores.of((), 0, 0, range(3)) == Cores(3, 3)
    assert Cores.of((2, 1), 0, 0, range(3)) == Cores(2, 2, (1, 2), (0,))
    assert Cores.of((1,), 1, 2, range(2)) == Cores(1, 2, (1,), (0,))


@pytest.mark.parametrize(
    ("own", "threads", "most", "says"),
    [((5,), 1, 1, "can use"), ((0,), 3, 2, "3 threads and 2"), ((0,), -1, 0, "-1 threads")],
)
def test_cores_and_counts_that_cannot_be(own: tuple[int, ...], threads: int, most: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Cores.of(own, threads, most, (0, 1))


@pytest.mark.parametrize(("header", "count"), [("", 2), ("0", 2), ("1", 1), ("3", 3), ("99", 4)])
def test_threads_that_a_request_asks_for(header: str, count: int) -> None:
    assert Cores(2, 4).asked(header) == count


@pytest.mark.parametrize("header", ["-1", "x", "1.0", "²", " "])
def test_threads_that_a_request_cannot_ask_for(header: str) -> None:
    with pytest.raises(BadRequestError, match="whole number"):
        Cores(2, 4).asked(header)


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_pinning_the_calling_thread() -> None:
    before = os.sched_getaffinity(0)
    try:
        pin(())
        assert usable() == before
        pin([min(before)])
        assert usable() == {min(before)}
    finally:
        os.sched_setaffinity(0, before)
