"""A raw HTTP/1.1 client: it sends any bytes, and reads answers as they come."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

__all__ = ["Answer", "Wire"]


@dataclass
class Answer:
    """One answer; `chunks` are those of its framing, if it has one."""

    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes] = field(default_factory=list)

    @property
    def json(self) -> Any:
        """The body."""
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object in the body."""
        found: dict[str, Any] = self.json["error"]
        return found


@dataclass
class Wire:
    """One raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Write and flush."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers, with lower-case names."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def chunk(self) -> bytes:
        """The next chunk; empty for the last."""
        size = int((await self.reader.readline()).strip(), 16)
        data = await self.reader.readexactly(size)
        assert await self.reader.readexactly(2) == b"\r\n"
        return data

    async def answer(self) -> Answer:
        """A whole answer. Raises TimeoutError after a minute."""
        async with asyncio.timeout(60):
            status, headers = await self.head()
            if "content-length" in headers:
                return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])))
            if headers.get("transfer-encoding") != "chunked":
                return Answer(status, headers, await self.reader.read())
            chunks: list[bytes] = []
            while piece := await self.chunk():
                chunks.append(piece)
            return Answer(status, headers, b"".join(chunks), chunks)

    async def closed(self) -> bool:
        """Whether the other side ends the connection, with nothing more to read."""
        async with asyncio.timeout(60):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True

    def abort(self) -> None:
        """Reset it."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """End it as a client does that has what it wanted."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
