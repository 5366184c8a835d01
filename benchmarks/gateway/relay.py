"""A bare HTTP relay, one parser on each side and a pool of connections: `python relay.py UPSTREAM_PORT PORT`.

No keys, limits, queue or records: the floor of any proxy here.
"""

from __future__ import annotations

import asyncio
import collections
import sys
from typing import Any

import httptools
import uvloop

UPSTREAM = int(sys.argv[1])
IDLE: collections.deque[Upstream] = collections.deque()


class Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.client: Any = None

    def send(self, client: Any, request: bytes) -> None:
        self.client = client
        self.parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.client.write(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        IDLE.append(self)


class Client(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.parser = httptools.HttpRequestParser(self)
        self.parts: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        request, self.parts = b"".join(self.parts), []
        if IDLE:
            IDLE.pop().send(self.transport, request)
        else:
            self.opening = asyncio.ensure_future(self.open(request))

    async def open(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(Upstream, "127.0.0.1", UPSTREAM)
        upstream.send(self.transport, request)


async def main() -> None:
    loop, port = asyncio.get_running_loop(), int(sys.argv[2])
    server = await loop.create_server(Client, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


uvloop.run(main())
