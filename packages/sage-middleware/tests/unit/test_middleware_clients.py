"""Closed loops inferred from a recording: who asks again when it was answered, and who just comes."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.telemetry import RequestClass
from sage.middleware.control_plane.simulator.clients import Loop, clients
from sage.middleware.control_plane.simulator.recorded import SeenRequest
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Capability


def seen(ident: str, arrived: float, ended: float | None, *, tenant: str = "t") -> SeenRequest:
    needs = frozenset((Capability.EMBEDDINGS,))
    job = Job(ident, "m", RequestClass.EMBED_BULK, tenant, needs, 9, 9, None, texts=64)
    return SeenRequest(job, arrived, None, ended=ended)


def storm(workers: int, calls: int, *, pause: float = 0.005, seed: int = 0) -> list[SeenRequest]:
    """Clients back to back; a call takes 0.5 to 1.5 s."""
    rng = Random(seed)  # noqa: S311
    found = []
    for worker in range(workers):
        at = worker * 0.001
        for call in range(calls):
            end = at + rng.uniform(0.5, 1.5)
            found.append(seen(f"{worker}.{call}", at, end))
            at = end + pause
    return found


def ids(loops: list[Loop]) -> list[str]:
    return sorted(one.job.id for loop in loops for one in loop.requests)


@given(st.integers(1, 5), st.integers(4, 20), st.integers(0, 1000))
def test_every_request_of_a_storm_belongs_to_one_client(workers: int, calls: int, seed: int) -> None:
    made = storm(workers, calls, seed=seed)
    if len(made) < 8:
        return
    loops = clients(made)
    assert ids(loops) == sorted(one.job.id for one in made)
    assert len(loops) == workers, "however ends lie, as many clients as there were wait at any time"


def test_a_client_waits_for_its_answer_and_goes_on_until_its_last() -> None:
    (loop,) = clients(storm(1, 10, pause=0.02))
    assert loop.pauses == pytest.approx([0.02] * 10)
    assert all(later.arrived > (before.ended or 0) for before, later in pairwise(loop.requests))
    assert loop.until == loop.requests[-1].ended


def test_what_comes_by_itself_is_no_client() -> None:
    rng = Random(1)  # noqa: S311
    at, made = 0.0, []
    for number in range(400):
        at += rng.expovariate(20.0)
        made.append(seen(str(number), at, at + rng.uniform(0.01, 0.2)))
    assert clients(made) == []


def test_streams_are_told_apart_by_tenant() -> None:
    rng = Random(2)  # noqa: S311
    crowd = [seen(f"p{number}", number * 0.3 + rng.uniform(0, 0.2), None, tenant="u") for number in range(60)]
    assert ids(clients([*storm(2, 10), *crowd])) == sorted(one.job.id for one in storm(2, 10))


def test_few_requests_show_nothing() -> None:
    assert clients(storm(1, 7)) == []
    assert len(clients(storm(1, 8))) == 1


def test_a_pause_is_not_shared_by_two() -> None:
    """One answer, two requests after it: the second is a client of its own."""
    made = [*storm(1, 12), seen("other", 100.0, None)]
    last = made[5]
    made.append(seen("late", (last.ended or 0) + 0.006, None))
    loops = clients(made)
    assert [one.job.id for loop in loops for one in loop.requests if len(loop.requests) == 1] == [
        "late",
        "other",
    ]


def test_one_that_was_never_answered_asked_until_then() -> None:
    made = storm(1, 9)
    made[-1].ended = None
    (loop,) = clients(made)
    assert loop.until == made[-1].arrived
