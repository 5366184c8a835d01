"""How often a line is asked for, and when; in virtual time."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import msgspec
import pytest

from sage.common.api import Decision
from sage.common.errors import (
    BadRequestError,
    EngineError,
    OverloadedError,
    QuarantinedError,
    SageError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
)
from sage.gateway.batch.batchstore import Result
from sage.gateway.batch.caller import CRASHES, FAULTS, LineCaller, undone
from sage.gateway.batch.lines import Line
from sage.gateway.keys import KeyRing, ident_of, new_admin_token, new_default_key
from sage.gateway.limits import BudgetError, RateError
from sage.gateway.reply import Answer
from sage.gateway.requests import HotRequest
from sage.gateway.testing import key_record
from sage.gateway.watch import AccessLog, Logged
from sage.middleware.engines.port import Route
from sage.middleware.testing.virtual import virtual

KEY = new_default_key()
OWNER = ident_of(KEY)
LINE = Line(3, "a name", b'{"model":"m"}', stream=False)


class Desk:
    """A handler that does in turn what it is told, and notes when it was asked."""

    def __init__(self, *answers: SageError | bytes | Exception, crashes: int = 0, **record: Any) -> None:
        self.answers = deque(answers)
        self.crashes = crashes
        self.requests: list[HotRequest] = []
        self.at: list[float] = []
        self.ring = KeyRing(pepper="p", admin_token=new_admin_token())
        self.record = key_record(self.ring, KEY, **record)
        self.ring.put(self.record, 1.0)
        self.closing = asyncio.Event()

    async def __call__(self, request: HotRequest, answer: Answer) -> None:
        self.requests.append(request)
        self.at.append(asyncio.get_running_loop().time())
        what = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        if isinstance(what, SageError):
            answer.fail(what)
        elif isinstance(what, Exception):
            raise what
        else:
            answer.head(200, "application/json")
            answer.data(what[:3])
            answer.data(what[3:])
            answer.end()

    def decision(self, ident: str) -> Decision:
        usual = dict.fromkeys(("request_class", "tenant", "model", "route", "policy", "reason"), "")
        return Decision(request_id=ident, at=0, engine=None, outcome="failed", crashes=self.crashes, **usual)

    async def ask(self, line: Line = LINE, route: Route = Route.CHAT) -> Result | None:
        caller = LineCaller(self, self.ring, dict.fromkeys(Route, 100), self.decision)
        return await caller.call(OWNER, route, line, self.closing)


def told(result: Result | None) -> tuple[int, Any]:
    assert result is not None
    assert result.line == 3
    assert result.text.count(b"\n") == 1
    line = msgspec.json.decode(result.text)
    assert (line["custom_id"], line["error"]) == ("a name", None)
    assert line["response"]["request_id"].startswith("req-")
    assert result.good == (line["response"]["status_code"] == 200)
    return line["response"]["status_code"], line["response"]["body"]


@pytest.mark.parametrize(
    ("route", "request_class"),
    [
        (Route.CHAT, b"batch"),
        (Route.COMPLETIONS, b"batch"),
        (Route.MESSAGES, b"batch"),
        (Route.RESPONSES, b"batch"),
        (Route.EMBEDDINGS, b"embed_bulk"),
    ],
)
@virtual
async def test_a_line_is_a_request_of_its_key_in_a_low_class(route: Route, request_class: bytes) -> None:
    desk = Desk(b'{"a":\n 1.50}')
    result = await desk.ask(route=route)
    assert told(result) == (200, {"a": 1.5})
    assert result is not None
    assert b"1.50" in result.text  # as the engine wrote it
    (request,) = desk.requests
    assert (request.body, request.admission.route) == (LINE.body, route)
    assert (request.admission.principal.id, request.headers) == (OWNER, {b"x-sage-class": request_class})


@virtual
async def test_each_try_of_a_line_is_an_event_of_the_access_log() -> None:
    events: list[dict[str, object]] = []

    class Kept(AccessLog):
        def write(self, status: int, **fields: object) -> None:
            events.append({"status": status, **fields})

    desk = Desk(EngineError("broke"), BadRequestError("no", param="n"))
    logged = Logged(desk, Kept(every=True), asyncio.get_running_loop().time)
    caller = LineCaller(logged, desk.ring, dict.fromkeys(Route, 100), desk.decision)
    assert told(await caller.call(OWNER, Route.CHAT, LINE, desk.closing))[0] == 400
    assert [one["status"] for one in events] == [502, 400]
    assert [one["reason"] for one in events] == ["engine_error", "invalid_request"]
    assert [one["request_id"] for one in events] == [one.id for one in desk.requests]
    assert {(one["key"], one["route"]) for one in events} == {(OWNER, "/v1/chat/completions")}


@virtual
async def test_load_is_waited_out_with_growing_pauses() -> None:
    desk = Desk(*[OverloadedError("full")] * 9, UnavailableError("none", retry_after=100.0), b"{}")
    assert told(await desk.ask()) == (200, {})
    gaps = [round(b - a, 3) for a, b in zip(desk.at, desk.at[1:], strict=False)]
    assert gaps == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 100.0]
    assert len({request.id for request in desk.requests}) == 11


@virtual
async def test_a_limit_is_waited_out_unless_waiting_is_in_vain() -> None:
    desk = Desk(RateError("rpm", limit="rpm", retry_after=20.0), b"{}")
    assert told(await desk.ask())[0] == 200
    assert desk.at[1] - desk.at[0] == pytest.approx(20.0)
    spent = Desk(BudgetError("nothing left", limit="total_tokens"))
    status, body = told(await spent.ask())
    assert (status, body["error"]["code"], len(spent.at)) == (429, "insufficient_quota", 1)


@pytest.mark.parametrize("error", [EngineError("broke"), TimedOutError("slow")])
@virtual
async def test_faults_of_engines_are_tried_a_few_times(error: SageError) -> None:
    desk = Desk(error)
    assert told(await desk.ask())[0] == error.status
    assert len(desk.at) == FAULTS
    again = Desk(error, b"{}")
    assert told(await again.ask())[0] == 200


@virtual
async def test_a_line_under_which_engines_crash_is_not_tried_again() -> None:
    desk = Desk(EngineError("crashed"), crashes=CRASHES)
    assert told(await desk.ask())[0] == 502
    assert len(desk.at) == 1
    twice = Desk(EngineError("crashed"), crashes=1)
    await twice.ask()
    assert len(twice.at) == 2
    final = Desk(QuarantinedError("two engines broke off"))
    assert told(await final.ask())[0] == 502
    assert len(final.at) == 1


@virtual
async def test_what_is_wrong_stays_wrong() -> None:
    desk = Desk(BadRequestError("no", param="n"))
    status, body = told(await desk.ask())
    assert (status, body["error"]["param"], len(desk.at)) == (400, "n", 1)
    boom = Desk(ValueError("a fault of ours"))
    assert told(await boom.ask())[0] == 500
    garbage = Desk(b"<html>")
    assert told(await garbage.ask())[0] == 502


@virtual
async def test_what_no_engine_needs_to_see() -> None:
    desk = Desk(b"{}")
    assert told(await desk.ask(Line(3, "a name", b"{}", stream=True)))[0] == 400
    assert told(await desk.ask(Line(3, "a name", b"x" * 101, stream=False)))[0] == 413
    assert told(await Desk(b"{}", scopes=frozenset(("batches",))).ask())[0] == 403
    assert desk.requests == []


@pytest.mark.parametrize(("change", "words"), [({"revoked": 2.0}, "revoked"), ({"expires": 0.5}, "expired")])
@virtual
async def test_a_key_that_opens_nothing_is_told(change: dict[str, float], words: str) -> None:
    desk = Desk(b"{}")
    desk.ring.put(msgspec.structs.replace(desk.record, **change), 3.0)
    with pytest.raises(UnauthorizedError, match=words):
        await desk.ask()
    assert desk.requests == []
    with pytest.raises(UnauthorizedError, match="gone"):
        await Desk(UnauthorizedError("gone")).ask()


@virtual
async def test_a_pause_ends_when_the_gateway_does() -> None:
    desk = Desk(OverloadedError("full", retry_after=1000.0))
    asking = asyncio.create_task(desk.ask())
    await asyncio.sleep(5.0)
    desk.closing.set()
    assert await asking is None
    assert asyncio.get_running_loop().time() - desk.at[0] < 10.0


def test_a_line_that_was_not_run_says_why() -> None:
    line = msgspec.json.decode(undone(LINE, "batch_expired", "too late"))
    assert line.pop("id").startswith("batch_req-")
    assert line == {
        "custom_id": "a name",
        "response": None,
        "error": {"code": "batch_expired", "message": "too late"},
    }
