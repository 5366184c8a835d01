"""The deadlines of chains: what is kept, what goes first, how many there are at most."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sage.middleware.control_plane.chains import Chains

DEADLINES = st.none() | st.integers(0, 20).map(float)


def test_the_earlier_of_two_deadlines_counts() -> None:
    chains = Chains()
    chains.note("a", 5.0)
    assert [chains.deadline("a", own) for own in (None, 4.0, 6.0)] == [5.0, 4.0, 5.0]
    assert [chains.deadline("unknown", own) for own in (None, 4.0)] == [None, 4.0]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), DEADLINES)), st.integers(1, 6))
def test_the_latest_deadlines_are_those_that_are_kept(
    notes: list[tuple[str, float | None]], size: int
) -> None:
    chains = Chains(size)
    newest: dict[str, float | None] = {}
    for ident, deadline in notes:
        chains.note(ident, deadline)
        newest[ident] = deadline
        assert len(chains) <= size
    latest = sorted((deadline for _, deadline in notes if deadline is not None), reverse=True)[:size]
    for ident, deadline in newest.items():
        found = chains.deadline(ident, None)
        assert found in (deadline, None)
        if deadline is not None and (len(latest) < size or deadline > latest[-1]):
            assert found == deadline
