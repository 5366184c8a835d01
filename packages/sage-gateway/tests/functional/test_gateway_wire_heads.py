"""Heads that follow each other on one connection: each is judged, and a known one is not parsed again."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any, cast

from sage.gateway.edge import Deadlines, Edge
from sage.gateway.requests import Settings
from sage.gateway.serve import LOOKED_AT, Listener
from sage.gateway.testing import key_record


async def test_each_head_of_a_connection_is_judged(front: Any) -> None:
    """A head that passed is remembered; one that differs in anything that counts is judged anew."""
    good = front.post(b'{"n": 1}')
    changes: list[tuple[dict[str, str | None], int]] = [
        ({}, 200),
        ({"authorization": f"Bearer {front.keys.default[:-1]}"}, 401),
        ({"authorization": None}, 401),
        ({"authorization": None, "x_api_key": front.keys.default}, 200),
        ({"host": "evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"content_type": "text/plain"}, 415),
        ({"content_encoding": "gzip"}, 415),
        ({"expect": "more"}, 417),
        ({"content_length": "999999"}, 413),
    ]
    for headers, status in changes:
        wire = await front.connect()
        for _ in range(2):
            await wire.send(good)
            assert (await wire.answer()).status == 200
        await wire.send(front.post(b'{"n": 1}', **headers))
        assert (await wire.answer()).status == status, headers


async def test_the_same_head_again_whole_in_halves_and_over_the_limit(front: Any) -> None:
    wire = await front.connect()
    ids = set()
    for body in (b'{"n": 1}', b'{"n": 2}', b'{"text": "longer than ten bytes"}'):
        await wire.send(front.post(body))
        answer = await wire.answer()
        assert (answer.status, answer.body) == (200, body)
        ids.add(answer.headers["x-request-id"])
    assert len(ids) == 3
    raw = front.post(b'{"n": 3}')
    await wire.send(raw[:-4])
    await asyncio.sleep(0)
    await wire.send(raw[-4:])
    assert (await wire.answer()).body == b'{"n": 3}'
    await wire.send(front.post(b'{"n": 4}') + front.request("GET", "/v1/models"))
    assert (await wire.answer()).body == b'{"n": 4}'
    assert (await wire.answer()).json["data"][0]["id"] == "org/tiny"
    await wire.send(front.post(b" " * (64 * 1024 + 1)))
    assert (await wire.answer()).status == 413
    assert await wire.closed()


async def test_a_known_head_is_answered_in_the_dialect_of_its_route(front: Any) -> None:
    """Errors of `/v1/messages` have Anthropic's form, and answers name the request, the first and later."""
    for path, kind in (("/v1/messages", "error"), ("/v1/chat/completions", None)):
        wire = await front.connect()
        for _ in range(3):
            await wire.send(front.post(b'{"do": "overloaded"}', path))
            answer = await wire.answer()
            assert answer.status == 429
            assert answer.json.get("type") == kind
            named = answer.headers["x-request-id"] if kind else None
            assert answer.headers.get("request-id") == named


async def test_an_admin_after_a_key_on_one_connection_is_an_admin(front: Any) -> None:
    wire = await front.connect()
    for key in (front.keys.default, front.keys.admin, front.keys.default):
        await wire.send(front.post(b'{"n": 1}', authorization=f"Bearer {key}"))
        assert (await wire.answer()).status == 200
    assert [request.admission.principal.admin for request in front.handler.requests] == [False, True, False]


async def test_a_head_that_is_known_is_judged_anew_when_keys_have_changed(front: Any) -> None:
    wire = await front.connect()
    for _ in range(2):
        await wire.send(front.post(b'{"n": 1}'))
        assert (await wire.answer()).status == 200
    record = key_record(front.ring, front.keys.default, scopes=frozenset({"models"}))
    front.ring.put(record, 0.0)
    await wire.send(front.post(b'{"n": 1}'))
    answer = await wire.answer()
    assert answer.status == 403
    assert "chat" in answer.error["message"]


async def test_each_connection_is_looked_at_within_a_few_beats(make_front: Any) -> None:
    front = await make_front(deadlines=Deadlines(head=0.2))
    wires = [await front.connect() for _ in range(60)]
    assert all([await wire.closed() for wire in wires])


async def test_others_go_on_while_the_time_of_many_connections_is_over() -> None:
    class Late:
        looked_at = 0

        def check(self, _now: float) -> bool:
            self.looked_at += 1
            return True

    class Crowded(Listener):
        @property
        def gates(self) -> list[Any]:
            return crowd

    crowd = [Late() for _ in range(1000)]
    listener = Crowded(None, Settings(cast(Edge, None)))
    beats = asyncio.create_task(beat_through(listener))
    seen = []
    while not beats.done():
        seen.append(sum(one.looked_at for one in crowd))
        await asyncio.sleep(0)
    assert {one.looked_at for one in crowd} == {1}
    assert max(b - a for a, b in pairwise(seen)) == 1


async def beat_through(listener: Listener) -> None:
    for _ in range(len(listener.gates) // LOOKED_AT + 1):
        await listener._beat()
