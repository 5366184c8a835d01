from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sage.platform.service import RestartPolicy

TIMES = st.lists(st.floats(0, 1000), min_size=1, max_size=30).map(sorted)


def test_the_wait_doubles_up_to_the_cap() -> None:
    policy = RestartPolicy(first=1, factor=2, cap=5, window=100)
    assert [policy.delay(range(n), n, 10) for n in range(1, 6)] == [1, 2, 4, 5, 5]


def test_one_crash_too_many_is_a_loop() -> None:
    policy = RestartPolicy(window=100)
    assert policy.delay([1, 2, 3], 3, 3) is not None
    assert policy.delay([1, 2, 3, 4], 4, 3) is None
    assert policy.delay([1], 1, 0) is None


def test_old_crashes_are_forgotten() -> None:
    policy = RestartPolicy(first=1, window=10)
    assert policy.delay([0, 1, 2, 3, 50], 50, 3) == 1


@given(TIMES, st.integers(0, 40))
def test_a_wait_is_within_bounds_and_more_patience_never_gives_up_earlier(
    times: list[float], most: int
) -> None:
    policy = RestartPolicy()
    delay = policy.delay(times, times[-1], most)
    if delay is not None:
        assert policy.first <= delay <= policy.cap
        assert policy.delay(times, times[-1], most + 1) == delay


def test_very_many_crashes_do_not_overflow() -> None:
    assert RestartPolicy().delay([0.0] * 5000, 0.0, 10_000) == 30.0
