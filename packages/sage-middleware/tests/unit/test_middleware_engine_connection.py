"""An answer is taken with or without the parser, awaited or told, and nobody can tell which."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import EngineError
from sage.middleware.engines.connection import Connection, HttpLimits
from sage.middleware.engines.heads import Head

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
LIMITS = HttpLimits(body_bytes=64)


class Pool:
    """The home of one connection; with `forgetful` it keeps no head."""

    limits = LIMITS

    def __init__(self, *, forgetful: bool) -> None:
        self._seen: tuple[Head, str] | None = None
        self._forgetful = forgetful

    @property
    def seen(self) -> tuple[Head, str] | None:
        return None if self._forgetful else self._seen

    @seen.setter
    def seen(self, value: tuple[Head, str] | None) -> None:
        self._seen = value

    def watch(self) -> None:
        """Nothing is late here."""

    def forget(self, connection: Connection) -> None:
        """It is thrown away."""


class Transport:
    """A socket that is written to by nobody. What an answer does to it is kept."""

    def __init__(self) -> None:
        self.aborted = False

    def write(self, data: bytes) -> None:
        """To nobody."""

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Heard:
    """What the receiver was told."""

    full = False

    def __init__(self, picky: bytes = b"") -> None:
        self.events: list[tuple[Any, ...]] = []
        self._picky = picky

    def head(self, status: int, content_type: str) -> None:
        self.events.append(("head", status, content_type))

    def data(self, chunk: bytes) -> None:
        if self._picky and self._picky in chunk:
            raise EngineError("not this")
        self.events.append(("data", chunk))

    async def drain(self) -> None:
        """It is never full."""


def whole(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Events with the body in one piece: the parser may cut it where the socket did."""
    joined = b"".join(event[1] for event in events if event[0] == "data")
    return [event for event in events if event[0] == "head"] + [("data", joined)]


async def exchange(connection: Connection, transport: Transport, parts: list[bytes]) -> tuple[Any, ...]:
    """One request, answered by these pieces; then the engine closes, unless the answer is whole."""
    heard = Heard(picky=b"!")
    task = asyncio.create_task(connection.exchange(b"GET", heard))
    await asyncio.sleep(0)
    for part in parts:
        if not transport.aborted:
            connection.data_received(part)
    if not task.done() and not connection._complete:
        connection.connection_lost(None)
    try:
        await task
    except EngineError as error:
        return (*whole(heard.events), str(error), transport.aborted)
    return (*whole(heard.events), "", transport.aborted)


async def start(connection: Connection, transport: Transport, parts: list[bytes]) -> tuple[Any, ...]:
    """As `exchange`, without a task."""
    heard, ends = Heard(picky=b"!"), list[Exception | None]()
    connection.start(b"GET", heard, ends.append)
    for part in parts:
        if not transport.aborted:
            connection.data_received(part)
    if not ends:
        connection.connection_lost(None)
    await asyncio.sleep(0)
    (error,) = ends
    assert error is None or isinstance(error, EngineError)
    assert not connection.busy
    return (*whole(heard.events), str(error or ""), transport.aborted)


async def conversation(
    answers: list[list[bytes]], *, forgetful: bool, ask: Any = exchange
) -> list[tuple[Any, ...]]:
    """All answers over one connection, until one of them ends it."""
    pool, transport = Pool(forgetful=forgetful), Transport()
    connection = Connection(pool)
    connection.connection_made(cast(asyncio.Transport, transport))
    told = []
    for parts in answers:
        told.append(await ask(connection, transport, parts))
        if transport.aborted or not connection.usable:
            break
    return told


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(at)]


BODIES = st.sampled_from((b"{}", b'{"a":1}', b"", b"!", b"x" * 64, b"x" * 65))
HEADS = st.sampled_from(
    (
        HEAD,
        HEAD.replace(b"application/json", b"text/plain"),
        HEAD.replace(b"200 OK", b"500 Error"),
        HEAD.replace(b"content-length", b"connection: close\r\ncontent-length"),
        HEAD.replace(b"content-length", b"transfer-encoding: chunked\r\ncontent-length"),
        HEAD.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\n"),
        HEAD.replace(b"%d", b"+%d"),
        HEAD.replace(b"%d", b"0%d"),
        HEAD.replace(b"%d", b"1%d"),
        b"HTTP/1.1 102 Processing\r\n\r\n" + HEAD,
        b"HTTP/1.1 102 Processing\r\n\r\nHTT" + HEAD,
        b"\r\n" + HEAD,
        b"HTT" + HEAD,
    )
)
AFTER = st.sampled_from((b"", b"", b"", b"\r\n", b"H", b"HTTP/1.1 200 OK\r\n\r\n", b"x"))


@st.composite
def answers(draw: st.DrawFn) -> list[list[bytes]]:
    """A usual answer, so that its head is known, then any."""
    told = [[HEAD % 2 + b"{}"]]
    for _ in range(draw(st.integers(1, 4))):
        body = draw(BODIES)
        data = draw(HEADS) % len(body) + body + draw(AFTER)
        told.append(cut(data, draw(st.lists(st.integers(0, 200), max_size=2))))
    return told


@given(answers())
def test_with_or_without_the_parser_the_same_is_told(told: list[list[bytes]]) -> None:
    quick = asyncio.run(conversation(told, forgetful=False))
    assert quick == asyncio.run(conversation(told, forgetful=True))
    for forgetful in (False, True):
        assert quick == asyncio.run(conversation(told, forgetful=forgetful, ask=start))


async def test_the_end_of_an_answer_may_begin_the_next_request() -> None:
    transport = Transport()
    connection = Connection(Pool(forgetful=False))
    connection.connection_made(cast(asyncio.Transport, transport))
    heard, ends = Heard(), list[Exception | None]()

    def over(error: Exception | None) -> None:
        ends.append(error)
        if len(ends) < 3:
            connection.start(b"GET", heard, over)

    connection.start(b"GET", heard, over)
    for size in (2, 2, 7):  # by the parser, then by its head
        connection.data_received(HEAD % size + b'{"a":1}'[:size])
    assert ends == [None, None, None]
    assert [event[1] for event in heard.events if event[0] == "data"] == [b'{"', b'{"', b'{"a":1}']
    assert connection.usable
    assert not connection.busy


async def test_what_was_dropped_is_told_nothing() -> None:
    transport = Transport()
    connection = Connection(Pool(forgetful=False))
    connection.connection_made(cast(asyncio.Transport, transport))
    connection.start(b"GET", Heard(), lambda _: pytest.fail("it was told"))
    connection.drop()
    assert transport.aborted
    connection.connection_lost(None)
    assert not connection.busy


async def test_the_parser_is_left_out_for_a_head_that_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, transport = Pool(forgetful=False), Transport()
    connection = Connection(pool)
    connection.connection_made(cast(asyncio.Transport, transport))
    await exchange(connection, transport, [HEAD % 2 + b"{}"])
    monkeypatch.setattr(connection, "_parser", None)
    head, data, error, aborted = await exchange(connection, transport, [HEAD % 7 + b'{"a":1}'])
    assert (head, data) == (("head", 200, "application/json"), ("data", b'{"a":1}'))
    assert (error, aborted) == ("", False)


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\n\r\n", b"H", HEAD % 2 + b"{}"])
async def test_a_connection_that_says_more_than_its_answer_is_not_used_again(more: bytes) -> None:
    transport = Transport()
    connection = Connection(Pool(forgetful=False))
    connection.connection_made(cast(asyncio.Transport, transport))
    told = await exchange(connection, transport, [HEAD % 2 + b"{}" + more])
    assert told == (("head", 200, "application/json"), ("data", b"{}"), "", True)
