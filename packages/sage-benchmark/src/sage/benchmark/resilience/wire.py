"""A raw HTTP/1.1 client: bytes out, bytes in, and each way of going away."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

__all__ = ["Answer", "Wire", "ask", "request"]

CHAT: Final = "/v1/chat/completions"
EMBEDDINGS: Final = "/v1/embeddings"
_RESET: Final = struct.pack("ii", 1, 0)
_NOT_JSON: Final = "the answer is not JSON"


@dataclass(slots=True)
class Answer:
    """A whole answer; `pieces` of a stream are (monotonic seconds, bytes)."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    pieces: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def json(self) -> Any:
        """The body, read; ValueError if it is not JSON."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{_NOT_JSON}: {self.body[:200]!r}") from error

    @property
    def error(self) -> str:
        """The code of the error that it is, or of the error event that it ends with; empty = none."""
        if self.status == 200:
            at = self.body.rfind(b'data: {"error"')
            body = self.body[at + 6 :] if at >= 0 else b""
        else:
            body = self.body
        return str(msgspec.json.decode(body)["error"]["code"]) if body else ""


def request(
    port: int, key: str, path: str, body: bytes | None, headers: Mapping[str, str] | None = None
) -> bytes:
    """A request as it goes over the wire; without a body it is a GET."""
    method = "GET" if body is None else "POST"
    lines = [
        f"{method} {path} HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        f"authorization: Bearer {key}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class Wire:
    """One connection to a port of this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Wire:
        """Connect. Raises OSError."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        """Write at once what the system takes."""
        self.writer.write(data)

    async def head(self) -> Answer:
        """Status and headers. Raises IncompleteReadError if the other side closes before."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines[1:] if line)
        return Answer(int(lines[0].split(" ")[1]), {name.lower(): value.strip() for name, value in pairs})

    async def piece(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(self) -> Answer:
        """All of the next answer."""
        answer = await self.head()
        if answer.headers.get("transfer-encoding") != "chunked":
            length = answer.headers.get("content-length")
            answer.body = await (
                self.reader.read() if length is None else self.reader.readexactly(int(length))
            )
            answer.pieces = [(time.monotonic(), answer.body)]
            return answer
        while piece := await self.piece():
            answer.pieces.append((time.monotonic(), piece))
        answer.body = b"".join(piece for _, piece in answer.pieces)
        return answer

    def leave(self, *, reset: bool) -> float:
        """Go away, by a reset or as a program does that ends; when (monotonic seconds)."""
        sock: socket.socket | None = self.writer.get_extra_info("socket")
        if reset and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        at = time.monotonic()
        self.writer.transport.abort()
        return at


async def ask(
    port: int,
    key: str,
    path: str,
    body: bytes | None = None,
    *,
    method: str = "",
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Answer:
    """One request over a connection of its own. Without an answer: OSError, EOFError, TimeoutError."""
    wire = await Wire.open(port)
    try:
        raw = request(port, key, path, body, {"connection": "close", **(headers or {})})
        if method:
            raw = method.encode() + raw[raw.index(b" ") :]
        wire.send(raw)
        async with asyncio.timeout(timeout):
            return await wire.answer()
    finally:
        wire.leave(reset=False)
