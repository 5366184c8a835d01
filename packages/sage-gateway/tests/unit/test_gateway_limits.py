"""The limiter: what it admits, whatever the order of events, and what it says."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.gateway.limits import (
    DAY_S,
    Bucket,
    BudgetError,
    Hold,
    Limiter,
    LimitError,
    Limits,
    RateError,
    Spent,
    duration,
)

NOON = 20_000 * DAY_S + DAY_S / 2


def refused(limiter: Limiter, tokens: int = 1, *, now: float = 0.0, wall: float = NOON) -> LimitError:
    with pytest.raises(LimitError) as caught:
        limiter.admit(now, wall, tokens)
    assert caught.value.status == 429
    return caught.value


# ---- one bucket --------------------------------------------------------------------------------------------


def test_a_bucket_gives_its_limit_at_once_and_then_steadily() -> None:
    bucket = Bucket(60)
    for _ in range(60):
        assert bucket.wait(0.0, 1) == 0.0
        bucket.take(0.0, 1)
    assert (bucket.remaining(0.0), bucket.reset(0.0)) == (0, 60.0)
    assert bucket.wait(0.0, 1) == pytest.approx(1.0)
    assert bucket.wait(1.0, 1) == 0.0
    assert bucket.remaining(30.0) == 30
    assert bucket.wait(0.0, 61) == math.inf


def test_what_was_not_needed_comes_back() -> None:
    bucket = Bucket(60)
    mark = bucket.take(0.0, 60)
    bucket.correct(10.0, mark, 60, 20)
    assert bucket.remaining(10.0) == 50  # 40 not taken, and 10 of the others came back by time


def test_what_time_has_given_back_does_not_come_back_twice() -> None:
    bucket = Bucket(60)
    mark = bucket.take(0.0, 60)
    bucket.take(90.0, 10)
    bucket.correct(90.0, mark, 60, 0)
    assert bucket.remaining(90.0) == 50


def test_a_full_bucket_has_no_more_than_its_limit_however_large_that_is() -> None:
    assert Bucket(1_000_000_000).remaining(0.0) == 1_000_000_000


def test_what_was_needed_beyond_is_a_debt() -> None:
    bucket = Bucket(60)
    mark = bucket.take(0.0, 10)
    bucket.correct(0.0, mark, 10, 100)
    assert bucket.remaining(0.0) == 0
    assert bucket.wait(0.0, 1) == pytest.approx(41.0)


EVENTS = st.lists(
    st.tuples(
        st.floats(0, 40, allow_nan=False),  # seconds since the last event
        st.integers(1, 50),  # units asked for
        st.floats(0, 1),  # share of them that is used in the end
        st.integers(0, 6),  # events until that is known
    ),
    min_size=1,
    max_size=40,
)


@given(st.integers(1, 60), EVENTS)
def test_a_bucket_never_gives_more_than_its_limit_and_rate_in_any_window(limit: int, events: Any) -> None:
    bucket, now = Bucket(limit), 0.0
    given_at: list[tuple[float, int]] = []
    open_holds: list[tuple[int, float, int, int]] = []
    for step, (gap, asked, share, later) in enumerate(events):
        now += gap
        for due, mark, taken, used in [hold for hold in open_holds if hold[0] <= step]:
            open_holds.remove((due, mark, taken, used))
            bucket.correct(now, mark, taken, used)
        assert 0 <= bucket.remaining(now) <= limit
        assert 0 <= bucket.reset(now) <= 60.0 + 1e-6
        wait = bucket.wait(now, asked)
        if wait == 0.0:
            used = int(asked * share)
            open_holds.append((step + later, bucket.take(now, asked), asked, used))
            given_at.append((now, used))
        else:
            assert (wait == math.inf) == (asked > limit)
            if wait != math.inf:
                assert bucket.wait(now + wait, asked) == 0.0  # what it says is true
    for i, (begin, _) in enumerate(given_at):
        total = 0
        for end, used in given_at[i:]:
            total += used
            assert total <= limit + limit * (end - begin) / 60 + 1e-3


@given(st.integers(1, 60), EVENTS, st.floats(0.1, 60))
def test_waiting_longer_never_leaves_less(limit: int, events: Any, longer: float) -> None:
    bucket, now = Bucket(limit), 0.0
    for gap, asked, _, _ in events:
        now += gap
        if bucket.wait(now, asked) == 0.0:
            bucket.take(now, asked)
    assert bucket.remaining(now + longer) >= bucket.remaining(now)
    assert bucket.wait(now + longer, 1) <= bucket.wait(now, 1)
    assert bucket.reset(now + longer) <= bucket.reset(now)
    assert bucket.remaining(now + 60.0) == limit


# ---- all bounds of a key -----------------------------------------------------------------------------------


def test_requests_in_a_minute() -> None:
    limiter = Limiter(Limits(rpm=2))
    for _ in range(2):
        limiter.settle(limiter.admit(0.0, NOON, 5), 0.0, 5)
    error = refused(limiter)
    assert isinstance(error, RateError)
    assert (error.code, error.retry_after, error.final) == ("rate_limit_exceeded", 30, False)
    assert "2 requests in a minute" in error.message
    limiter.admit(30.0, NOON, 5)


def test_tokens_are_charged_ahead_and_corrected() -> None:
    limiter = Limiter(Limits(tpm=100))
    hold = limiter.admit(0.0, NOON, 80)
    error = refused(limiter, 40)
    assert error.retry_after == 12
    limiter.settle(hold, 0.0, 10)
    assert dict(limiter.headers(0.0))["x-ratelimit-remaining-tokens"] == "90"
    limiter.admit(0.0, NOON, 90)


def test_a_request_that_can_never_fit_is_told_so() -> None:
    error = refused(Limiter(Limits(tpm=100)), 101)
    assert error.final
    assert "max_tokens" in error.hint
    assert refused(Limiter(Limits(day_tokens=100)), 101).final


def test_requests_at_once() -> None:
    limiter = Limiter(Limits(concurrent=2))
    first, _ = limiter.admit(0.0, NOON, 1), limiter.admit(0.0, NOON, 1)
    assert "2 requests under way" in refused(limiter).message
    limiter.settle(first, 0.0, 1)
    limiter.admit(0.0, NOON, 1)


def test_a_daily_budget_ends_at_midnight_and_survives_a_restart() -> None:
    day = int(NOON // DAY_S)
    limiter = Limiter(Limits(day_tokens=100), Spent(day, 60, 999))
    error = refused(limiter, 41)
    assert isinstance(error, BudgetError)
    assert (error.code, error.retry_after) == ("insufficient_quota", DAY_S / 2)
    assert "40 of its 100 tokens of today" in error.message
    hold = limiter.admit(0.0, NOON, 40)
    limiter.settle(hold, 0.0, 50)
    assert "0 of its 100" in refused(limiter).message
    limiter.admit(0.0, NOON + DAY_S / 2, 100)


def test_a_request_over_midnight_is_charged_to_the_day_it_began() -> None:
    limiter = Limiter(Limits(day_tokens=100))
    hold = limiter.admit(0.0, NOON, 50)
    limiter.settle(limiter.admit(1.0, NOON + DAY_S, 10), 1.0, 10)
    limiter.settle(hold, 2.0, 80)
    limiter.admit(3.0, NOON + DAY_S, 90)
    assert "0 of its 100" in refused(limiter, wall=NOON + DAY_S).message


def test_a_total_budget_never_comes_back() -> None:
    limiter = Limiter(Limits(total_tokens=100), Spent(3, 0, 95))
    error = refused(limiter, 6)
    assert (error.final, error.code) == (True, "insufficient_quota")
    limiter.admit(0.0, NOON, 5)
    assert "0 of its 100" in refused(limiter, wall=NOON + 40 * DAY_S).message


def test_a_change_keeps_what_was_used_and_what_runs() -> None:
    limiter = Limiter(Limits(tpm=100, concurrent=5, day_tokens=100))
    hold = limiter.admit(0.0, NOON, 60)
    limiter.change(Limits(tpm=50, concurrent=1, day_tokens=100))
    assert "1 requests under way" in refused(limiter).message
    limiter.settle(hold, 0.0, 60)
    assert dict(limiter.headers(0.0))["x-ratelimit-limit-tokens"] == "50"
    assert "40 of its 100" in refused(limiter, 41).message
    limiter.change(Limits())
    for _ in range(100):
        limiter.admit(0.0, NOON, 10**9)
    assert limiter.headers(0.0) == []


def test_headers_have_openais_names() -> None:
    limiter = Limiter(Limits(rpm=60, tpm=6000, concurrent=1))
    limiter.admit(0.0, NOON, 1000)
    assert dict(limiter.headers(0.5)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "500ms",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5050",
        "x-ratelimit-reset-tokens": "9.5s",
    }
    assert Limiter(Limits(concurrent=1)).headers(0.0) == []


def test_durations_are_written_as_openai_does() -> None:
    spans = (0.0, 0.0004, 0.12, 1.0, 7.5, 59.9996, 60.0, 360.0, 61.25)
    assert [duration(span) for span in spans] == [
        "0s",
        "1ms",
        "120ms",
        "1s",
        "7.5s",
        "1m0s",
        "1m0s",
        "6m0s",
        "1m1.25s",
    ]


STEPS = st.lists(
    st.tuples(st.sampled_from(("admit", "settle")), st.floats(0, 20), st.integers(1, 40), st.integers(0, 60)),
    max_size=60,
)


@given(
    st.builds(
        Limits,
        rpm=st.none() | st.integers(1, 10),
        tpm=st.none() | st.integers(1, 100),
        concurrent=st.none() | st.integers(1, 4),
        day_tokens=st.none() | st.integers(1, 200),
        total_tokens=st.none() | st.integers(1, 400),
    ),
    STEPS,
)
def test_a_refusal_charges_nothing_and_no_bound_is_passed(limits: Limits, steps: Any) -> None:
    limiter, now, spent = Limiter(limits), 0.0, 0
    running: list[Hold] = []
    for what, gap, tokens, used in steps:
        now += gap
        wall = NOON + now
        if what == "settle" and running:
            hold = running.pop(used % len(running))
            limiter.settle(hold, now, used)
            spent += used - hold.tokens
        elif what == "admit":
            before = (limiter.headers(now), limiter.running)
            with contextlib.suppress(LimitError):
                running.append(limiter.admit(now, wall, tokens))
                spent += tokens
                assert limits.total_tokens is None or spent <= limits.total_tokens
            if limiter.running == before[1]:
                assert limiter.headers(now) == before[0]
        assert limiter.running == len(running)
        assert limits.concurrent is None or len(running) <= limits.concurrent
        assert all(int(value) >= 0 for name, value in limiter.headers(now) if "remaining" in name)
