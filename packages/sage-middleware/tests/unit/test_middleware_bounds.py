"""Each bound of a request has a name, and what meets it is counted by that name."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sage.common.errors import BadRequestError, EngineError, OverloadedError, SageError
from sage.common.telemetry import Bound
from sage.middleware.control_plane.accounting import Books
from sage.middleware.control_plane.asides import MOST
from sage.middleware.control_plane.bodies import MAX_N, MAX_TOOLS, MAX_TOP_LOGPROBS
from sage.middleware.control_plane.classify import ParseLimits, parse
from sage.middleware.control_plane.json_guard import MAX_CONTAINERS, MAX_DEPTH, MAX_KEYS, MAX_STRINGS
from sage.middleware.control_plane.options import CoreOptions, Limits
from sage.middleware.control_plane.token_bodies import MAX_MESSAGES
from sage.middleware.engines.port import Route
from sage.middleware.engines.sse import MAX_EVENT_BYTES, Splitter
from sage.middleware.testing.bench import Bench, chat
from sage.middleware.testing.core import CoreBench
from sage.middleware.testing.memory import Behaviour
from sage.middleware.testing.policies import chat_job, chat_spec
from sage.middleware.testing.virtual import virtual

SAYS = {"role": "user", "content": "x"}
LIMITS = ParseLimits()


def nested(levels: int) -> Any:
    inner: Any = 1
    for _ in range(levels):
        inner = [inner]
    return inner


def over(route: Route, **fields: Any) -> Bound | None:
    """The bound that a body meets; None if it meets none."""
    try:
        parse(route, msgspec.json.encode({"model": "m", **fields}), limits=LIMITS, tenant="t", headers={})
    except BadRequestError as error:
        return error.bound
    return None


CHATS: list[tuple[Bound, dict[str, Any], dict[str, Any]]] = [
    (Bound.MESSAGES, {"messages": [SAYS] * MAX_MESSAGES}, {"messages": [SAYS] * (MAX_MESSAGES + 1)}),
    (Bound.TOOLS, {"tools": [{}] * MAX_TOOLS}, {"tools": [{}] * (MAX_TOOLS + 1)}),
    (Bound.N, {"n": MAX_N}, {"n": MAX_N + 1}),
    (Bound.TOP_LOGPROBS, {"top_logprobs": MAX_TOP_LOGPROBS}, {"top_logprobs": MAX_TOP_LOGPROBS + 1}),
    (Bound.JSON_DEPTH, {"x": nested(MAX_DEPTH - 1)}, {"x": nested(MAX_DEPTH)}),
    (
        Bound.JSON_KEYS,
        {"x": dict.fromkeys(map(str, range(MAX_KEYS - 5)), 1)},
        {"x": dict.fromkeys(map(str, range(MAX_KEYS - 4)), 1)},
    ),
    (Bound.JSON_CONTAINERS, {"x": [[]] * (MAX_CONTAINERS - 4)}, {"x": [[]] * (MAX_CONTAINERS - 3)}),
    (Bound.JSON_STRINGS, {"x": [""] * (MAX_STRINGS - 9)}, {"x": [""] * (MAX_STRINGS - 8)}),
]


@pytest.mark.parametrize(("bound", "most", "more"), CHATS, ids=[str(row[0]) for row in CHATS])
def test_the_most_of_a_chat_passes_and_one_more_meets_its_bound(
    bound: Bound, most: dict[str, Any], more: dict[str, Any]
) -> None:
    assert over(Route.CHAT, **{"messages": [SAYS], **most}) is None
    assert over(Route.CHAT, **{"messages": [SAYS], **more}) is bound


@pytest.mark.parametrize(
    ("route", "turns"),
    [(Route.MESSAGES, "messages"), (Route.COUNT_TOKENS, "messages"), (Route.RESPONSES, "input")],
)
def test_too_many_turns_in_another_dialect(route: Route, turns: str) -> None:
    fields = {} if route is Route.RESPONSES else {"max_tokens": 1}
    assert over(route, **fields, **{turns: [SAYS] * MAX_MESSAGES}) is None
    assert over(route, **fields, **{turns: [SAYS] * (MAX_MESSAGES + 1)}) is Bound.MESSAGES


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (Route.EMBEDDINGS, {"input": ["x"] * 2049}),
        (Route.COMPLETIONS, {"prompt": ["x"] * 2049}),
        (Route.RERANK, {"query": "q", "documents": ["x"] * 2049}),
        (Route.SCORE, {"text_1": "q", "text_2": ["x"] * 2049}),
    ],
)
def test_too_many_inputs(route: Route, fields: dict[str, Any]) -> None:
    assert over(route, **fields) is Bound.INPUTS


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (Route.EMBEDDINGS, {"input": "x" * 4 * 300_001}),
        (Route.COMPLETIONS, {"prompt": [1] * 300_001}),
        (Route.DETOKENIZE, {"tokens": [1] * 300_001}),
    ],
)
def test_too_many_tokens(route: Route, fields: dict[str, Any]) -> None:
    assert over(route, **fields) is Bound.INPUT_TOKENS


def test_what_is_too_small_or_of_a_wrong_kind_meets_no_bound() -> None:
    wrong: list[dict[str, Any]] = [
        {"messages": []},
        {"messages": [SAYS], "n": 0},
        {"messages": "x"},
        {"messages": [{}]},
    ]
    for fields in wrong:
        with pytest.raises(BadRequestError) as raised:
            parse(
                Route.CHAT,
                msgspec.json.encode({"model": "m", **fields}),
                limits=LIMITS,
                tenant="t",
                headers={},
            )
        assert raised.value.bound is None


def test_an_event_that_is_too_long() -> None:
    splitter = Splitter()
    assert splitter.feed(b"x" * MAX_EVENT_BYTES) == []
    with pytest.raises(EngineError) as raised:
        splitter.feed(b"x")
    assert raised.value.bound is Bound.EVENT_BYTES


# ---- the control plane -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "limits"),
    [(Bound.QUEUE_REQUESTS, {"queue_max_requests": 1}), (Bound.QUEUE_BYTES, {"queue_max_bytes": 79})],
)
def test_a_full_queue_is_counted_by_what_it_is_full_of(bound: Bound, limits: dict[str, int]) -> None:
    options = CoreOptions(Limits(**limits))
    one = CoreBench("fifo", chat_spec("e0", max_running=1), options=options)
    for name in ("runs", "waits"):
        one.arrive(chat_job(name))
    assert not one.core.books.bounds
    one.arrive(chat_job("refused"))
    assert one.core.books.bounds == {bound: 1}


def test_waiting_too_long_and_past_a_deadline() -> None:
    one = CoreBench("fifo", chat_spec("e0", max_running=1), queue_max_wait_s=30.0)
    one.arrive(chat_job("runs"))
    one.arrive(chat_job("old"))
    one.arrive(chat_job("late"), within=5.0)
    one.wait(40.0)
    assert one.core.books.bounds == {Bound.QUEUE_TIME: 1, Bound.DEADLINE: 1}


def test_an_answer_longer_than_the_model_has_room_for() -> None:
    small = msgspec.structs.replace(chat_spec("small"), context=512)
    one = CoreBench("fifo", small)
    job = msgspec.structs.replace(chat_job("a"), max_tokens=512)
    one.core.check(job)
    for _ in range(2):  # the second time it is known already
        with pytest.raises(BadRequestError, match=r"max_tokens is 513; .* has room for 512 tokens") as raised:
            one.core.check(msgspec.structs.replace(job, max_tokens=513))
    assert (raised.value.param, raised.value.status) == ("max_tokens", 400)
    assert one.core.books.bounds == {Bound.MAX_TOKENS: 2}


def test_an_engine_that_does_not_say_what_room_it_has_judges_for_itself() -> None:
    small = msgspec.structs.replace(chat_spec("small"), context=512)
    one = CoreBench("fifo", small, chat_spec("other"))
    one.core.check(msgspec.structs.replace(chat_job("a"), max_tokens=100_000))


@virtual
async def test_each_attempt_that_meets_a_bound_of_an_engine_is_counted() -> None:
    async with Bench(engines=2) as bench:
        slow = EngineError("The engine sent nothing.", bound=Bound.FIRST_BYTE_TIME)
        for engine in bench.engines:
            engine.next_behaviours.append(Behaviour(fault=slow))
        with pytest.raises(EngineError):
            await bench.start(chat("a"))
        assert bench.plane.core.books.bounds == {Bound.FIRST_BYTE_TIME: 2}


@virtual
async def test_an_answer_that_is_not_complete_at_its_deadline() -> None:
    async with Bench() as bench:
        bench.hold()
        with pytest.raises(SageError, match="within its deadline"):
            await bench.start(chat("a"), deadline=1.0)
        assert bench.plane.core.books.bounds == {Bound.DEADLINE: 1}


@virtual
async def test_too_many_calls_about_tokens() -> None:
    async with Bench() as bench:
        bench.hold()
        body = msgspec.json.encode({"model": "memory", "prompt": "x"})

        def ask(number: int) -> asyncio.Task[Any]:
            headers = {"x-request-id": f"r{number}"}
            parsed = parse(Route.TOKENIZE, body, limits=LIMITS, tenant="t", headers=headers)
            return bench.start(parsed)

        tasks = [ask(number) for number in range(MOST)]
        await bench.settled()
        with pytest.raises(OverloadedError):
            await ask(MOST)
        assert bench.plane.core.books.bounds == {Bound.TOKEN_CALLS: 1}
        bench.gate.set()
        await asyncio.gather(*tasks)


def test_errors_without_a_bound_are_not_counted() -> None:
    books = Books()
    books.met(EngineError("it broke"))
    assert not books.bounds


# ---- what is open ------------------------------------------------------------------------------------------


@virtual
async def test_streams_that_have_begun_are_open_until_they_end() -> None:
    async with Bench(slots=4) as bench:
        bench.hold(after=1)
        tasks = [bench.start(chat("a")), bench.start(chat("b")), bench.start(chat("c", stream=False))]
        await bench.engines[0].until_running(3)
        await bench.settled()
        assert bench.plane.core.streams == 2
        bench.gate.set()
        await asyncio.gather(*tasks)
        assert bench.plane.core.streams == 0
        assert bench.plane.core.books.tokens["memory"][1] > 0
