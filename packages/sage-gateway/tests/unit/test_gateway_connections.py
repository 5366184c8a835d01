"""Connections are counted in and out, and none is forgotten."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import OverloadedError, UnavailableError
from sage.gateway.connections import Connections, Stall, tune

READ = 256_000  # bytes that uvloop reads at once


def test_the_last_of_all_that_are_let_in_is_named() -> None:
    door = Connections(most=2)
    assert [door.enter(address) for address in ("a", "b")] == [None, None]
    assert isinstance(door.enter("c"), UnavailableError)
    door.leave("c")
    door.leave("a")
    assert door.enter("c") is None


def test_one_address_does_not_crowd_out_another() -> None:
    door = Connections(per_address=2)
    assert [door.enter("a") for _ in range(2)] == [None, None]
    refusal = door.enter("a")
    assert isinstance(refusal, OverloadedError)
    assert (refusal.retry_after, "2 connections" in refusal.message) == (1.0, True)
    assert door.enter("b") is None


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5), st.integers(1, 3))
def test_whoever_was_counted_in_and_has_gone_leaves_nothing(
    visitors: list[str], most: int, per_address: int
) -> None:
    door = Connections(most, per_address)
    for address in visitors:
        door.enter(address)
    for address in visitors:
        door.leave(address)
    assert door.enter("a") is None
    door.leave("a")
    assert not door._open


def test_a_stall_is_counted_while_nothing_moves() -> None:
    stall = Stall()
    steps = [(1.0, 0), (2.0, 10), (4.0, 10), (5.0, 10), (6.0, 9), (9.0, 9), (10.0, 0), (11.0, 9)]
    assert [stall.seconds(now, unsent) for now, unsent in steps] == [0, 0, 2, 3, 0, 3, 0, 0]
    assert stall.begun
    stall.seconds(12.0, 0)
    assert not stall.begun


def test_of_a_stream_that_nobody_reads_little_is_held() -> None:
    """On the gateway's loop: with what one read has brought when it was told to stop, 256 KiB."""
    loops = pytest.importorskip("uvloop")

    class Answering(asyncio.Protocol):
        paused = False

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)
            tune(self.transport)
            made.set_result(self)

        def pause_writing(self) -> None:
            self.paused = True

    async def run() -> int:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Answering, "127.0.0.1", 0)
        _reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        cast(asyncio.ReadTransport, writer.transport).pause_reading()
        answering = await made
        while not answering.paused:
            answering.transport.write(b"x" * 1000)
            await asyncio.sleep(0)
        answering.transport.write(b"x" * READ)
        held = answering.transport.get_write_buffer_size()
        writer.transport.abort()
        answering.transport.abort()
        server.close()
        return held

    with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
        made: asyncio.Future[Answering] = runner.get_loop().create_future()
        assert READ < runner.run(run()) <= 256 * 1024
