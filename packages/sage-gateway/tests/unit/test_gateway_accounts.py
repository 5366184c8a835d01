"""What a request is charged and counted as, however it ends."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from sage.common.errors import BadRequestError, EngineError, ForbiddenError, SageError, UnauthorizedError
from sage.common.telemetry import RequestClass
from sage.common.testing import VirtualClock
from sage.gateway.accounts import SHOWN, Accounts, Visit
from sage.gateway.keys import Principal
from sage.gateway.limits import DAY_S, LimitError, Limits, Spent
from sage.gateway.usage import Meter, Tally, UsageKey, UsageStore
from sage.middleware.control_plane.types import Job
from sage.middleware.engines.port import Route, Usage

JOB = Job("r", "m", RequestClass.CHAT, "t", frozenset(), 100, 10, 5, stream=True)
WHO = Principal("k")


class Books:
    """Accounts of a key `k` over a store that keeps what is flushed."""

    def __init__(self, limits: Limits | None = None, spent: Spent | None = None) -> None:
        self.kept: dict[UsageKey, Tally] = {}
        self.clock = VirtualClock(wall=100 * DAY_S + 5.0)
        self.meter = Meter(cast(UsageStore, self))
        self.accounts = Accounts(self.clock, self.meter, lambda model: model == "m")
        self.accounts.put("k", limits or Limits(), spent)

    async def add(self, tallies: dict[UsageKey, Tally]) -> None:
        for key, tally in tallies.items():
            self.kept.setdefault(key, Tally()).add(tally)

    def open(self, route: Route = Route.CHAT) -> Visit:
        return self.accounts.open(WHO, route, None)

    def serve(self, job: Job = JOB, usage: Usage | None = None, chunks: int = 0) -> None:
        visit = self.open()
        visit.admit(job)
        if usage is not None:
            visit.use(usage)
        visit.close(chunks)

    @property
    def left(self) -> int:
        return int(dict(self.accounts.headers("k"))["x-ratelimit-remaining-tokens"])

    def rows(self) -> dict[UsageKey, Tally]:
        asyncio.run(self.meter.flush())
        return self.kept


@pytest.mark.parametrize(
    ("fields", "usage", "chunks", "counted"),
    [
        ({}, Usage(12, 3), 7, (12, 3)),  # the engine's word counts
        ({}, None, 7, (10, 7)),  # a stream that was cut: what was sent
        ({}, None, 0, (10, 0)),
        ({}, Usage(), 4, (10, 4)),  # an engine that counts nothing
        ({"stream": False}, None, 0, (10, 5)),  # a whole answer that nobody waited for
    ],
)
def test_tokens_of_a_request(fields: Any, usage: Usage | None, chunks: int, counted: tuple[int, int]) -> None:
    books = Books(Limits(tpm=1000))
    books.serve(msgspec.structs.replace(JOB, **fields), usage, chunks)
    assert books.left == 1000 - sum(counted)
    assert books.rows() == {UsageKey("k", "m", "chat", 100): Tally(1, *counted, 0, 0, books.clock.wall())}


@pytest.mark.parametrize(("usage", "counted"), [(None, (10, 0)), (Usage(12, 3), (12, 3))])
def test_sound_is_charged_by_what_came_in_unless_the_engine_counts(
    usage: Usage | None, counted: tuple[int, int]
) -> None:
    books = Books(Limits(tpm=1000))
    books.serve(usage=Usage(10, 500))  # a key whose answers are long
    before = books.left
    visit = books.open(Route.SPEECH)
    visit.admit(msgspec.structs.replace(JOB, request_class=RequestClass.COMPLETION, max_tokens=None))
    assert books.left == before - 10
    if usage is not None:
        visit.use(usage)
    visit.close(7)  # pieces of sound are no tokens
    assert books.left == before - sum(counted)
    tally = books.rows()[UsageKey("k", "m", "completion", 100)]
    assert (tally.prompt_tokens, tally.completion_tokens) == counted


@pytest.mark.parametrize(
    ("error", "errors", "refusals"),
    [
        (BadRequestError("bad"), 1, 0),
        (EngineError("broke"), 1, 0),
        (ForbiddenError("not yours"), 0, 1),
        (LimitError("too much", limit="rpm"), 0, 1),
    ],
)
def test_what_failed_before_it_began_is_counted_and_costs_nothing(
    error: SageError, errors: int, refusals: int
) -> None:
    books = Books(Limits(tpm=1000))
    visit = books.open()
    visit.admit(JOB)
    visit.fail(error)
    visit.close(0)
    assert books.left == 1000
    (tally,) = books.rows().values()
    assert (tally.requests, tally.errors, tally.refusals) == (1, errors, refusals)
    assert (tally.prompt_tokens, tally.completion_tokens) == (0, 0)


def test_a_refused_request_is_counted_and_charged_nothing() -> None:
    books = Books(Limits(tpm=20))
    visit = books.open()
    with pytest.raises(LimitError) as caught:
        visit.admit(msgspec.structs.replace(JOB, max_tokens=11))
    visit.fail(caught.value)
    visit.close(0)
    assert books.left == 20
    books.serve(usage=Usage(10, 5))
    assert [tuple(sample[1:]) for sample in books.accounts.samples()] == [
        (0, {"key": "k"}),
        (1, {"key": "k", "limit": "tpm"}),
    ]
    assert [tally.refusals for tally in books.rows().values()] == [1]


def test_names_that_no_model_has_are_counted_as_one() -> None:
    books = Books()
    for name in ("a", "b", "m"):
        visit = books.open()
        visit.admit(msgspec.structs.replace(JOB, model=name))
        visit.fail(BadRequestError("bad"))
        visit.close(0)
    visit = books.open(Route.EMBEDDINGS)
    visit.fail(BadRequestError("no JSON"))
    visit.close(0)
    counts = {(row.model, row.request_class): tally.requests for row, tally in books.rows().items()}
    assert counts == {("", "chat"): 2, ("m", "chat"): 1, ("", "embed_interactive"): 1}


def test_without_max_tokens_the_mean_answer_is_charged_ahead() -> None:
    books = Books(Limits(tpm=1000))
    endless = msgspec.structs.replace(JOB, max_tokens=None)
    for _ in range(60):
        books.clock.advance(60.0)
        books.serve(endless, Usage(10, 200))
    books.clock.advance(60.0)
    books.open().admit(endless)
    assert books.left == pytest.approx(1000 - 210, abs=3)


def test_a_mean_answer_makes_no_request_too_large() -> None:
    books = Books(Limits(tpm=100))
    endless = msgspec.structs.replace(JOB, max_tokens=None)
    for _ in range(60):
        books.clock.advance(600.0)
        books.serve(endless, Usage(10, 500))
    books.clock.advance(600.0)
    books.open().admit(endless)
    assert books.left == 0


def test_days_are_told_apart() -> None:
    books = Books()
    books.serve(usage=Usage(1, 1))
    books.clock.advance(DAY_S - 6.0)
    books.serve(usage=Usage(1, 1))
    books.clock.advance(1.0)
    books.serve(usage=Usage(1, 1))
    assert {row.day: tally.requests for row, tally in books.rows().items()} == {100: 2, 101: 1}


def test_what_was_spent_before_counts() -> None:
    books = Books(Limits(total_tokens=100), Spent(100, 0, 90))
    with pytest.raises(LimitError, match="10 of its 100"):
        books.open().admit(JOB)


def test_limits_come_and_go_while_requests_run() -> None:
    books = Books()
    before = books.open()
    before.admit(JOB)
    books.accounts.put("k", Limits(concurrent=1), Spent())
    during = books.open()
    during.admit(JOB)
    with pytest.raises(LimitError, match="1 requests under way"):
        books.open().admit(JOB)
    before.close(0)  # it was let in without a limit, and is in no one's way
    with pytest.raises(LimitError):
        books.open().admit(JOB)
    books.accounts.put("k", Limits())
    books.open().admit(JOB)
    during.close(0)
    assert books.accounts.headers("k") == []


async def test_the_end_of_a_key_is_that_of_its_requests_alone() -> None:
    books = Books()
    books.accounts.put("other")
    never = asyncio.Event()
    tasks = [asyncio.create_task(never.wait()) for _ in range(3)]
    visits = [
        books.accounts.open(Principal(name), Route.CHAT, cast(Any, task))
        for name, task in zip(("k", "k", "other"), tasks, strict=True)
    ]
    books.accounts.drop("k")
    await asyncio.wait(tasks[:2])
    assert [task.cancelled() for task in tasks] == [True, True, False]
    assert [isinstance(visit.why, UnauthorizedError) for visit in visits] == [True, True, False]
    with pytest.raises(UnauthorizedError, match="revoked"):
        books.open()
    tasks[2].cancel()


def test_of_many_keys_only_some_have_series_of_their_own() -> None:
    accounts = Books().accounts
    for number in range(SHOWN + 10):
        accounts.put(f"k{number}")
    assert [labels for _, _, labels in accounts.samples() if labels["key"] != "k"] == []
    for number in range(SHOWN + 10):
        accounts.open(Principal(f"k{number}"), Route.CHAT, None)
    found = {labels["key"]: value for _, value, labels in accounts.samples()}
    assert len(found) == SHOWN + 1
    assert found["other"] == 10
