"""A closed-loop client that costs little: keep-alive connections, each with one request under way."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop

__all__ = ["CHAT", "EMBEDDING", "SLOW_EMBEDDING", "STREAM", "Run", "hold", "load", "request_bytes"]

_MESSAGES: Final = [{"role": "user", "content": "Say something about gateways. " * 8}]
CHAT: Final = ("/v1/chat/completions", {"model": "tiny", "messages": _MESSAGES, "max_tokens": 100})
STREAM: Final = (CHAT[0], {**CHAT[1], "stream": True})
_HELD: Final = (CHAT[0], {**STREAM[1], "user": "hold"})
EMBEDDING: Final = ("/v1/embeddings", {"model": "vectors", "input": "one short text to be embedded: NUMBER"})
SLOW_EMBEDDING: Final = (EMBEDDING[0], {**EMBEDDING[1], "model": "slow-vectors"})
Kind = tuple[str, dict[str, Any]]


@dataclass
class Run:
    """What a load saw: seconds of each answer, and how long all of it took."""

    seconds: float = 0.0
    times: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """In seconds."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Client(asyncio.Protocol):
    """One connection; sends again as soon as it has been answered, until the end."""

    def __init__(self, request: bytes, until: float, most: int, run: Run, over: asyncio.Future[None]) -> None:
        self._request, self._until, self._left = request, until, most
        self._run, self._over = run, over
        self._buffer = b""
        self._length = -1  # of the body; -1 = the head is not complete, -2 = chunked
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._send()

    def _send(self) -> None:
        if self._left == 0 or (now := time.perf_counter()) >= self._until:
            self._over.set_result(None)
            return
        self._left -= 1
        self._buffer, self._length = b"", -1
        self._began = now
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._length == -2:  # of a stream only the end is looked for
            self._buffer = self._buffer[-8:] + data
        else:
            self._buffer += data
        if self._length == -1:
            head, blank, rest = self._buffer.partition(b"\r\n\r\n")
            if not blank:
                return
            lower = head.lower()
            if not lower.startswith(b"http/1.1 200"):
                self._over.set_exception(RuntimeError(self._buffer[:300].decode("latin-1")))
                return
            self._buffer = rest
            at = lower.find(b"content-length:")
            self._length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -2
        if self._buffer.endswith(b"0\r\n\r\n") if self._length == -2 else len(self._buffer) >= self._length:
            self._run.times.append(time.perf_counter() - self._began)
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.done():
            self._over.set_exception(RuntimeError(f"the connection was lost: {exc}"))


def request_bytes(port: int, key: str, kind: Kind, number: int = 0) -> bytes:
    """One request as it goes over the wire; texts to be embedded differ by `number`."""
    body = json.dumps(kind[1]).replace("NUMBER", f"{number:04}").encode()
    lines = (
        f"POST {kind[0]} HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        f"authorization: Bearer {key}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def _drive(port: int, key: str, kind: Kind, seconds: float, connections: int, most: int) -> Run:
    loop, run = asyncio.get_running_loop(), Run()
    began = time.perf_counter()
    ends: list[asyncio.Future[None]] = []
    transports = []
    for number in range(connections):
        over: asyncio.Future[None] = loop.create_future()
        ends.append(over)
        client = _Client(request_bytes(port, key, kind, number), began + seconds, most, run, over)
        transport, _ = await loop.create_connection(lambda one=client: one, "127.0.0.1", port)  # type: ignore[misc]
        transports.append(transport)
    try:
        await asyncio.gather(*ends)
    finally:
        run.seconds = time.perf_counter() - began
        for transport in transports:
            transport.abort()
    return run


def load(port: int, key: str, kind: Kind, *, seconds: float, connections: int, most: int = -1) -> Run:
    """Ask again and again over so many connections, for so long, at most `most` times on each.

    Raises RuntimeError for an answer that is not 200.
    """
    return uvloop.run(_drive(port, key, kind, seconds, connections, most))


@contextmanager
def hold(port: int, key: str, connections: int) -> Iterator[None]:
    """Streams that have all begun, and stay open without being read while the caller looks."""

    async def opened() -> list[asyncio.StreamWriter]:
        writers = []
        for _ in range(connections):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request_bytes(port, key, _HELD))
            await reader.readuntil(b"data: ")
            writers.append(writer)
        return writers

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        writers = runner.run(opened())
        try:
            yield
        finally:
            for writer in writers:
                writer.transport.abort()
