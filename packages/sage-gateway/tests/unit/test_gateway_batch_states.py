"""A batch takes only the steps that OpenAI's does, and its stamps tell of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.batch import ENDED, STATUSES
from sage.common.errors import ConflictError
from sage.gateway.batch import states
from sage.gateway.batch.states import NEXT, Batch, Counts, Problem

NEW = Batch(
    id="batch-1",
    owner="k",
    endpoint="/v1/embeddings",
    window="24h",
    input="file-1",
    created=1,
    expires=2,
)
WRONG = Problem("invalid_url", "url is wrong", "url", 3)

STEPS: dict[str, Callable[[Batch, float], Batch]] = {
    "begin": lambda one, now: states.begin(one, 5, now),
    "reject": lambda one, now: states.reject(one, [WRONG], now),
    "cancel": states.cancel,
    "complete": lambda one, now: states.wind_up(one, "completed", now),
    "expire": lambda one, now: states.wind_up(one, "expired", now),
    "fail": lambda one, now: states.wind_up(one, "failed", now, [WRONG]),
    "finish": lambda one, now: states.finish(one, now, output="file-o", errors=None),
}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=12))
def test_any_steps_keep_to_the_walk(steps: list[str]) -> None:
    batch, walked = NEW, ["validating"]
    for now, step in enumerate(steps, start=10):
        before = batch
        try:
            batch = STEPS[step](batch, float(now))
        except ConflictError:
            assert batch is before
            continue
        if batch.status != before.status:
            assert batch.status in NEXT[before.status]
            assert batch.stamps[batch.status] == now
            walked.append(batch.status)
        assert not before.ended or batch == before
    assert ["validating", *batch.stamps] == walked
    assert list(batch.stamps.values()) == sorted(batch.stamps.values())
    assert batch.ended == (batch.status in ENDED)
    if batch.ended:
        assert batch.status == batch.ending
    told = states.info(batch, Counts(3, 1))
    assert (told.status, told.request_counts.completed, told.request_counts.failed) == (batch.status, 3, 1)
    assert [name for name in STATUSES if getattr(told, f"{name}_at", None)] == [
        name for name in STATUSES if name in batch.stamps
    ]


def test_every_status_can_be_reached_and_ends() -> None:
    reached, todo = {"validating"}, ["validating"]
    while todo:
        status = todo.pop()
        for following in NEXT[status]:  # type: ignore[index]
            if following not in reached:
                reached.add(following)
                todo.append(following)
    assert reached == set(STATUSES)
    assert {status for status in STATUSES if not NEXT[status]} == ENDED


def test_a_cancellation_outlasts_the_end_of_its_lines() -> None:
    batch = states.cancel(states.begin(NEW, 5, 10), 11)
    assert states.cancel(batch, 12) is batch
    assert states.wind_up(batch, "completed", 12) is batch
    done = states.finish(batch, 13, output=None, errors="file-e")
    assert (done.status, done.errors, done.stamps["cancelling"]) == ("cancelled", "file-e", 11)


@pytest.mark.parametrize("ending", ["completed", "expired", "failed"])
def test_what_is_about_to_end_cannot_be_cancelled(ending: states.Ending) -> None:
    batch = states.wind_up(states.begin(NEW, 5, 10), ending, 11, [WRONG] if ending == "failed" else [])
    with pytest.raises(ConflictError, match="is finalizing"):
        states.cancel(batch, 12)
    done = states.finish(batch, 12, output="file-o", errors=None)
    with pytest.raises(ConflictError, match=f"is {ending}"):
        states.cancel(done, 13)
    told = states.info(done, Counts())
    assert (told.errors is not None) == (ending == "failed")
    assert (told.output_file_id, told.error_file_id) == ("file-o", None)


def test_problems_are_told_with_their_lines() -> None:
    told = states.info(states.reject(NEW, [WRONG], 10), Counts())
    assert told.errors is not None
    assert told.errors.data[0].model_dump() == {
        "code": "invalid_url",
        "message": "url is wrong",
        "param": "url",
        "line": 3,
    }
